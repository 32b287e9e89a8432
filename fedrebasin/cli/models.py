"""Models by name: ``torchvision:resnet18`` or ``package.module:callable``."""

import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedrebasin.errors import RebasinError
from fedrebasin.spec import PermutationSpec


def load_model(name: str, **options: Any) -> nn.Module:
    """A model with its initial parameters.

    Args:
        name: ``torchvision:NAME`` or ``package.module:callable``.
        options: for the callable.

    Raises:
        RebasinError: if there is no such model, with the closest names.
    """
    module, separator, attribute = name.partition(":")
    if not (module and separator and attribute):
        raise RebasinError(f"model {name!r}: write torchvision:NAME or package.module:callable")
    if module == "torchvision":
        return _torchvision(attribute, **options)
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
    """The torchvision model with as many classes as a checkpoint has, where that is all that differs.

    Args:
        name: of the model, see :func:`load_model`.
        model: as that function made it.
        state: the checkpoint's tensors.
    """
    pairs = [(own.shape, state[key].shape) for key, own in model.state_dict().items() if key in state]
    other = [(own, found) for own, found in pairs if own != found]
    counts = {(own[:1], found[:1]) for own, found in other}
    same_inside = all(own[1:] == found[1:] and len(found) > 0 for own, found in other)
    if name.startswith("torchvision:") and len(counts) == 1 and same_inside:
        ((_, (classes,)),) = counts
        return load_model(name, num_classes=classes)
    return model


def parse_shape(text: str) -> tuple[int, ...]:
    """``"1,3,224,224"`` as numbers.

    Raises:
        RebasinError: if they are not positive whole numbers.
    """
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise RebasinError(f"input {text!r}: write positive whole numbers with commas, such as 1,3,224,224")
    return shape


def closest(name: str, known: Iterable[str]) -> str:
    """``; close to it: ...`` with the names that look like this one, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; close to it: {', '.join(close)}" if close else ""


def _torchvision(name: str, **options: Any) -> nn.Module:
    from torchvision import models

    known = models.list_models()
    if name not in known:
        raise RebasinError(f"torchvision has no model {name!r}{closest(name, known)}")
    with torch.random.fork_rng(devices=[]):
        return cast(nn.Module, models.get_model(name, weights=None, **options))


def traced_spec(name: str, model: nn.Module, inputs: str) -> PermutationSpec:
    """The spec of a model in evaluation mode, from an example input of this shape.

    Raises:
        RebasinError: if the model cannot be traced with it.
    """
    shape = parse_shape(inputs)
    try:
        return PermutationSpec.trace(model.eval(), torch.zeros(shape))
    except RebasinError as error:
        raise RebasinError(f"model {name} with --input {inputs}: {error}") from None
