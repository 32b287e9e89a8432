"""One pass in order: the baseline that coordinate ascent is compared to (Git Re-Basin, A.7).

OT-Fusion and FedMA go through a network once, layer by layer: a layer's units are matched by what they read, the
layers before having been matched, and are never looked at again.
"""

from dataclasses import dataclass

import torch

from fedrebasin.matching.control import Control
from fedrebasin.matching.coordinate import Ascent
from fedrebasin.matching.method import Point
from fedrebasin.matching.problem import Problem


@dataclass(frozen=True)
class Greedy:
    """Match every group once, in the spec's order, by what its units read from groups that are matched or stay.

    What units read are the tensors that have them in their first dimension, as torch's linear layers and convolutions
    do, with their biases and norms. A group without such a tensor is matched by others whose groups are settled, and
    where there is none of these by all of its tensors.
    """

    def __call__(
        self, problem: Problem, start: Point, best: Point, generator: torch.Generator, control: Control
    ) -> Point:
        """The end of the pass, better than the start or not: see :class:`Method`."""
        indices = start.indices
        waiting = list(problem.moved)
        while waiting and not control.expired:
            name = waiting.pop(0)
            family = set(problem.families[name])
            settled = [
                key
                for key in problem.keys_of[name]
                if not any(owner in waiting and owner not in family for owner, _ in problem.axes[key])
            ]
            read = [
                key for key in settled if any(owner in family and axis.dim == 0 for owner, axis in problem.axes[key])
            ]
            ascent = Ascent(problem.restricted(read or settled) if settled else problem, indices)
            ascent.sweep([name], control)
            indices = ascent.indices
            waiting = [other for other in waiting if other not in family]
        control.objectives.append(problem.objective(indices))
        control.converged = not control.expired
        return Point(indices, control.objectives[-1])
