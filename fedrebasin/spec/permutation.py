"""Permutation: one member of a spec's symmetry group, and its algebra."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from fedrebasin.errors import SpecError
from fedrebasin.spec.axis import Axis
from fedrebasin.spec.moving import Moves, Scratch
from fedrebasin.spec.spec import PermutationSpec


@dataclass(frozen=True, eq=False)
class Permutation(Mapping[str, Tensor]):
    """Group name -> index, with ``permuted[i] = original[p[i]]`` (Git Re-Basin, section 2).

    The index of a group is an int64 tensor on the CPU of shape ``spec.shape(name)``, each row a permutation of
    ``range(size)``. For a group in the blocks of another one ``permuted[b, i] = original[s[b], p[b, i]]``, where s
    is the parent's index: blocks move first, and the rows of p belong to the blocks' new places.

    Laws: ``p.compose(p.inverse()) == identity``, ``p.compose(q).apply(x) == p.apply(q.apply(x))``.

    Raises:
        SpecError: if a group is missing, unknown, or its index is no permutation.
    """

    spec: PermutationSpec
    indices: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if set(self.indices) != set(self.spec.groups):
            raise SpecError(
                f"the permutation has groups {sorted(self.indices)} where the spec has {sorted(self.spec.groups)}"
            )
        checked = {}
        for name in self.spec.groups:
            index = torch.as_tensor(self.indices[name]).detach().to("cpu", torch.int64)
            shape = self.spec.shape(name)
            if tuple(index.shape) != shape:
                raise SpecError(f"group {name!r}: the index has shape {tuple(index.shape)} instead of {shape}")
            if not torch.equal(index.sort(-1).values, torch.arange(shape[-1]).expand(shape)):
                raise SpecError(f"group {name!r}: the index is not a permutation of 0 .. {shape[-1] - 1}")
            checked[name] = index
        object.__setattr__(self, "indices", MappingProxyType(checked))

    def __getitem__(self, name: str) -> Tensor:
        return self.indices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Permutation):
            return NotImplemented
        return set(self) == set(other) and all(torch.equal(self[name], other[name]) for name in self)

    __hash__ = None  # type: ignore[assignment]

    @staticmethod
    def identity(spec: PermutationSpec) -> Permutation:
        """The member that moves nothing."""
        return Permutation(
            spec, {name: torch.arange(spec.shape(name)[-1]).expand(spec.shape(name)) for name in spec.groups}
        )

    @staticmethod
    def random(spec: PermutationSpec, generator: torch.Generator) -> Permutation:
        """A member drawn uniformly (frozen groups stay), from a CPU generator."""
        indices = {}
        for name, group in spec.groups.items():
            shape = spec.shape(name)
            rows = math.prod(shape[:-1])
            row = torch.arange(shape[-1])
            drawn = [row if group.frozen else torch.randperm(shape[-1], generator=generator) for _ in range(rows)]
            indices[name] = torch.stack(drawn).reshape(shape)
        return Permutation(spec, indices)

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return all(_stays(index) for index in self.values())

    def inverse(self) -> Permutation:
        """The member that undoes this one."""
        return self._from_positions({name: torch.argsort(where) for name, where in self._positions().items()})

    def compose(self, other: Permutation) -> Permutation:
        """First ``other``, then this one: ``p.compose(q).apply(x) == p.apply(q.apply(x))``.

        Raises:
            SpecError: if the other permutation belongs to another spec.
        """
        self._demand_same_groups(other)
        mine, others = self._positions(), other._positions()
        return self._from_positions({name: others[name][mine[name]] for name in self})

    def moves(self) -> Iterator[tuple[Axis, Tensor]]:
        """The axes whose units change place, each with its group's index, outermost group first.

        Identity: :meth:`Axis.move` on the tensor of each axis, in this order, is :meth:`apply`.
        """
        for group in self.spec.outermost_first:
            index = self[group.name]
            if not group.frozen and not _stays(index):
                yield from ((axis, index) for axis in group.axes)

    def apply(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A new state dict with every axis of every group permuted; tensors that do not move are shared, not copied.

        Raises:
            SpecError: naming every key and shape that does not fit.
        """
        result = dict(state)
        self._apply(result, own=set())
        return result

    def apply_in_place(self, state: dict[str, Tensor]) -> None:
        """:meth:`apply` for a state dict that nobody else uses: it needs the memory of one more tensor, not of all.

        Raises:
            SpecError: naming every key and shape that does not fit.
        """
        self._apply(state, own=set(state))

    def _apply(self, state: dict[str, Tensor], own: set[str]) -> None:
        """Permute the entries; the tensors of the keys in ``own`` may be written to."""
        self.spec.bind(state)
        moves: dict[str, Moves] = {}
        scratch = Scratch()
        for axis, index in self.moves():
            if axis.key not in moves:
                moves[axis.key] = Moves(state, axis.key, own=axis.key in own, scratch=scratch)
            moves[axis.key].add(axis, index)
        for each in moves.values():
            each.finish()

    def fixed_points(self, other: Permutation | None = None) -> dict[str, int]:
        """Units by group that this permutation and the other one (identity if None) send to the same place.

        Simultaneous connectivity, section 5.1. For nested groups a unit counts where its block and itself agree.

        Raises:
            SpecError: if the other permutation belongs to another spec.
        """
        other = Permutation.identity(self.spec) if other is None else other
        self._demand_same_groups(other)
        mine, others = self._positions(), other._positions()
        return {name: int((mine[name] == others[name]).sum()) for name in self}

    def units_moved(self) -> dict[str, int]:
        """Units by group that change place; for nested groups a unit counts where its block or itself moves.

        Identity: with :meth:`fixed_points` they are all units of the group.
        """
        if self.is_identity:
            return dict.fromkeys(self, 0)
        return {name: self[name].numel() - fixed for name, fixed in self.fixed_points().items()}

    def _demand_same_groups(self, other: Permutation) -> None:
        different = [
            name
            for name in sorted({*self, *other})
            if name not in self or name not in other or self[name].shape != other[name].shape
        ]
        if different:
            raise SpecError(f"the permutations differ in the groups {', '.join(different)}: not of one spec")

    def _positions(self) -> dict[str, Tensor]:
        """Each group's index over all of its blocks at once: flat new place -> flat old place."""
        found: dict[str, Tensor] = {}
        for group in self.spec.outermost_first:
            index = self[group.name]
            if group.parent is None:
                found[group.name] = index
            else:
                blocks = found[group.parent].reshape(*index.shape[:-1], 1)
                found[group.name] = (blocks * index.shape[-1] + index).flatten()
        return found

    def _from_positions(self, positions: Mapping[str, Tensor]) -> Permutation:
        indices = {}
        for name, where in positions.items():
            shape = self.spec.shape(name)
            indices[name] = where.reshape(shape) % shape[-1]
        return Permutation(self.spec, indices)


def _stays(index: Tensor) -> bool:
    """Whether every unit of a group keeps its place."""
    return torch.equal(index, torch.arange(index.shape[-1]).expand_as(index))
