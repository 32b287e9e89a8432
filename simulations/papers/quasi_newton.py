"""Training by a method that uses curvature: L-BFGS on the whole training set."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

LBFGS = "lbfgs"
ITERATIONS = 20


def quasi_newton(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    epochs: int,
    weight_decay: float,
    epoch_done: Callable[[int], None],
) -> None:
    """Train the model in place by L-BFGS with a strong Wolfe line search, ``epochs`` times 20 iterations.

    There are no batches and so no noise: two runs from the same initialisation end at the same point.

    Args:
        model: starts from the parameters that it has.
        inputs: shape ``(n, ...)``, on the model's device.
        labels: shape ``(n,)``, likewise.
        epochs: groups of iterations.
        weight_decay: half of the squared length of all parameters is added to the loss, times this.
        epoch_done: called after each group with its number, from 1.
    """
    parameters = list(model.parameters())
    optimizer = torch.optim.LBFGS(parameters, max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = cross_entropy(model(inputs), labels)
        loss = loss + weight_decay / 2 * sum(p.square().sum() for p in parameters)
        torch.autograd.backward(loss)
        return loss

    model.train()
    for epoch in range(epochs):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        epoch_done(epoch + 1)
