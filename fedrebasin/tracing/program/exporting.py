"""Reading a model with torch.export, quietly."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import torch
from torch.export import ExportedProgram

from fedrebasin.errors import TraceError, one_line
from fedrebasin.tracing.program.packed import packed_as_padded
from fedrebasin.tracing.program.usage import Usage


def exported(usage: Usage) -> ExportedProgram:
    """The graph of a model as it is run, in the mode that it is in.

    Raises:
        TraceError: if torch.export cannot read the model.
    """
    try:
        # Where torch fails it prints graphs and stack traces as well; what is of use in them is the error's first line.
        with (
            warnings.catch_warnings(),
            redirect_stderr(io.StringIO()),
            _without_stack_traces(),
            packed_as_padded(),
        ):
            # Recurrent layers keep a second list of their weights, which export swaps and restores with a warning.
            warnings.simplefilter("ignore", UserWarning)
            return torch.export.export(usage.module, usage.given, strict=False)
    except Exception as error:
        raise TraceError(
            f"torch.export cannot read {type(usage.model).__name__}: {one_line(error, 160)}; write the spec by hand"
            " with PermutationSpec.from_axes, or trace a sub-module that has no control flow on data"
        ) from error


@contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Torch notes for every node where it came from, which takes a sixth of the time and is not read here."""
    before = getattr(torch.fx.config, "do_not_emit_stack_traces", False)
    torch.fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = before
