"""How many of a net's symmetries a spec has, against the true number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrebasin import Permutation, PermutationSpec
from tests.tracing.fuzz_entries import Entries
from tests.tracing.fuzz_symmetries import Symmetries, Undecided, symmetries, twins

Images = NDArray[np.int64]


@dataclass
class Group:
    """A permutation group by generators: a chain of stabilisers (Schreier and Sims)."""

    degree: int
    point: int = -1
    generators: list[Images] = field(default_factory=list)
    carriers: dict[int, Images] = field(default_factory=dict)
    rest: Group | None = None

    @property
    def log10(self) -> float:
        """log10 of the order."""
        below = 0.0 if self.rest is None else self.rest.log10
        return below + (math.log10(len(self.carriers)) if self.carriers else 0.0)

    def sifted(self, image: Images) -> Images:
        """What is left of a permutation when members are taken off; the identity if it is a member."""
        if self.rest is None or int(image[self.point]) not in self.carriers:
            return image
        carrier = self.carriers[int(image[self.point])]
        return self.rest.sifted(np.argsort(carrier)[image])

    def __contains__(self, image: Images) -> bool:
        return bool((self.sifted(image) == np.arange(self.degree)).all())

    def add(self, image: Images) -> None:
        """Make the group that has this permutation as well."""
        if image in self:
            return
        if self.rest is None:
            self.point = int(np.flatnonzero(image != np.arange(self.degree))[0])
            self.carriers = {self.point: np.arange(self.degree)}
            self.rest = Group(self.degree)
        self.generators.append(image)
        fresh = [(point, self.generators[-1:]) for point in list(self.carriers)]
        while fresh:
            point, generators = fresh.pop()
            for generator in generators:
                carried = generator[self.carriers[point]]
                target = int(carried[self.point])
                if target in self.carriers:
                    self.rest.add(np.argsort(self.carriers[target])[carried])
                else:
                    self.carriers[target] = carried
                    fresh.append((target, self.generators))


@dataclass(frozen=True)
class Comparison:
    """The symmetries of a net and those of a spec, both without what the function does not see.

    Args:
        true: log10 of the number of symmetries there are.
        found: log10 of the number of those that the spec has.
        missing: symmetries that the spec does not have, in words.
        extra: whether the spec has one that the search did not find.
    """

    true: float
    found: float
    missing: tuple[str, ...] = ()
    extra: bool = False


def compared(entries: Entries, spec: PermutationSpec) -> Comparison:
    """Count; entries that the function sees only the sum of, or not at all, are not told apart.

    Raises:
        Undecided: if the search takes too long.
    """
    everything = symmetries(entries)
    classes = twins(entries, everything).numpy()
    number = int(classes.max()) + 1
    first = np.unique(classes, return_index=True)[1]
    spec_group, true_group = Group(number), Group(number)

    def on_classes_of(image: Images) -> Images:
        found = classes[image]
        if not np.array_equal(found, found[first][classes]):
            raise Undecided
        return found[first]

    for image in members(entries, spec):
        spec_group.add(on_classes_of(image))
    missing = []
    for image in everything.generators:
        on_classes = on_classes_of(image.numpy())
        true_group.add(on_classes)
        if on_classes not in spec_group:
            missing.append(in_words(entries, image))
    extra = any(one not in true_group for one in spec_group.generators)
    return Comparison(true_group.log10, spec_group.log10, tuple(missing), extra)


def members(entries: Entries, spec: PermutationSpec) -> Iterator[Images]:
    """Swaps of neighbouring units that generate the spec's group, as permutations of the entries."""
    numbered = entries.unflattened(torch.arange(entries.number, dtype=torch.float64))
    state = {**numbered, **{key: tensor for key, tensor in entries.net.state_dict().items() if key not in numbered}}
    identity = Permutation.identity(spec)
    for name, group in spec.groups.items():
        shape = spec.shape(name)
        for block in range(0 if group.frozen else math.prod(shape[:-1])):
            for unit in range(shape[-1] - 1):
                index = identity[name].clone().reshape(-1, shape[-1])
                index[block, unit], index[block, unit + 1] = unit + 1, unit
                moved = Permutation(spec, {**identity, name: index.reshape(shape)}).apply(state)
                yield entries.flattened(moved).long().numpy()


def in_words(entries: Entries, image: Tensor) -> str:
    """Which tensors a permutation moves, along which dimension if it is only one."""
    found = []
    for slot in entries.slots:
        own = image[slot.start : slot.stop] - slot.start
        shape = slot.tensor.shape
        if torch.equal(own, torch.arange(len(own))):
            continue
        own = own.reshape(shape)
        where = torch.unravel_index(own, shape)
        dims = [dim for dim in range(len(shape)) if not torch.equal(where[dim], _positions(shape, dim))]
        words = f"{slot.key}{dims}"
        if len(dims) == 1:
            along = where[dims[0]].movedim(dims[0], 0).flatten(1)
            whole = bool((along == along[:, :1]).all())
            words += f" {along[:, 0].tolist()}" if whole else " differently in each column"
        found.append(words)
    return "; ".join(found)


def _positions(shape: torch.Size, dim: int) -> Tensor:
    return torch.arange(shape[dim]).reshape([-1 if at == dim else 1 for at in range(len(shape))]).expand(shape)


__all__ = ["Comparison", "Group", "Symmetries", "compared", "in_words", "members"]
