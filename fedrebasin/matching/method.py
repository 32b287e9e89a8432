"""What a method of weight matching is: it goes from one point of a problem to a better one."""

from typing import NamedTuple, Protocol

import torch

from fedrebasin.matching.control import Control
from fedrebasin.matching.problem import Indices, Problem


class Point(NamedTuple):
    """Where a search stands.

    Args:
        indices: by group.
        objective: there, see :meth:`Problem.objective`.
    """

    indices: Indices
    objective: float


class Method(Protocol):
    """A way to maximise the objective of a problem."""

    def __call__(
        self, problem: Problem, start: Point, best: Point, generator: torch.Generator, control: Control
    ) -> Point:
        """The point that is found.

        Args:
            problem: what is maximised.
            start: where the search begins.
            best: the best point that other methods have found from there, or the start.
            generator: for the orders in which groups are visited.
            control: the time budget, who is told of every sweep, and the threads.
        """
        ...
