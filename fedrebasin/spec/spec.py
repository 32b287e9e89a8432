"""PermutationSpec: which axes of which tensors move together, so that the function stays the same.

Git Re-Basin, section 3: the hidden units of a layer can be reordered if every tensor that produces or reads them is
reordered alike. A :class:`Group` is one such set of units with all of its axes; a spec is all groups of a model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from fedrebasin.errors import SpecError
from fedrebasin.keys import likely_rename
from fedrebasin.spec import json as spec_json
from fedrebasin.spec.counting import coverage, log10_symmetries
from fedrebasin.spec.fitting import misfits, misplaced, sized
from fedrebasin.spec.group import Group, Unpermuted
from fedrebasin.spec.notation import Units, parse_axes
from fedrebasin.spec.renaming import pairs_with, renamed, without_missing_ties
from fedrebasin.spec.restricting import restricted, torn
from fedrebasin.state import has_mean, is_statistic


@dataclass(frozen=True)
class PermutationSpec:
    """The permutation symmetries of a model.

    Args:
        groups: by name.
        shapes: every key of the state dict that the spec speaks of, with its shape; a hand-written spec knows the
            number of dimensions only (sizes None) until :meth:`bind`.
        statistics: keys that move with their group and do not vote in the matching objective (running means, masks).
        unpermuted: parameter axes that no group moves, with the reason.
        checked: whether random members were applied and left the function unchanged.
        tied: keys that are one tensor; state dicts need have one of them only.
    """

    groups: Mapping[str, Group]
    shapes: Mapping[str, tuple[int | None, ...]]
    statistics: frozenset[str] = frozenset()
    unpermuted: tuple[Unpermuted, ...] = ()
    checked: bool = field(default=False, compare=False)
    tied: tuple[tuple[str, ...], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", MappingProxyType(dict(self.groups)))
        object.__setattr__(self, "shapes", MappingProxyType(dict(self.shapes)))
        for name, group in self.groups.items():
            if name != group.name:
                raise SpecError(f"group {group.name!r} is filed under the name {name!r}")
            if group.parent is not None and group.parent not in self.groups:
                raise SpecError(f"group {name!r} lies in the blocks of {group.parent!r}, which is not in the spec")
            list(self.ancestors(name))
            if absent := next((axis.key for axis in group.axes if axis.key not in self.shapes), None):
                raise SpecError(f"group {name!r} has an axis of {absent}, whose shape is not in the spec")

    @staticmethod
    def from_axes(
        axes: Mapping[str, Sequence[Units]],
        like: Mapping[str, Tensor] | None = None,
        statistics: Iterable[str] | None = None,
    ) -> PermutationSpec:
        """A spec in Git Re-Basin's notation.

        Args:
            axes: for each key of the state dict one entry per dimension: the group's name, None where the axis stays,
                ``(name, n)`` where each unit owns n neighbouring entries (a channel flattened with H x W = n), or
                ``(n, name)`` where the units are neighbours and the row of them comes n times (the same, channels
                last); in general the factors of the dimension in row-major order, as in ``(7, name, 7)``.
            like: a state dict to take the sizes from. Without it they are taken from the first one that the spec is
                used with.
            statistics: keys that do not vote; by default those that are called like running statistics, see
                :func:`fedrebasin.state.is_statistic`.

        Example: ``{"0.weight": ("P_0", None), "0.bias": ("P_0",), "2.weight": (None, "P_0"), "2.bias": (None,)}``

        Raises:
            SpecError: if an entry is not of this form, or does not fit ``like``.
        """
        if statistics is None:
            statistics = filter(is_statistic, axes)
        spec = PermutationSpec(
            groups=parse_axes(axes),
            shapes={key: (None,) * len(row) for key, row in axes.items()},
            statistics=frozenset(statistics),
        )
        return spec if like is None else spec.bind(like)

    @staticmethod
    def trace(model: nn.Module, example_inputs: Any, **options: Any) -> PermutationSpec:
        """Read the spec off a model: see :func:`fedrebasin.tracing.trace`."""
        from fedrebasin.tracing import trace

        return trace(model, example_inputs, **options)

    @staticmethod
    def from_function(function: Callable[..., Any], state: Mapping[str, Any], **options: Any) -> PermutationSpec:
        """Find the spec of any function of a state dict by testing it: see :func:`fedrebasin.tracing.derive`."""
        from fedrebasin.tracing import derive

        return derive(function, state, **options)

    @staticmethod
    def load(path: str | PathLike[str]) -> PermutationSpec:
        """Read a spec that :meth:`save` wrote.

        Raises:
            SpecError: if the file is not one.
        """
        try:
            spec = spec_json.decode(json.loads(Path(path).read_text(encoding="utf-8")))
            if found := misplaced(spec):
                raise ValueError(found[0])
            return spec
        except (OSError, ValueError, RecursionError, OverflowError) as error:
            raise SpecError(f"{path}: not a permutation spec: {error}") from None

    def save(self, path: str | PathLike[str]) -> None:
        """Write the spec as JSON; ``PermutationSpec.load(path) == spec``."""
        Path(path).write_text(json.dumps(spec_json.encode(self), indent=1) + "\n", encoding="utf-8")

    def ancestors(self, name: str) -> Iterator[Group]:
        """The groups whose blocks contain the group's units, innermost first."""
        seen, parent = {name}, self.groups[name].parent
        while parent is not None:
            if parent in seen:
                raise SpecError(f"group {name!r} lies in its own blocks")
            seen.add(parent)
            yield self.groups[parent]
            parent = self.groups[parent].parent

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the group's index: one size for each ancestor, outermost first, then its own size.

        Raises:
            SpecError: if the spec has not met a state dict yet.
        """
        sizes = [self.groups[name].size, *(group.size for group in self.ancestors(name))]
        if any(size is None for size in sizes):
            raise SpecError(f"group {name!r} has no size yet: call spec.bind(state_dict) first")
        return tuple(size for size in reversed(sizes) if size is not None)

    def children(self, name: str) -> tuple[Group, ...]:
        """The groups whose units lie in the blocks that are the units of ``name``."""
        return tuple(group for group in self.groups.values() if group.parent == name)

    @property
    def outermost_first(self) -> tuple[Group, ...]:
        """All groups, each after its ancestors: the order in which a permutation is applied."""
        return tuple(sorted(self.groups.values(), key=lambda group: len(list(self.ancestors(group.name)))))

    @property
    def log10_symmetries(self) -> float:
        """log10 of the number of members: the sum over groups of blocks x log10(size!), frozen groups left out.

        Git Re-Basin's Table 1 counts axes that a residual stream ties as if they were free; this is the number of
        permutations that leave the function as it is.
        """
        return log10_symmetries(self)

    @property
    def coverage(self) -> float:
        """The share of the parameters (statistics left out), by number, that some group that is not frozen moves."""
        return coverage(self)

    def voting(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """The keys of the tensors that vote in the matching objective, and that distances of models are taken over.

        Statistics (running means) and integer and bool tensors (masks) move with their group and do not vote;
        counters do neither.

        Args:
            state: a state dict of the model; keys that it does not have are left out.
        """
        kept = (key for key in self.shapes if key in state and key not in self.statistics)
        return tuple(key for key in kept if has_mean(state[key]))

    def sizes(self, key: str) -> tuple[int, ...]:
        """The shape of the tensor ``key``.

        Raises:
            SpecError: if the spec has not met a state dict yet.
        """
        shape = tuple(size for size in self.shapes[key] if size is not None)
        if len(shape) != len(self.shapes[key]):
            raise SpecError(f"{key} has no shape yet: call spec.bind(state_dict) first")
        return shape

    def freeze(self, names: Iterable[str]) -> PermutationSpec:
        """The spec with these groups frozen: their units stay where they are.

        Raises:
            SpecError: if a name is not in the spec.
        """
        frozen = set(names)
        if unknown := sorted(frozen - set(self.groups)):
            raise SpecError(f"no group {', '.join(unknown)} to freeze; the spec has {', '.join(self.groups)}")
        groups = {name: replace(g, frozen=g.frozen or name in frozen) for name, g in self.groups.items()}
        return replace(self, groups=groups)

    # -- a part of the model ---------------------------------------------------------------------------------------

    def torn(self, keys: Iterable[str]) -> dict[str, str]:
        """The groups that lie in these tensors and in others too, and are not frozen.

        Args:
            keys: of a part of the model.

        Returns:
            by name, the key of the first of the other tensors.
        """
        return torn(self, keys)

    def restrict(self, keys: Iterable[str], *, freeze_torn: bool = True) -> PermutationSpec:
        """The spec of a part of the model, while the other tensors stay as they are.

        Identity: a member of it moves the part as the member of this spec does that has the same indices, and leaves
        every other group in place. So the function stays the same, unless torn groups are free.

        Args:
            keys: of the part; or its state dict, whose integers need not be in the spec.
            freeze_torn: freeze the groups that :meth:`torn` names, so that the part, moved, still fits the rest; what
                was frozen is in ``unpermuted`` with its reason. Without it they move in the part alone, which fits
                the rest again once it is moved back.

        Raises:
            SpecError: if there are no keys, or one is not in the spec.
        """
        return restricted(self, keys, freeze_torn)

    # -- does it fit -----------------------------------------------------------------------------------------------

    def misfits(self, state: Mapping[str, Tensor]) -> list[str]:
        """Everything that keeps the spec from fitting a state dict, one sentence each; empty if it fits.

        Integer tensors (``num_batches_tracked``) need not be in the spec.
        """
        return misfits(self, state)

    def bind(self, state: Mapping[str, Tensor]) -> PermutationSpec:
        """The spec with all sizes known, without tied keys that are not there, once it is sure that it fits.

        Raises:
            SpecError: naming every key and shape that does not fit.
        """
        if found := misfits(self, state):
            if any(key not in state for key in self.shapes) and (hint := likely_rename(list(self.shapes), list(state))):
                how = "spec.rename({old: new})" if pairs_with(self, state) is None else "spec.rename_like(state)"
                found = [f"{hint} ({how} renames the spec)", *found]
            raise SpecError("the spec does not fit the state dict: " + "; ".join(found))
        return sized(without_missing_ties(self, state), state)

    def rename(self, names: Mapping[str, str]) -> PermutationSpec:
        """The spec with keys renamed, others stay; ``spec.rename({old: new}).rename({new: old}) == spec``.

        Raises:
            SpecError: if the spec has no such key, or two would get one name.
        """
        return renamed(self, names)

    def rename_like(self, state: Mapping[str, Tensor]) -> PermutationSpec:
        """The spec with the keys that its tensors have in ``state``, see :func:`fedrebasin.keys.pair`, or as it is.

        Raises:
            SpecError: if there are two ways to pair the keys.
        """
        return self.rename(pairs_with(self, state) or {})

    def check(self, model: nn.Module | Callable[..., Any], example_inputs: Any, **options: Any) -> None:
        """Apply random members and demand the same function: see :func:`fedrebasin.tracing.check`.

        Any function of a state dict is checked as well: ``spec.check(function, state)``.

        Raises:
            SpecError: if the output moves by more than rounding.
        """
        from fedrebasin.tracing import check

        check(self, model, example_inputs, **options)

    def __str__(self) -> str:
        from fedrebasin.spec.text import describe

        return describe(self)
