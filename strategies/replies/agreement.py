"""How well each reply's model agrees with the others', layer by layer: what outliers are told by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrebasin import PermutationSpec
from fedrebasin.state import State, cosine_matrix, gram, has_mean, layer_of

#: Of more models so many are judges, to whom each is compared in every layer.
JUDGES = 32
#: A layer of fewer entries is judged together with the others that are as small: its cosines may be anything.
SMALL = 64
WHOLE, SMALL_LAYERS = "the model", "the small layers"
# Cosines nearer to 1 are told from it by rounding only.
_NEAREST = 1 - 1e-8
_STATISTICS = " (statistics)"


@dataclass(frozen=True)
class Agreement:
    """Lengths and cosines of aligned models.

    Args:
        lengths: of each layer in each model, by layer: shape (models,).
        cosines: of each layer of all models to that of the judges, by layer: shape (models, judges).
        judges: their positions.
        pairs: cosines of all models to one another, shape (models, models).
        permuted: the layers that a permutation changes.
    """

    lengths: Mapping[str, Tensor]
    cosines: Mapping[str, Tensor]
    judges: tuple[int, ...]
    pairs: Tensor
    permuted: tuple[str, ...] = ()

    def of(self, kept: Sequence[int]) -> Agreement:
        """What is left with some of the models; judges that are not among them judge no more."""
        place = {model: at for at, model in enumerate(kept)}
        columns = [column for column, judge in enumerate(self.judges) if judge in place]
        return Agreement(
            {layer: lengths[list(kept)] for layer, lengths in self.lengths.items()},
            {layer: cosines[list(kept)][:, columns] for layer, cosines in self.cosines.items()},
            tuple(place[self.judges[column]] for column in columns),
            self.pairs[list(kept)][:, list(kept)],
            self.permuted,
        )

    def with_others(self, layer: str) -> Tensor:
        """The median cosine of each model's layer to the judges' other than itself, shape (models,)."""
        cosines = self.cosines[layer].clone()
        cosines[list(self.judges), range(len(self.judges))] = torch.nan
        return cosines.nanquantile(0.5, dim=1)


def agreement(spec: PermutationSpec, states: Sequence[State]) -> Agreement:
    """The lengths and cosines of aligned models, by layer and of all layers together.

    A layer is a module with tensors of its own, ``"0"`` of ``"0.weight"`` and ``"0.bias"``; its statistics, as running
    means, are another one, and no part of the whole. Layers of fewer than ``SMALL`` entries are taken together, each at
    its usual length. Every number is read once: as many products as entries times the square of the number of models.

    Args:
        spec: of the models.
        states: at least one, aligned.
    """
    count = len(states)
    judges = torch.randperm(count, generator=torch.Generator().manual_seed(count))[:JUDGES].tolist()
    whole = torch.zeros(count, count, dtype=torch.float64)
    products: dict[str, Tensor] = {}
    moved = {axis.key for group in spec.groups.values() for axis in group.axes}
    layers = _layers(spec, states[0])
    for layer, keys in layers.items():
        found = gram(states, range(count), keys)
        if not layer.endswith(_STATISTICS):
            whole += found
        if sum(states[0][key].numel() for key in keys) < SMALL:
            usual = float(found.diagonal().quantile(0.5))
            layer, found = SMALL_LAYERS, found / usual if usual > 0 else found
        products[layer] = products[layer] + found if layer in products else found
    products[WHOLE] = whole
    lengths = {layer: found.diagonal().clamp(min=0).sqrt() for layer, found in products.items()}
    cosines = {layer: cosine_matrix(found)[:, judges] for layer, found in products.items()}
    permuted = tuple(layer for layer, keys in layers.items() if layer in products and moved.intersection(keys))
    return Agreement(lengths, cosines, tuple(judges), cosine_matrix(whole), permuted)


def nearness(cosines: Tensor) -> Tensor:
    """Fisher's transform of cosines, whose spread does not depend on where they lie."""
    return cosines.clamp(-_NEAREST, _NEAREST).atanh()


def _layers(spec: PermutationSpec, state: State) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, tensor in state.items():
        if has_mean(tensor) and tensor.numel():
            layer = layer_of(key)
            found.setdefault(layer + _STATISTICS if key in spec.statistics else layer, []).append(key)
    return found
