"""Checkpoints that belong together: opened, and made sure that they are of one architecture."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fedrebasin.errors import MergeError
from fedrebasin.files.checkpoints import Checkpoint, load_checkpoint
from fedrebasin.keys import likely_rename
from fedrebasin.spec import PermutationSpec, plain_stack
from fedrebasin.state import has_mean, is_counter, is_statistic

_SHOWN = 3


@dataclass(frozen=True, eq=False)
class CheckpointSet:
    """Checkpoints of one architecture.

    Args:
        checkpoints: in the order given.
        base: the one to align to, if it is given.
        model: the module, if it is given.
        name: of the model, for messages.
    """

    checkpoints: tuple[Checkpoint, ...]
    base: Checkpoint | None
    model: nn.Module | None
    name: str

    @property
    def opened(self) -> tuple[Checkpoint, ...]:
        """The checkpoints and the base."""
        return self.checkpoints if self.base is None else (*self.checkpoints, self.base)

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
        taken = [f"{one.path}: took the prefix {one.prefix} off every key" for one in self.opened if one.prefix]
        taken += [f"{one.path}: read {' as '.join(one.renamed)}, and so on" for one in self.opened if one.renamed]
        left = [
            f"{one.path}: left out {', '.join(one.dropped)}, which is no tensor" for one in self.opened if one.dropped
        ]
        return taken + left

    def plain_stack(self) -> PermutationSpec:
        """The spec of a stack of dense layers, recognised by names and shapes.

        Raises:
            SpecError: if it is none.
        """
        return plain_stack(self.first, ordered=(self.base or self.checkpoints[0]).form == "torch")

    def no_groups(self) -> PermutationSpec:
        """A spec that moves nothing, for methods that do not align."""
        shapes = {key: tuple(tensor.shape) for key, tensor in self.first.items() if has_mean(tensor)}
        return PermutationSpec({}, shapes, frozenset(filter(is_statistic, shapes)))


def open_checkpoints(
    paths: Sequence[str | os.PathLike[str]],
    base: str | os.PathLike[str] | None = None,
    model: nn.Module | None = None,
    name: str = "",
) -> CheckpointSet:
    """Open checkpoints and demand that they fit the model, or else the first of them.

    Args:
        paths: of the checkpoints.
        base: another checkpoint.
        model: the architecture.
        name: of the model, for messages.

    Raises:
        DataError: if a file cannot be read.
        MergeError: if there is none, or one is of another architecture.
    """
    if not paths:
        raise MergeError("no checkpoint to merge: give at least one")
    opened = [load_checkpoint(path) for path in (*paths, *([] if base is None else [base]))]
    keys = None if model is None else list(model.state_dict())
    opened = [one.without_prefix(keys) for one in opened]
    like: Mapping[str, Tensor] = opened[0].state if model is None else model.state_dict()
    whose = str(paths[0]) if model is None else name or type(model).__name__
    for one in opened:
        _demand_fit(one.path, one.state, like, whose)
    return CheckpointSet(tuple(opened[: len(paths)]), None if base is None else opened[-1], model, name)


def _demand_fit(path: object, state: Mapping[str, Tensor], like: Mapping[str, Tensor], whose: str) -> None:
    """Refuse a checkpoint of another architecture.

    Args:
        path: of the checkpoint, for the message.
        state: its tensors.
        like: the tensors that it must have; counters (single integers) may be missing on either side.
        whose: what ``like`` belongs to.

    Raises:
        MergeError: with the keys and shapes that differ.
    """
    missing = [f"{key} {_shape(like[key])}" for key in like if key not in state and not is_counter(like[key])]
    unknown = [f"{key} {_shape(state[key])}" for key in state if key not in like and not is_counter(state[key])]
    other = [
        f"{key} {_shape(tensor)} where {whose} has {_shape(like[key])}"
        for key, tensor in state.items()
        if key in like and like[key].shape != tensor.shape
    ]
    found = [
        f"{len(entries)} {word} ({', '.join(entries[:_SHOWN])}{', ...' if len(entries) > _SHOWN else ''})"
        for word, entries in (("missing", missing), ("not in it", unknown), ("of another shape", other))
        if entries
    ]
    if found:
        hint = f"; {likely}" if missing and (likely := likely_rename(list(like), list(state))) else ""
        raise MergeError(f"{path} does not fit {whose}: tensors {'; '.join(found)}{hint}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
