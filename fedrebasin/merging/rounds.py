"""Rounds over many models: each in turn is brought closer to the mean of the others."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedrebasin.matching import Alignment, Control, History, Matcher, Step, orders_by_signatures
from fedrebasin.merging.average import average
from fedrebasin.merging.merge import Merge
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import State, cosines, has_mean, inner, real

# A gain that is float64's rounding, as a share of what is added up.
_NOTHING = 1e-12

# The spread, as a share of the models' squared norms, of copies with some noise.
_LITTLE = 0.05


@dataclass
class Rounds:
    """Models on their way to one another; the spread, the weighted mean of squared distances to the mean, only falls.

    ``spread = sum of w_i |theta_i|^2 - |sum of w_i theta_i|^2`` with weights that sum to one: permutations change the
    second term only. The sum of all models is kept, so that the sum of the others is one subtraction.

    Args:
        spec: bound to the models.
        held: the models as given.
        shares: their weights, which sum to one.
        permutations: where they stand.
        control: the time budget, who is told of every round, and the threads for assignments.
    """

    spec: PermutationSpec
    held: Sequence[State]
    shares: Sequence[float]
    permutations: list[Permutation]
    control: Control
    spreads: list[float] = field(default_factory=list)
    converged: bool = False

    def __post_init__(self) -> None:
        self._voting = self.spec.voting(self.held[0])
        self._norms = sum(
            share * inner(state, state, self._voting) for share, state in zip(self.shares, self.held, strict=True)
        )
        self.restart(self.permutations)

    def restart(self, permutations: Sequence[Permutation]) -> None:
        """Stand somewhere else, and record the spread there."""
        self.permutations = list(permutations)
        self.states = [p.apply(state) for p, state in zip(self.permutations, self.held, strict=True)]
        self._sum = average(map(self._vector, self.states), self.shares)
        self.spreads.append(self.spread)

    def start_by_signatures(self) -> bool:
        """Begin in the orders that the units' signatures suggest, if that is better; whether little was left to do.

        From copies in different orders the rounds have little to go on: the mean of two that disagree is neither.
        """
        if self.control.expired:
            return False
        before, spread = self.permutations, self.spread
        found = orders_by_signatures(self.spec, self.held, self.control.threads)
        if all(order is None for order in found):
            return False
        self.restart([stays if order is None else order for order, stays in zip(found, before, strict=True)])
        if self.spread > spread:
            self.spreads.pop()
            self.restart(before)
        return self.spread < _LITTLE * self._norms

    @property
    def spread(self) -> float:
        """The weighted mean of the squared distances to the weighted mean."""
        return max(0.0, self._norms - inner(self._sum, self._sum))

    def run(self, step: Step, generator: torch.Generator, max_rounds: int) -> None:
        """Visit all models in seeded orders until none can be improved.

        Args:
            step: brings a model closer to the weighted mean of all others (with the model's own tensors where no
                weight votes).
            generator: for the orders.
            max_rounds: an upper bound.
        """
        for _ in range(max_rounds):
            moved = False
            for k in torch.randperm(len(self.held), generator=generator).tolist():
                if 0 < self.shares[k] < 1 and not self.control.expired:
                    moved |= self._improve(k, step)
            self.spreads.append(min(self.spread, self.spreads[-1]))
            if self.control.progress is not None:
                self.control.progress(len(self.spreads) - 1, self.spreads[-1])
            if self.control.expired:
                break
            if not moved:
                self.converged = True
                break

    def _improve(self, k: int, step: Step) -> bool:
        own = self._vector(self.states[k])
        others = {key: self._sum[key] - self.shares[k] * tensor for key, tensor in own.items()}
        scale = 1 - self.shares[k]
        # Running statistics do not vote, but a matcher that runs the model needs them; masks need not agree yet.
        kept = [key for key in self.spec.statistics if has_mean(self.states[k][key])]
        rest = [{key: state[key] for key in kept} for j, state in enumerate(self.states) if j != k]
        mean = average(rest) if kept else {}
        reference = {
            key: _like(tensor, others[key] / scale) if key in others else mean.get(key, tensor)
            for key, tensor in self.states[k].items()
        }
        permutation = step(k, reference, self.permutations[k])
        if permutation == self.permutations[k]:
            return False
        state = permutation.apply(self.held[k])
        new = self._vector(state)
        gain = sum(float((others[key] * (new[key] - own[key])).sum()) for key in others)
        if gain <= _NOTHING * self._norms:  # small units in a model of large ones: what do they gain themselves?
            size = sum(float((others[key] * (new[key] - own[key])).abs().sum()) for key in others)
            if gain <= _NOTHING * size:
                return False
        self.permutations[k], self.states[k] = permutation, state
        self._sum = {key: others[key].add_(tensor, alpha=self.shares[k]) for key, tensor in new.items()}
        return True

    def _vector(self, state: State) -> dict[str, Tensor]:
        """The tensors of a model that vote, in float64."""
        return {key: real(state[key].detach()) for key in self._voting}

    def merge(self) -> Merge:
        """The result as it stands."""
        merged = average(self.states, self.shares)
        if self.converged:
            reason = "no model can be brought closer"
        elif self.control.expired:
            reason = self.control.spent
        else:
            reason = "stopped before the models settled"
        history = History(tuple(self.spreads), self.control.elapsed, self.converged, reason)
        found = [cosines(merged, state, self._voting) for state in self.states]
        alignments = tuple(
            Alignment(permutation, similarity, history, by_layer)
            for permutation, (similarity, by_layer) in zip(self.permutations, found, strict=True)
        )
        return Merge(tuple(self.states), alignments, merged, history)


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    """The numbers of :func:`fedrebasin.state.real` in the tensor's dtype."""
    return (torch.view_as_complex(values) if tensor.is_complex() else values).to(tensor.dtype)


def steps_of(matcher: Matcher, spec: PermutationSpec, candidates: Sequence[State], control: Control) -> Step:
    """How a matcher brings one of several candidates closer to a reference, again and again.

    A matcher that can go on from where a candidate stands says so by a method ``steps``, with the other arguments of
    this function, which may return None. Any other one matches the candidate as it stands.

    Args:
        matcher: of a candidate and a reference.
        spec: bound to the models.
        candidates: as they were given.
        control: the time budget of all steps.
    """
    steps = getattr(matcher, "steps", None)
    if steps is not None and (own := steps(spec, candidates, control)) is not None:
        step: Step = own
        return step

    def matched(k: int, reference: State, permutation: Permutation) -> Permutation:
        found = matcher(spec, reference=reference, candidate=permutation.apply(candidates[k]))
        return found.permutation.compose(permutation)

    return matched
