"""The spec of a function that nobody can read, found by testing it."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedrebasin.spec import Group, PermutationSpec, Unpermuted
from fedrebasin.state import has_mean, is_statistic
from fedrebasin.tracing.proof.checking import UNITS_SEEN, relative_change, small_change
from fedrebasin.tracing.proof.functions import Function, FunctionRuns
from fedrebasin.tracing.proof.precision import never_rounding
from fedrebasin.tracing.proof.proven import proven
from fedrebasin.tracing.proof.readings import Reading, joined, wholes, wholes_and_pieces
from fedrebasin.tracing.proof.trial import Trial

#: Outputs that move by more of their size have changed, in float64; in less, by a tenth of what is never rounding.
CHANGED = 1e-7
FEWEST_DRAWS = 2
_DRAWS_APART = 104_729


TOLD_APART = "its units are told apart, or lie as testing does not look for (packed heads, grouped convolutions)"
NOT_FOUND = "its units move with others that testing did not find"
WITHOUT_EFFECT = "the outputs do not depend on the order of its units"
SINGLE = "a single unit"


def derive(
    function: Function, state: Mapping[str, Any], *, statistics: Iterable[str] | None = None, seed: int = 0
) -> PermutationSpec:
    """The spec of any function of a state dict, found by testing which units can be exchanged.

    Let some axes be symmetric: of each two units that are to be exchanged, the second is a copy of the first. Along
    the axes C of a group exchange these units, while the group's other axes are symmetric: that is a member of the
    group, and the function stays. So

    - an axis may belong to a group if, with all others of its size symmetric, an exchange along it changes nothing, and
      still does once those are left that may;
    - C grows, from one axis, by those whose asymmetry makes an exchange along C change something;
    - C is a group once an exchange along C changes nothing, whatever the other axes hold.

    What is found is checked as :func:`check` does, and a group that fails is dropped. Sizes are tried from the largest
    on. A dimension of size m holds n units if n is a size of some dimension and divides m: as a whole, or in blocks or
    rows (the channels of an image, flattened in any order, or the gates of an LSTM). What no group takes is tried as a
    concatenation of at most four pieces, and rows that move together are tried apart: the directions of an LSTM, the
    units in each head. Not found: blocks that move and have units of their own inside (heads that share a dimension,
    grouped convolutions), and sizes that no dimension has. Axes without a group are in ``spec.unpermuted``, and why.

    The function runs some times for each axis, and some times for each axis and group where few axes of a size are in
    one: hundreds of times for a small network. Small inputs are enough, if everything in the state has a part in the
    outputs.

    Args:
        function: of a state dict: arrays in, arrays out, of NumPy, JAX, TensorFlow or torch, as :func:`check` takes it.
        state: arrays by name, that the function takes; their values are not used.
        statistics: keys that do not vote; by default those that are called as PyTorch, Keras or Flax calls running
            statistics.
        seed: of the parameters and the exchanges.

    Raises:
        SpecError: if the function cannot be run with random parameters, or does not depend on them.
    """
    runs = FunctionRuns(function, state)
    shapes = {key: tuple(tensor.shape) for key, tensor in runs.tensors.items() if has_mean(tensor)}
    lengths = {(key, dim): length for key, shape in shapes.items() for dim, length in enumerate(shape)}
    reasons = {where: TOLD_APART if length > 1 else SINGLE for where, length in lengths.items()}
    sizes = sorted({length for length in lengths.values() if length > 1}, reverse=True)
    groups: dict[str, Group] = {}
    taken: list[Reading] = []
    with ExitStack() as stack:
        draws: list[Draw] = []
        for size in sizes:
            for number in range(len(draws), _draws(size)):
                trial, drawn, _ = stack.enter_context(runs.started(seed + _DRAWS_APART * number))
                draws.append(Draw(trial, drawn))
            for read in (wholes, wholes_and_pieces):
                axes = [one for one in read(lengths, size) if not any(map(one.overlaps, taken))]
                if len({(axis.key, axis.dim) for axis in axes}) < 2:
                    continue
                for group in Exchanges(draws[: _draws(size)], size, axes, seed).groups(reasons):
                    name = f"{group[0].key}[{group[0].dim}]"
                    name = name if name not in groups else f"{name} from {group[0].start}"
                    groups[name] = Group(name, size, tuple(one.axis() for one in group))
                    taken += group
    moved = {(one.key, one.dim) for one in taken}
    spec = PermutationSpec(
        groups=groups,
        shapes=shapes,
        statistics=frozenset(filter(is_statistic, shapes) if statistics is None else statistics),
        unpermuted=tuple(Unpermuted(*where, reason) for where, reason in reasons.items() if where not in moved),
    )
    return proven(spec, lambda one: small_change(one, runs, seed))


class Draw(NamedTuple):
    """Random parameters, and what runs the function with them."""

    trial: Trial
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Exchanges:
    """Exchanges of units along axes that may hold the same ones.

    Args:
        draws: a change that one of them shows is one.
        size: the number of units.
        axes: dimensions as they may be read; of one dimension there may be several readings.
        seed: of the exchanges.
    """

    draws: Sequence[Draw]
    size: int
    axes: Sequence[Reading]
    seed: int

    def groups(self, reasons: dict[tuple[str, int], str]) -> Iterator[list[Reading]]:
        """The axes of each group, in the order of the state; why others are in none is written down.

        Args:
            reasons: by key and dimension; it is changed.
        """
        rest: list[Reading] = []
        sieved = self._sieved()
        for axis in sieved.axes:
            if not any(map(axis.overlaps, rest)):
                rest.append(axis)
        while rest:
            group, whole = sieved._grown(rest[0], rest[1:])
            rest = [axis for axis in rest if axis not in group]
            for axis in group:
                reasons[axis.key, axis.dim] = WITHOUT_EFFECT if whole else NOT_FOUND
            if whole and len(group) > 1:
                yield from self._apart(sorted(group, key=self.axes.index))

    def _sieved(self) -> "Exchanges":
        """Those along which an exchange changes nothing while the others of them are symmetric."""
        left = [axis for axis in self.axes if not self.changes([axis], ())]
        return self if len(left) == len(self.axes) else replace(self, axes=left)._sieved()

    def _grown(self, first: Reading, others: list[Reading]) -> tuple[list[Reading], bool]:
        """The axes that were found to move with the first one, and whether these are all."""
        group = [first]
        while self.changes(group, others):
            if not (found := self._partners(group, [axis for axis in others if axis not in group])):
                return group, False
            group += found
        return group, not self.changes(group, self.axes)

    def _apart(self, group: list[Reading]) -> list[list[Reading]]:
        """The finer groups of a group whose rows need not move together: directions of an LSTM, units in each head."""
        alone = Exchanges(self.draws, self.size, [row for axis in group for row in axis.rows], self.seed)
        rest, finer = list(alone.axes), []
        while rest:
            found, whole = alone._grown(rest[0], rest[1:])
            if not whole or len(found) == len(alone.axes):
                return [group]
            finer.append(found)
            rest = [row for row in rest if row not in found]
        finer = [found for found in finer if len(found) > 1]
        return [list(joined(group, found)) for found in finer] if len(finer) > 1 else [group]

    def _partners(self, group: list[Reading], others: list[Reading]) -> list[Reading]:
        """Those of the others whose asymmetry makes an exchange along the group change something."""
        if not others or not self.changes(group, others):
            return []
        if len(others) == 1:
            return others
        half = len(others) // 2
        first = self._partners(group, others[:half])
        return first + self._partners(group + first, others[half:])

    def changes(self, moved: Sequence[Reading], free: Collection[Reading]) -> bool:
        """Whether an exchange along some axes changes the outputs.

        Args:
            moved: these axes.
            free: axes that need not be symmetric; all others are.
        """
        return any(self._changes(number, moved, free) for number in range(len(self.draws)))

    def _changes(self, number: int, moved: Sequence[Reading], free: Collection[Reading]) -> bool:
        trial, drawn = self.draws[number]
        exchange = _exchange(self.size, torch.Generator().manual_seed(self.seed + number))
        asymmetric: dict[tuple[str, int], list[Reading]] = {}
        for axis in (*moved, *free):
            asymmetric.setdefault((axis.key, axis.dim), []).append(axis)
        bound: dict[tuple[str, int], list[Reading]] = {}
        for axis in self.axes:
            if not any(map(axis.overlaps, asymmetric.get((axis.key, axis.dim), ()))):
                bound.setdefault((axis.key, axis.dim), []).append(axis)
        state = dict(drawn)
        for (key, dim), readings in bound.items():
            state[key] = state[key].index_select(dim, _copies([axis.reordered(exchange) for axis in readings]))
        before = trial.outputs(state)
        for axis in moved:
            state[axis.key] = state[axis.key].index_select(axis.dim, axis.reordered(exchange))
        after = trial.outputs(state)
        least = CHANGED if trial.precision == torch.float64 else never_rounding(trial.precision) / 10
        return any(not relative_change(*pair) <= least for pair in zip(before, after, strict=True))


def _draws(size: int) -> int:
    """Some units are dead behind a ReLU: few of them want more draws."""
    return max(FEWEST_DRAWS, -(-UNITS_SEEN // size))


def _exchange(size: int, generator: torch.Generator) -> Tensor:
    """Units in pairs at random, those of each pair exchanged: blocks do not stay together."""
    through = torch.randperm(size, generator=generator)
    index = torch.arange(size)
    first, second = through[: size // 2], through[size // 2 : size // 2 * 2]
    index[first], index[second] = second, first
    return index


def _copies(exchanges: Sequence[Tensor]) -> Tensor:
    """The index that fills with one entry all that can be brought to one another by these exchanges."""
    label = torch.arange(len(exchanges[0]))
    while True:
        smaller = label
        for exchange in exchanges:
            smaller = torch.minimum(smaller, smaller[exchange])
        if torch.equal(smaller, label):
            return label
        label = smaller
