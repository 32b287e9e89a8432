"""StraightThrough: descend on the loss at the midpoint through a projection (Git Re-Basin, Algorithm 2)."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedrebasin.errors import CalibrationError, MatchingError, one_line
from fedrebasin.matching.alignment import Alignment, History
from fedrebasin.matching.problem import Problem
from fedrebasin.matching.weight import WeightMatching
from fedrebasin.running import Batch, demand_reiterable, described, device_of, labels_of, mode_of, outputs_of
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import State, computable, has_mean


@dataclass(frozen=True, eq=False)
class StraightThrough:
    """Descend on the loss at ``(A + pi(B)) / 2``, where pi is the projection of free weights to a permutation.

    The free weights start at the reference's, so that the first projection is weight matching. A gradient with respect
    to the midpoint is applied to the free weights as if the projection were the identity. The permutation with the
    least loss over all batches is kept, the first one included: never worse than weight matching by that measure.

    Args:
        model: the architecture; its parameters and its mode are left as they are.
        batches: ``(inputs, labels)``; read once for each epoch and once more to judge it.
        epochs: passes over the batches.
        learning_rate: of Adam, for the free weights.
        projection: how free weights become a permutation; it starts from the last one.
        loss: of outputs and labels.
    """

    model: nn.Module
    batches: Iterable[Batch]
    epochs: int = 5
    learning_rate: float = 1e-3
    projection: WeightMatching = field(default_factory=lambda: WeightMatching(method="coordinate"))
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy

    def __call__(self, spec: PermutationSpec, reference: State, candidate: State) -> Alignment:
        """Match two models: see :class:`fedrebasin.matching.Matcher`.

        Returns:
            the alignment; its history's objective is the least mean loss at the midpoint so far, which never rises.

        Raises:
            SpecError: if the spec does not fit.
            MatchingError: if a weight is not finite, or there is no data.
            CalibrationError: if the batches can be read only once, or have no labels.
        """
        demand_reiterable(self.batches, "the straight-through estimator")
        started = time.perf_counter()
        problem = Problem(spec, reference, candidate)
        spec = problem.spec
        free = {key: tensor.clone().requires_grad_() for key, tensor in problem.reference.items()}
        if not free:
            raise MatchingError("no tensor of floating-point numbers votes: there is nothing to descend on")
        optimizer = torch.optim.Adam(free.values(), lr=self.learning_rate)
        latest = best = self.projection(spec, reference=_detached(free, reference), candidate=candidate).permutation
        losses = [self._mean_loss(reference, best.apply(candidate))]
        for _ in range(self.epochs):
            for batch in self.batches:
                middle = _midpoint(reference, latest.apply(candidate))
                leaves = {key: middle[key].requires_grad_() for key in free}
                now = self._loss(middle, batch)
                if not now.requires_grad:
                    raise MatchingError("the loss has no gradient: the model's output does not depend on its weights")
                gradients = torch.autograd.grad(now, list(leaves.values()), allow_unused=True, materialize_grads=True)
                for key, gradient in zip(leaves, gradients, strict=True):
                    free[key].grad = gradient.to(free[key].dtype) / 2
                optimizer.step()
                latest = self._project(spec, _detached(free, reference), candidate, latest)
            loss = self._mean_loss(reference, latest.apply(candidate))
            if loss < losses[-1]:
                best = latest
            losses.append(min(loss, losses[-1]))
        products = problem.inner_products(best.indices)
        seconds = time.perf_counter() - started
        history = History(tuple(losses), seconds, False, f"stopped after {self.epochs} epochs")
        return Alignment(best, problem.similarity(sum(products.values())), history, problem.by_layer(products))

    def _project(self, spec: PermutationSpec, free: State, candidate: State, latest: Permutation) -> Permutation:
        # Aligning the aligned candidate starts where the last projection ended.
        step = self.projection(spec, reference=free, candidate=latest.apply(candidate))
        return step.permutation.compose(latest)

    def _loss(self, state: State, batch: Batch) -> Tensor:
        labels = labels_of(batch).to(device_of(state))
        with mode_of(self.model):
            output = outputs_of(self.model, state, batch)
        try:
            return self.loss(output, labels)
        except Exception as error:  # whatever a stranger's loss raises
            raise CalibrationError(
                f"the loss of outputs of {described(output)} and labels of {described(labels)}: {one_line(error)}"
            ) from error

    def _mean_loss(self, reference: State, aligned: State) -> float:
        middle = _midpoint(reference, aligned)
        with torch.no_grad():
            losses = [float(self._loss(middle, batch)) for batch in self.batches]
        if not losses:
            raise MatchingError("no batches: the straight-through estimator needs data")
        return sum(losses) / len(losses)


def _detached(free: Mapping[str, Tensor], reference: State) -> dict[str, Tensor]:
    return {**reference, **{key: tensor.detach() for key, tensor in free.items()}}


def _midpoint(a: State, b: State) -> dict[str, Tensor]:
    return {
        key: (computable(tensor.detach()) + computable(b[key].detach()).to(tensor.device)) / 2
        if has_mean(tensor)
        else tensor
        for key, tensor in a.items()
    }
