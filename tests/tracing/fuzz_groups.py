"""Permutation groups by their generators."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
