"""``fedrebasin spec``: which units of a model can be permuted without changing its function."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from torch import nn

from fedrebasin.errors import RebasinError
from fedrebasin.spec import PermutationSpec


def spec(
    model: Annotated[
        str, typer.Option(help="torchvision:NAME, or package.module:callable, which is called without arguments.")
    ],
    inputs: Annotated[str, typer.Option("--input", help="Shape of an example input.")] = "1,3,224,224",
    json: Annotated[Path | None, typer.Option(help="Write the spec to this file, too.")] = None,
) -> None:
    """Print the permutation spec of a model.

    Example: fedrebasin spec --model torchvision:resnet50
    """
    shape = parse_shape(inputs)
    built = load_model(model).eval()
    started = time.perf_counter()
    try:
        traced = PermutationSpec.trace(built, torch.zeros(shape))
    except RebasinError as error:
        raise RebasinError(f"model {model} with --input {inputs}: {error}") from None
    seconds = time.perf_counter() - started
    typer.echo(str(traced))
    typer.echo(f"traced and checked in {seconds:.1f} s" if traced.checked else f"traced in {seconds:.1f} s")
    if json is not None:
        traced.save(json)
        typer.echo(f"written to {json}")


def load_model(name: str) -> nn.Module:
    """A model with its initial parameters: ``torchvision:resnet18`` or ``package.module:callable``.

    Raises:
        RebasinError: if there is no such model.
    """
    module, separator, attribute = name.partition(":")
    if not (module and separator and attribute):
        raise RebasinError(f"model {name!r}: write torchvision:NAME or package.module:callable")
    if module == "torchvision":
        return _torchvision(attribute)
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RebasinError(f"model {name}: {error}") from None
    try:
        model = make()
    except Exception as error:
        raise RebasinError(f"model {name}: calling {attribute}() failed: {type(error).__name__}: {error}") from None
    if not isinstance(model, nn.Module):
        raise RebasinError(f"model {name}: {attribute}() gives a {type(model).__name__}, not a torch.nn.Module")
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


def _torchvision(name: str) -> nn.Module:
    import difflib

    from torchvision import models

    known = models.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"; close to it: {', '.join(close)}" if close else ""
        raise RebasinError(f"torchvision has no model {name!r}{hint}")
    return cast(nn.Module, models.get_model(name, weights=None))
