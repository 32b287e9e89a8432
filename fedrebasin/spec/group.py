"""Group: units that are interchangeable; Unpermuted: an axis whose units are not."""

from dataclasses import dataclass
from typing import NamedTuple

from fedrebasin.spec.axis import Axis


class Unpermuted(NamedTuple):
    """A parameter axis without a group, or with blocks that none moves: why, and which operator fixed it (or empty)."""

    key: str
    dim: int
    reason: str
    operator: str = ""


@dataclass(frozen=True)
class Group:
    """Units that are interchangeable, and every axis that they index.

    Args:
        name: unique in the spec.
        size: number of units; None in a hand-written spec that has not yet met a state dict (see ``spec.bind``).
        axes: where the units lie.
        parent: the group whose units are the blocks that contain these units. Each block then has its own order of
            its units, and whole blocks move with the parent: a wreath product.
        frozen: the units stay where they are; blocks inside them may still have free units.
    """

    name: str
    size: int | None
    axes: tuple[Axis, ...]
    parent: str | None = None
    frozen: bool = False
