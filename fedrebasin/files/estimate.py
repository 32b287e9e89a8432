"""How long a merge will take, and how much memory, before it starts."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fedrebasin.matching import assign
from fedrebasin.spec import PermutationSpec

# How often every group is solved, and all products for it are computed, until a matching ends. Measured on trained
# MLPs, ResNets and VGGs; models that differ little need fewer, so that estimates are rather too long.
_PASSES = {"weight-matching": 5, "frank-wolfe": 14, "merge-many": 12, "cycle-consistent": 40, "average": 0}
_STREAMED = ("weight-matching", "frank-wolfe", "average")
_PROBE = 384  # units of the assignment problem that is timed
_BASE_BYTES = 5e8  # Python, torch and the pieces of tensors that are worked on


@dataclass(frozen=True)
class Estimate:
    """What a merge will need.

    Args:
        seconds: all together.
        memory: bytes that the process will occupy at its peak.
    """

    seconds: float
    memory: float

    def __str__(self) -> str:
        return f"about {in_words(self.seconds)} and {self.memory / 1e9:.1f} GB of memory"


def in_words(seconds: float) -> str:
    """A duration for people: 1.2 s, 3 min, 1 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{max(seconds, 0.1):.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def estimate(
    spec: PermutationSpec, method: str, inputs: int, nbytes: int, matched: int, largest_tensor: int
) -> Estimate:
    """From the sizes of the groups and the speed of this machine, which is measured in half a second.

    Args:
        spec: bound to the models.
        method: of the merge.
        inputs: models that are merged.
        nbytes: of one of them.
        matched: how many are aligned.
        largest_tensor: bytes of the largest tensor, whose pages are in memory as long as it is looked at.
    """
    cubes, products, matrices, largest = 0.0, 0.0, 0.0, 0.0
    for name, group in spec.groups.items():
        if not group.frozen:
            *blocks, size = spec.shape(name)
            cubes += math.prod(blocks) * size**3
            products += sum(2.0 * size * math.prod(spec.sizes(axis.key)) for axis in group.axes)
            matrices += 8 * math.prod(blocks) * size**2
            largest = max(largest, 8.0 * size**2)
    solving, multiplying, hashing = _speeds()
    seconds = _PASSES[method] * matched * (cubes * solving + products * multiplying)
    seconds += inputs * nbytes * 3 * hashing + 1
    memory = _BASE_BYTES + 2.5 * largest + min(matrices, 5e8) * (method != "average")
    if method == "frank-wolfe":
        memory += 2 * matrices
    window = min(nbytes, max(2**28, largest_tensor + 2**26))
    memory += 2 * window if method in _STREAMED else nbytes * (2 * inputs + 8) + inputs * matrices
    return Estimate(seconds, memory)


def _speeds() -> tuple[float, float, float]:
    """Seconds for a cubed unit of an assignment, for one multiplication and addition, and for a byte's digest."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((2, _PROBE, 32))
    gain = rows[0] @ rows[1].T + 8 * np.eye(_PROBE)[random.permutation(_PROBE)]
    matrix = torch.ones(512, 512)
    block = b"\0" * 2**22
    solving = _fastest(lambda: assign(gain)) / _PROBE**3
    multiplying = _fastest(lambda: matrix @ matrix) / (2 * 512**3)
    return solving, multiplying, _fastest(lambda: hashlib.sha256(block).digest()) / len(block)


def _fastest(work: Callable[[], object], times: int = 3) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)
