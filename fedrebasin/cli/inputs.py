"""The checkpoints that a command is given, with their spec."""

from collections.abc import Sequence
from pathlib import Path

from fedrebasin.cli.models import load_model, traced_spec, with_classes
from fedrebasin.files import CheckpointSet, load_checkpoint, open_checkpoints
from fedrebasin.spec import PermutationSpec


def open_inputs(paths: Sequence[Path], model: str, base: Path | None = None) -> CheckpointSet:
    """Open checkpoints and demand that they fit the model, or else the first of them.

    Args:
        paths: of the checkpoints.
        model: its name, or "".
        base: another checkpoint.

    Raises:
        RebasinError: if a file cannot be read, there is no such model, or a checkpoint is of another architecture.
    """
    if not model:
        return open_checkpoints(paths, base)
    module = load_model(model)
    first = load_checkpoint(paths[0]).without_prefix(list(module.state_dict()))
    return open_checkpoints(paths, base, with_classes(model, module, first.state), model)


def spec_of(opened: CheckpointSet, file: Path | None, shape: str) -> PermutationSpec:
    """The permutations that the model allows, bound to the checkpoints.

    Args:
        opened: the checkpoints.
        file: a spec that ``fedrebasin spec --out`` wrote; None to trace the model, or without a model to go by names
            and shapes.
        shape: of an example input, for the tracer.

    Raises:
        RebasinError: if it cannot be had, or does not fit.
    """
    if file is not None:
        return PermutationSpec.load(file).bind(opened.first)
    if opened.model is not None:
        return traced_spec(opened.name, opened.model, shape).bind(opened.first)
    return opened.plain_stack()
