"""The checkpoints that a command is given: opened, made sure that they belong together, with their spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from fedrebasin.cli.models import demand_fit, load_model, traced_spec, with_classes
from fedrebasin.files import Checkpoint, load_checkpoint
from fedrebasin.spec import PermutationSpec, plain_stack
from fedrebasin.state import has_mean


@dataclass(frozen=True, eq=False)
class Inputs:
    """Checkpoints of one architecture.

    Args:
        checkpoints: in the order given.
        base: the one to align to, if it is given.
        model: the module, if its name is given.
        name: of the model, for messages.
    """

    checkpoints: tuple[Checkpoint, ...]
    base: Checkpoint | None
    model: nn.Module | None
    name: str

    @property
    def first(self) -> Mapping[str, Tensor]:
        """The tensors of the base, or of the first checkpoint."""
        return (self.base or self.checkpoints[0]).state

    @property
    def nbytes(self) -> int:
        """Of one checkpoint."""
        return max(checkpoint.state.nbytes for checkpoint in self.checkpoints)

    @property
    def largest_tensor(self) -> int:
        """Bytes of the largest tensor."""
        return max((tensor.nbytes for tensor in self.first.values()), default=0)

    @property
    def notes(self) -> list[str]:
        """What was passed over in the files."""
        opened = [*self.checkpoints, *([self.base] if self.base else [])]
        taken = [f"{one.path}: took the prefix {one.prefix} off every key" for one in opened if one.prefix]
        left = [f"{one.path}: left out {', '.join(one.dropped)}, which is no tensor" for one in opened if one.dropped]
        return taken + left

    def spec(self, file: Path | None, shape: str) -> PermutationSpec:
        """The permutations that the model allows, bound to the checkpoints.

        Args:
            file: a spec that ``fedrebasin spec --out`` wrote; None to trace the model, or without a model to go by
                names and shapes.
            shape: of an example input, for the tracer.

        Raises:
            RebasinError: if it cannot be had, or does not fit.
        """
        if file is not None:
            return PermutationSpec.load(file).bind(self.first)
        if self.model is not None:
            return traced_spec(self.name, self.model, shape).bind(self.first)
        return plain_stack(self.first, ordered=(self.base or self.checkpoints[0]).form == "torch")

    def no_groups(self) -> PermutationSpec:
        """A spec that moves nothing, for methods that do not align."""
        shapes = {key: tuple(tensor.shape) for key, tensor in self.first.items() if has_mean(tensor)}
        return PermutationSpec({}, shapes, frozenset(k for k in shapes if k.endswith(("running_mean", "running_var"))))


def open_inputs(paths: Sequence[Path], model: str, base: Path | None = None) -> Inputs:
    """Open checkpoints and demand that they fit the model, or else the first of them.

    Args:
        paths: of the checkpoints.
        model: its name, or "".
        base: another checkpoint.

    Raises:
        RebasinError: if a file cannot be read, there is no such model, or a checkpoint is of another architecture.
    """
    module = load_model(model) if model else None
    opened = [load_checkpoint(path) for path in (*paths, *([base] if base else []))]
    if module is not None:
        keys = list(module.state_dict())
        opened = [one.without_prefix(keys) for one in opened]
        module = with_classes(model, module, opened[0].state)
        like: Mapping[str, Tensor] = module.state_dict()
    else:
        opened = [one.without_prefix() for one in opened]
        like = opened[0].state
    whose = model or str(paths[0])
    for one in opened:
        demand_fit(one.path, one.state, like, whose)
    return Inputs(tuple(opened[: len(paths)]), opened[-1] if base else None, module, model)
