"""StraightThrough: descend on the loss at the midpoint through a projection (Git Re-Basin, Algorithm 2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from fedrebasin.batches import Batch, demand_reiterable, device_of, inputs_of, labels_of, mode_of, to_device
from fedrebasin.errors import MatchingError
from fedrebasin.matching.alignment import Alignment, State, Trace
from fedrebasin.matching.problem import Problem
from fedrebasin.matching.weight import WeightMatching
from fedrebasin.permutation import Permutation
from fedrebasin.spec import PermutationSpec


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
            the alignment; its trace's objective is the least mean loss at the midpoint so far, which never rises.

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
        optimizer = torch.optim.Adam(free.values(), lr=self.learning_rate)
        latest = best = self.projection(spec, reference=_detached(free, reference), candidate=candidate).permutation
        losses = [self._mean_loss(reference, best.apply(candidate))]
        for _ in range(self.epochs):
            for batch in self.batches:
                middle = _midpoint(reference, latest.apply(candidate))
                leaves = {key: middle[key].requires_grad_() for key in free}
                gradients = torch.autograd.grad(
                    self._loss(middle, batch), list(leaves.values()), allow_unused=True, materialize_grads=True
                )
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
        trace = Trace(tuple(losses), seconds, False, f"stopped after {self.epochs} epochs")
        return Alignment(best, problem.similarity(sum(products.values())), trace, problem.by_layer(products))

    def _project(self, spec: PermutationSpec, free: State, candidate: State, latest: Permutation) -> Permutation:
        # Aligning the aligned candidate starts where the last projection ended.
        step = self.projection(spec, reference=free, candidate=latest.apply(candidate))
        return step.permutation.compose(latest)

    def _loss(self, state: State, batch: Batch) -> Tensor:
        inputs = to_device(inputs_of(batch), device_of(state))
        labels = labels_of(batch).to(device_of(state))
        args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
        args = args if isinstance(args, tuple) else (args,)
        with mode_of(self.model):
            return self.loss(functional_call(self.model, dict(state), args, kwargs, tie_weights=False), labels)

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
        key: (tensor.detach() + b[key].detach().to(tensor.device)) / 2 if tensor.is_floating_point() else tensor
        for key, tensor in a.items()
    }
