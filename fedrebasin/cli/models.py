"""Models by name: of torchvision, timm and transformers, or ``package.module:callable``."""

import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedrebasin.errors import RebasinError, one_line

NAMES = "torchvision:NAME, timm:NAME, transformers:FOLDER or package.module:callable"


def load_model(name: str, **options: Any) -> nn.Module:
    """A model with its initial parameters; no weights are loaded.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME``, or ``package.module:callable``; options may follow, as in
            ``timm:convnext_atto,num_classes=10``.
        options: for the callable.

    Raises:
        RebasinError: if there is no such model, with the closest names.
    """
    name, *settings = name.split(",")
    options = {**_settings(name, settings), **options}
    module, separator, attribute = name.partition(":")
    if not (module and separator and attribute):
        raise RebasinError(f"model {name!r}: write {NAMES}")
    if module in _LIBRARIES:
        return _of_library(module, attribute, options)
    make = load_callable("model", name)
    try:
        model = make(**options)
    except Exception as error:
        raise RebasinError(f"model {name}: calling {attribute}() failed: {type(error).__name__}: {error}") from None
    if not isinstance(model, nn.Module):
        raise RebasinError(f"model {name}: {attribute}() gives a {type(model).__name__}, not a torch.nn.Module")
    return model


def load_callable(what: str, name: str) -> Any:
    """What ``package.module:name`` stands for; modules in the working folder are found, too.

    Raises:
        RebasinError: if it cannot be imported, with the closest name.
    """
    module, _, attribute = name.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        close = " (did you mean torchvision?)" if difflib.get_close_matches(module, ["torchvision"]) else ""
        raise RebasinError(f"{what} {name}: {error}{close}") from None
    if not hasattr(found, attribute):
        public = [entry for entry in dir(found) if not entry.startswith("_") and callable(getattr(found, entry))]
        raise RebasinError(f"{what} {name}: {module} has no {attribute!r}{closest(attribute, public)}")
    return getattr(found, attribute)


def with_classes(name: str, model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """The model of torchvision or timm with as many classes as a checkpoint has, where that is all that differs.

    Args:
        name: of the model, see :func:`load_model`.
        model: as that function made it.
        state: the checkpoint's tensors.
    """
    pairs = [(own.shape, state[key].shape) for key, own in model.state_dict().items() if key in state]
    other = [(own, found) for own, found in pairs if own != found]
    counts = {(own[:1], found[:1]) for own, found in other}
    same_inside = all(own[1:] == found[1:] and len(found) > 0 for own, found in other)
    if name.partition(":")[0] in _LIBRARIES and len(counts) == 1 and same_inside:
        ((_, (classes,)),) = counts
        return load_model(name, num_classes=classes)
    return model


def closest(name: str, known: Iterable[str]) -> str:
    """``; close to it: ...`` with the names that look like this one, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; close to it: {', '.join(close)}" if close else ""


#: How each library lists its models, and makes one.
_LIBRARIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "torchvision": ("torchvision.models", "get_model", {"weights": None}),
    "timm": ("timm", "create_model", {"pretrained": False}),
}


def _of_library(library: str, name: str, options: dict[str, Any]) -> nn.Module:
    module, make, fixed = _LIBRARIES[library]
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise RebasinError(f"model {library}:{name}: {one_line(error)}: install {library}") from None
    known = found.list_models()
    if name.partition(".")[0] not in known:
        raise RebasinError(f"{library} has no model {name!r}{closest(name, known)}")
    try:
        with torch.random.fork_rng(devices=[]):
            return cast(nn.Module, getattr(found, make)(name, **fixed, **options))
    except (TypeError, ValueError, RuntimeError) as error:
        raise RebasinError(f"model {library}:{name} with {options}: {one_line(error)}") from None


def _settings(name: str, texts: list[str]) -> dict[str, Any]:
    """``["num_classes=10", "act=relu"]`` as keyword arguments: whole numbers, numbers, switches, or texts."""
    found: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key.isidentifier():
            raise RebasinError(f"model {name}: {text!r} is no option: write num_classes=10")
        found[key] = _value(value)
    return found


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)
