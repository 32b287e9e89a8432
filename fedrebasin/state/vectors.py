"""Models as vectors: inner product, length, distance and cosine, added up in float64.

A model is the vector of all numbers in its tensors, a complex number being two. Every function takes the keys of the
tensors that count, as ``spec.voting(state)`` gives them, or counts all that have a mean. The second model may lie on
another device and have other dtypes. No tensor is copied whole: a piece at a time becomes float64.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedrebasin.memory import pieces
from fedrebasin.state.kinds import State, has_mean, layer_of, real

# Entries of each of many models that are multiplied at a time.
_COLUMN = 2**14


def inner(a: State, b: State, keys: Iterable[str] | None = None) -> float:
    """``<a, b>``.

    Args:
        a: a state dict.
        b: a state dict with the same shapes.
        keys: of the tensors that count; None for all that have a mean.
    """
    return sum(_dot(a[key], b[key]) for key in _counting(a, keys))


def length(a: State, keys: Iterable[str] | None = None) -> float:
    """``|a|``, the square root of ``<a, a>``."""
    return math.sqrt(inner(a, a, keys))


def distance(a: State, b: State, keys: Iterable[str] | None = None) -> float:
    """``|a - b|``; identity: its square is ``|a|^2 + |b|^2 - 2 <a, b>``, but small distances are not lost."""
    apart = (x - y for key in _counting(a, keys) for x, y in _pairs(a[key], b[key]))
    return math.sqrt(sum(float(torch.dot(step, step)) for step in apart))


def cosine(a: State, b: State, keys: Iterable[str] | None = None) -> float:
    """``<a, b> / |a| / |b|`` in [-1, 1]; 1 where both are zero, 0 where one is."""
    return cosines(a, b, keys)[0]


def cosines(a: State, b: State, keys: Iterable[str] | None = None) -> tuple[float, dict[str, float]]:
    """The cosine of two models, and that of every layer: see :func:`cosines_by_layer`."""
    products: dict[str, float] = {}
    lengths: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for key in _counting(a, keys):
        parts = [(torch.dot(x, y), torch.dot(x, x), torch.dot(y, y)) for x, y in _pairs(a[key], b[key])]
        products[key], *squares = (sum(map(float, column)) for column in zip(*parts, strict=True))
        lengths[0][key], lengths[1][key] = map(math.sqrt, squares)
    return cosine_of(products, *lengths), cosines_by_layer(products, *lengths)


def cosine_of(products: Mapping[str, float], a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """The cosine of two models by what is known of their tensors; 1 where both are zero, 0 where one is.

    Args:
        products: the inner product of every tensor that counts, by its key.
        a: the lengths of the first model's tensors.
        b: those of the second model's.
    """
    lengths = math.hypot(*a.values()), math.hypot(*b.values())
    if 0 in lengths:
        return 1.0 if lengths[0] == lengths[1] else 0.0
    found = sum(product / lengths[0] / lengths[1] for product in products.values())
    return max(-1.0, min(1.0, found)) if math.isfinite(found) else 0.0  # squares beyond float64 say nothing


def cosines_by_layer(products: Mapping[str, float], a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """:func:`cosine_of` each layer: a module with tensors of its own, ``"0"`` of ``"0.weight"`` and ``"0.bias"``."""
    layers: dict[str, list[str]] = {}
    for key in products:
        layers.setdefault(layer_of(key), []).append(key)
    return {
        layer: cosine_of(*({key: known[key] for key in keys} for known in (products, a, b)))
        for layer, keys in layers.items()
    }


def gram(states: Sequence[State], columns: Sequence[int], keys: Iterable[str] | None = None) -> Tensor:
    """The inner products of all models with some of them: shape (models, columns), float64, on the CPU.

    Args:
        states: state dicts with the same shapes.
        columns: positions of those.
        keys: of the tensors that count; None for all that have a mean.
    """
    total = torch.zeros(len(states), len(columns), dtype=torch.float64)
    for key in _counting(states[0], keys):
        device = states[0][key].device
        for parts in pieces(*(state[key].detach() for state in states), size=_COLUMN):
            vectors = torch.stack([real(part.to(device)).flatten() for part in parts])
            total += (vectors @ vectors[columns].mT).cpu()
    return total


def cosine_matrix(products: Tensor) -> Tensor:
    """The cosines of models to one another by their inner products; 1 where both are zero, 0 where one is.

    Identity: ``cosine_matrix(gram([a, b], (0, 1)))[0, 1]`` is ``cosine(a, b)``.

    Args:
        products: shape (models, models); what is too large for a number says nothing, and its cosine is 0.
    """
    lengths = products.diagonal().clamp(min=0).sqrt()
    zero = lengths == 0
    found = (products / lengths / lengths[:, None]).nan_to_num(0.0, 0.0, 0.0).clamp(-1.0, 1.0)
    return torch.where(zero & zero[:, None], 1.0, found)


def _counting(state: State, keys: Iterable[str] | None) -> Iterable[str]:
    return (key for key, tensor in state.items() if has_mean(tensor)) if keys is None else keys


def _dot(a: Tensor, b: Tensor) -> float:
    return sum(float(torch.dot(x, y)) for x, y in _pairs(a, b))


def _pairs(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Two tensors as vectors in float64, a piece of both at a time."""
    for x, y in pieces(a.detach(), b.detach()):
        left = real(x).flatten()
        yield left, left if a is b else real(y.to(x.device)).flatten()
