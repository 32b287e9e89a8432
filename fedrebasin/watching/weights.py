"""Weights that are multiplied with data: which there are, and as matrices."""

import torch
from torch import Tensor, nn

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, mode_of
from fedrebasin.state import State
from fedrebasin.watching.observer import watch
from fedrebasin.watching.products import Product


def bias_of(weight: str, state: State) -> str | None:
    """The key of the bias that is added to the product with a weight, by name; None if there is none."""
    if not weight.endswith("weight"):
        return None
    key = f"{weight.removesuffix('weight')}bias"
    return key if key in state and tuple(state[key].shape) == tuple(state[weight].shape[:1]) else None


def affine_matrix(state: State, weight: str, blocks: int = 1) -> Tensor:
    """A weight as a matrix, its bias, if it has one, as the last column: what multiplies features with a 1 appended.

    Args:
        state: the state dict.
        weight: key of the weight.
        blocks: into how many blocks its rows fall.

    Returns:
        float64, shape ``(blocks, rows / blocks, features + 1)``, or ``(blocks, rows / blocks, features)``.
    """
    matrix = state[weight].detach().flatten(1).double()
    if (key := bias_of(weight, state)) is not None:
        matrix = torch.cat([matrix, state[key].detach().double()[:, None]], 1)
    return matrix.reshape(blocks, len(matrix) // blocks, -1)


def with_affine_matrix(state: State, weight: str, matrix: Tensor) -> dict[str, Tensor]:
    """The entries of a state dict that such a matrix replaces, in their dtype and on their device."""
    rows = matrix.reshape(len(state[weight]), -1)
    key = bias_of(weight, state)
    if key is None:
        return {weight: rows.reshape(state[weight].shape).to(state[weight])}
    return {weight: rows[:, :-1].reshape(state[weight].shape).to(state[weight]), key: rows[:, -1].to(state[key])}


def affine_weights(model: nn.Module, state: State, batch: Batch) -> tuple[str, ...]:
    """The keys of all weights that are multiplied with data, in the order of their first use."""
    found: dict[str, None] = {}
    with mode_of(model):
        watch(model, state, batch, lambda product: found.setdefault(product.weight))
    return tuple(found)


def head_weight(model: nn.Module, state: State, batch: Batch) -> str:
    """The key of the last linear layer, whose output is the model's.

    Raises:
        CalibrationError: if the model does not end in a linear layer.
    """
    last: list[Product] = []

    def keep(product: Product) -> None:
        last[:] = [product]

    with mode_of(model):
        output = watch(model, state, batch, keep)
    for product in last:
        if product.window is None and product.rows == product.total and isinstance(output, Tensor) and output.dim() > 1:
            logits, expected = output.flatten(0, -2), product.output
            if not product.has_bias and (bias := bias_of(product.weight, state)) is not None:
                expected = expected + state[bias]
            if logits.shape == expected.shape and torch.equal(logits, expected):
                return product.weight
    raise CalibrationError("the model does not end in a linear layer, so there is no head to fit")
