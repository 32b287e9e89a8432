"""Checkpoints that belong together: opened, and made sure that they are of one architecture."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedrebasin.errors import MergeError
from fedrebasin.files.checkpoints import Checkpoint, load_checkpoint
from fedrebasin.files.mergeable import demand_mergeable
from fedrebasin.files.naming import Names, named_as
from fedrebasin.keys import likely_rename
from fedrebasin.spec import PermutationSpec, plain_stack
from fedrebasin.state import has_mean, is_counter, is_statistic, missing_ties, tied_keys, ties_of

_SHOWN = 3
_NONE = PermutationSpec({}, {})


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
        return self.leading.state

    @property
    def nbytes(self) -> int:
        """Of one checkpoint."""
        return max(checkpoint.state.nbytes for checkpoint in self.checkpoints)

    @property
    def leading(self) -> Checkpoint:
        """The base, or the first checkpoint: the result is of its form."""
        return self.base or self.checkpoints[0]

    @property
    def largest_tensor(self) -> int:
        """Bytes of the largest tensor."""
        return max((tensor.nbytes for tensor in self.first.values()), default=0)

    @property
    def notes(self) -> list[str]:
        """What was passed over in the files."""
        taken = [line for one in self.opened for line in one.choices]
        taken += [f"{one.path}: removed the prefix {one.prefix!r} from every key" for one in self.opened if one.prefix]
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
        return plain_stack(self.first, ordered=self.leading.form == "torch")

    def no_groups(self) -> PermutationSpec:
        """A spec that moves nothing, for methods that do not align."""
        shapes = {key: tuple(tensor.shape) for key, tensor in self.first.items() if has_mean(tensor)}
        return PermutationSpec({}, shapes, frozenset(filter(is_statistic, shapes)))


def open_checkpoints(
    paths: Sequence[str | os.PathLike[str]],
    base: str | os.PathLike[str] | None = None,
    model: nn.Module | None = None,
    name: str = "",
    *,
    key: str = "",
    prefix: str = "",
    in_files: Mapping[str, str] | None = None,
    spec: PermutationSpec | None = None,
) -> CheckpointSet:
    """Open checkpoints and demand that they fit the model, or else the first of them.

    Args:
        paths: of the checkpoints: files, or folders as hubs lay them out.
        base: another checkpoint.
        model: the architecture; tied weights need lie in a file once, and what it does not have is left out.
        name: of the model, for messages.
        key: the entry of torch files that is the state dict; "" for the usual one.
        prefix: of the keys that are the model, where files have several copies; "" chooses.
        in_files: what a library calls the model's tensors in its files, by their names, where that is something else.
        spec: of the models, where it is known: it says what is tied.

    Raises:
        DataError: if a file cannot be read, or its numbers have no mean.
        MergeError: if there is none, or one is of another architecture.
    """
    if not paths:
        raise MergeError("no checkpoint to merge: give at least one")
    loaded = [load_checkpoint(path, key) for path in (*paths, *([] if base is None else [base]))]
    known = (
        None if model is None and spec is None else [*(model.state_dict() if model else ()), *(spec or _NONE).shapes]
    )
    for one in loaded:
        demand_mergeable(one.path, one.state, known)
    ties = [*(ties_of(model) if model else ()), *(spec or _NONE).tied]
    if model is None:
        ties += [names for one in loaded for names in tied_keys(dict(one.state))]
    names = None if model is None else Names(model.state_dict(), ties, in_files or {}, whole=True)
    leading = named_as(loaded[0 if base is None else -1], names, prefix)
    if model is None:
        names = Names(leading.state, ties)
    opened = [leading if one.path is leading.path else named_as(one, names, prefix) for one in loaded]
    whose = str(leading.path) if model is None else name or type(model).__name__
    assert names is not None
    for one in opened:
        _demand_fit(one, names, whose)
    opened = [_with_the_keys_of(leading, one, ties) for one in opened]
    return CheckpointSet(tuple(opened[: len(paths)]), None if base is None else opened[-1], model, name)


def _with_the_keys_of(leading: Checkpoint, other: Checkpoint, ties: Sequence[tuple[str, ...]]) -> Checkpoint:
    """The checkpoint with the same ones of tied keys as the leading one.

    Raises:
        MergeError: if it has two tensors where the leading one has one, and they differ.
    """
    supplied = missing_ties(other.state, leading.state, ties)
    twice = missing_ties(leading.state, other.state, ties)
    for key, tied in twice.items():
        if tied in other.state and not torch.equal(other.state[key], other.state[tied]):
            raise MergeError(f"{other.path}: {key} and {tied} differ, which are one tensor in {leading.path}")
    if not supplied and not twice:
        return other
    kept = {key: key for key in other.state if key not in twice}
    return other.called({**kept, **supplied})


def _demand_fit(one: Checkpoint, names: Names, whose: str) -> None:
    """Refuse a checkpoint of another architecture.

    Args:
        one: the checkpoint.
        names: the tensors that it must have; counters may be missing on either side, tied ones be there once.
        whose: what they belong to.

    Raises:
        MergeError: with the keys and shapes that differ.
    """
    path, state, like = one.path, one.state, names.like
    tied = missing_ties(like, state, names.ties)
    missing = [f"{key} {_shape(like[key])}" for key in names.missing(state)]
    unknown = [
        f"{key} {_shape(state[key])}"
        for key in state
        if key not in like and key not in tied and not is_counter(state[key])
    ]
    other = [
        f"{key} {_shape(tensor)} where {whose} has {_shape(like[key])}"
        for key, tensor in state.items()
        if key in like and like[key].shape != tensor.shape
    ]
    found = [
        f"{what} ({', '.join(entries[:_SHOWN])}{', ...' if len(entries) > _SHOWN else ''})"
        for what, entries in (
            (f"tensors missing: {len(missing)}", missing),
            (f"tensors too many: {len(unknown)}", unknown),
            (f"tensors of another shape: {len(other)}", other),
        )
        if entries
    ]
    if found:
        hint = f"; {likely}" if missing and (likely := likely_rename(list(like), list(state))) else ""
        raise MergeError(f"{path} does not fit {whose}: {'; '.join(found)}{hint}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
