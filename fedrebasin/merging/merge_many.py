"""MergeMany: many models, no reference (Git Re-Basin, Algorithm 3)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedrebasin.matching import Alignment, Matcher, State, Trace, WeightMatching
from fedrebasin.merging.average import average, normalised
from fedrebasin.merging.merge import Merge, Vectors, collected
from fedrebasin.permutation import Permutation
from fedrebasin.spec import PermutationSpec


@dataclass(frozen=True)
class MergeMany:
    """Align every model in turn to the weighted mean of all others, until none moves.

    One step maximises ``<theta_i, sum of w_j theta_j over j != i>``, the only part of the spread (the weighted mean of
    squared distances to the mean) that depends on model i, so the spread never rises.

    Args:
        matcher: aligns a model to a mean. The rounds after the first start from where the models are.
        seed: of the order in which models are visited.
        max_rounds: an upper bound.
    """

    matcher: Matcher = field(default_factory=WeightMatching)
    seed: int = 0
    max_rounds: int = 100

    def __call__(self, spec: PermutationSpec, states: Iterable[State], weights: Sequence[float] | None = None) -> Merge:
        """Align and average: see :class:`fedrebasin.merging.Aligner`."""
        started = time.perf_counter()
        spec, held = collected(spec, states)
        shares = normalised(weights, len(held))
        vectors = Vectors(spec)
        generator = torch.Generator().manual_seed(self.seed)
        current, totals = list(held), [Permutation.identity(spec)] * len(held)
        objective = [_spread(vectors, current, shares)]
        converged = len(held) == 1
        for round_number in range(self.max_rounds):
            if converged:
                break
            matcher = self.matcher if round_number == 0 else _refining(self.matcher)
            moved = False
            for k in torch.randperm(len(held), generator=generator).tolist():
                others = [share if other != k else 0.0 for other, share in enumerate(shares)]
                if sum(others) == 0:
                    continue
                mean = average(current, others)
                alignment = matcher(spec, reference=mean, candidate=current[k])
                aligned = alignment.apply(current[k])
                gain = vectors.inner(mean, aligned) - vectors.inner(mean, current[k])
                if gain > 1e-12 * abs(objective[0]):
                    current[k], totals[k] = aligned, alignment.permutation.compose(totals[k])
                    moved = True
            objective.append(min(objective[-1], _spread(vectors, current, shares)))
            converged = not moved
        merged = average(current, weights)
        trace = Trace(
            tuple(objective),
            time.perf_counter() - started,
            converged,
            "no model can be brought closer" if converged else f"stopped after {self.max_rounds} rounds",
        )
        alignments = tuple(
            Alignment(total, vectors.cosine(merged, state), trace) for total, state in zip(totals, current, strict=True)
        )
        return Merge(tuple(current), alignments, merged, trace)


def _refining(matcher: Matcher) -> Matcher:
    """The matcher for models that are nearly aligned: from where they are, up."""
    if isinstance(matcher, WeightMatching) and matcher.method in ("auto", "frank-wolfe"):
        return replace(matcher, method="coordinate", restarts=1)
    return matcher


def _spread(vectors: Vectors, states: Sequence[State], shares: Sequence[float]) -> float:
    mean: dict[str, Tensor] = {}
    for share, state in zip(shares, states, strict=True):
        for key, tensor in vectors.voting(state).items():
            mean[key] = mean[key] + share * tensor if key in mean else share * tensor
    return sum(share * vectors.squared_distance(state, mean) for share, state in zip(shares, states, strict=True))
