"""Slow and obvious counterparts of the matching methods."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from scipy.optimize import linear_sum_assignment

from fedrebasin import Permutation, PermutationSpec
from tests.zoo import State


def inner_product(spec: PermutationSpec, a: State, b: State) -> float:
    """``<vec(A), vec(B)>`` over everything that votes."""
    return sum(float((a[key].double() * b[key].double()).sum()) for key in spec.shapes if key not in spec.statistics)


def members(spec: PermutationSpec) -> Iterator[Permutation]:
    """All members of a spec without nested groups."""
    names = list(spec.groups)
    orders = [itertools.permutations(range(spec.shape(name)[0])) for name in names]
    for choice in itertools.product(*orders):
        yield Permutation(spec, {name: torch.tensor(order) for name, order in zip(names, choice, strict=True)})


def plain_algorithm_1(spec: PermutationSpec, a: State, b: State, seed: int) -> float:
    """Git Re-Basin's Algorithm 1, word for word: every group solved in every sweep, from the permuted candidate."""
    generator = torch.Generator().manual_seed(seed)
    names = list(spec.groups)
    current = dict(b)
    while True:
        before = inner_product(spec, a, current)
        for k in torch.randperm(len(names), generator=generator).tolist():
            group = spec.groups[names[k]]
            gain = sum(
                axis.units(a[axis.key]).double() @ axis.units(current[axis.key]).double().T for axis in group.axes
            )
            assert isinstance(gain, torch.Tensor)
            index = torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])
            step = {**Permutation.identity(spec), group.name: index}
            current = Permutation(spec, step).apply(current)
        if inner_product(spec, a, current) <= before + 1e-9:
            return inner_product(spec, a, current)
