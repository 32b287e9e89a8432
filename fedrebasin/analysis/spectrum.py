"""Singular values and stable rank of weights and of activations (LLFC, Figures 20 to 22)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedrebasin.analysis.features import by_unit, channels_first, layers_of, record_layers
from fedrebasin.analysis.streams import ratio, sums_over
from fedrebasin.analysis.weights import weight_of
from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch
from fedrebasin.state import State, demand_numbers, wide


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a matrix.

    Args:
        values: float64, shape ``(k,)``, falling.
    """

    values: Tensor

    @property
    def stable_rank(self) -> float:
        """``|W|_F^2 / s_1^2``, between 1 and the rank; 0 for a matrix of zeros. n for an orthogonal n x n matrix."""
        squares = self.values.square()
        return ratio(float(squares.sum()), float(squares.max())) if len(squares) else 0.0

    @property
    def relative_rank(self) -> float:
        """The stable rank over the number of singular values, in [0, 1]."""
        return self.stable_rank / max(1, len(self.values))


def singular_values(weight: Tensor) -> Spectrum:
    """The spectrum of a weight, its first dimension against all others (a convolution's filters as rows).

    Args:
        weight: shape ``(out, ...)``.

    Raises:
        CalibrationError: if it has no rows, or values that are not finite.
    """
    demand_numbers({"weight": weight}, CalibrationError)
    matrix = wide(weight.detach())
    if not matrix.dim() or not bool(matrix.isfinite().all()):
        raise CalibrationError(f"a weight of shape {tuple(matrix.shape)}: rows of finite values are needed")
    return Spectrum(torch.linalg.svdvals(matrix.reshape(len(matrix), -1)).cpu())


def stable_rank(weight: Tensor) -> float:
    """The stable rank of a weight, its first dimension against all others: see :class:`Spectrum`."""
    return singular_values(weight).stable_rank


def weight_spectra(model: nn.Module, state: State, layers: Sequence[str] | None = None) -> dict[str, Spectrum]:
    """The spectrum of every layer's weights, by key of the state dict; ``LAYER.weight`` for one that is computed.

    Args:
        model: tells which tensors are weights of layers.
        state: its state dict.
        layers: names of modules; all layers by default.
    """
    demand_numbers(state, CalibrationError)
    names = layers_of(model) if layers is None else tuple(layers)
    found = {
        key: singular_values(tensor)
        for key, tensor in state.items()
        if tensor.is_floating_point() and tensor.dim() >= 2 and key.rpartition(".")[0] in names
    }
    for name in names:
        key = f"{name}.weight" if name else "weight"
        if key not in state and (weight := weight_of(model, state, name)) is not None:
            found[key] = singular_values(weight)
    return found


def activation_spectra(
    model: nn.Module, state: State, batches: Iterable[Batch], layers: Sequence[str] | None = None
) -> dict[str, Spectrum]:
    """The spectrum of what every layer reads, examples (and positions) against units.

    The Gram matrix of the units is summed over the batches, so that memory does not grow with the data; singular values
    below about 1e-8 of the largest one are lost in its rounding.

    Args:
        model: the module; it stays as it is.
        state: its state dict.
        batches: inputs, with or without labels; read once.
        layers: names of modules; all layers by default.

    Returns:
        by layer, in order of execution: the square roots of the Gram matrix's eigenvalues.

    Raises:
        CalibrationError: if there is no data, or no layer ran.
    """
    names = layers_of(model) if layers is None else tuple(layers)

    def of_batch(batch: Batch) -> dict[str, Tensor]:
        record = record_layers(model, state, batch, names)
        rows = {name: by_unit(one.inputs.double(), channels_first(model, name)) for name, one in record.items()}
        return {name: each.mT @ each for name, each in rows.items()}

    grams = sums_over(model, batches, of_batch)
    if odd := [name for name, gram in grams.items() if not bool(gram.isfinite().all())]:
        raise CalibrationError(f"{odd[0]}: what it reads is not finite, or too large to be squared")
    return {
        name: Spectrum(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0).cpu()) for name, gram in grams.items()
    }
