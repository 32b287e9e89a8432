"""Reading a model with torch.export, quietly."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from fedrebasin.errors import TraceError, one_line
from fedrebasin.tracing.program.inputs import as_call
from fedrebasin.tracing.program.packed import packed_as_padded


def exported(model: nn.Module, example_inputs: Any) -> ExportedProgram:
    """The graph of a model in the mode that it is in.

    Raises:
        TraceError: if torch.export cannot read the model.
    """
    args, kwargs = as_call(example_inputs)
    try:
        # Where torch fails it prints graphs and stack traces as well; what is of use in them is the error's first line.
        with (
            warnings.catch_warnings(),
            redirect_stderr(io.StringIO()),
            _without_stack_traces(),
            packed_as_padded(),
            _caches_aside(model),
        ):
            # Recurrent layers keep a second list of their weights, which export swaps and restores with a warning.
            warnings.simplefilter("ignore", UserWarning)
            return torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:
        raise TraceError(
            f"torch.export cannot read {type(model).__name__}: {one_line(error)}; write the spec by hand with"
            " PermutationSpec.from_axes, or trace a sub-module that has no control flow on data"
        ) from error


class _Dict(dict[Any, Any]):
    """What torch.export does not look into."""


class _List(list[Any]):
    """What torch.export does not look into."""


_OPAQUE: dict[type, type] = {dict: _Dict, list: _List}


@contextmanager
def _caches_aside(model: nn.Module) -> Iterator[None]:
    """Older versions of torch.export compare a model's dicts and lists before and after, and stumble over changes.

    A dict may be a cache that was filled; a recurrent layer's list holds its weights, which export itself exchanges.
    """
    standard = vars(nn.Module())
    own = {name: value for name, value in vars(model).items() if type(value) in _OPAQUE and name not in standard}
    vars(model).update({name: _OPAQUE[type(value)](value) for name, value in own.items()})
    try:
        yield
    finally:
        vars(model).update(own)


@contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Torch notes for every node where it came from, which takes a sixth of the time and is not read here."""
    before = getattr(torch.fx.config, "do_not_emit_stack_traces", False)
    torch.fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = before
