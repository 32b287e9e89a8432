"""Stitching: the lower layers of one model under the upper layers of another (LLFC, section 5.2, Tables 1 to 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedrebasin.analysis.features import layers_of, module_named, record_layers
from fedrebasin.analysis.streams import each_batch
from fedrebasin.batches import Batch, State, logits_and_labels, mode_of
from fedrebasin.calibration import Evaluation, Score, add_sums


def stitching(
    model: nn.Module, lower: State, upper: State, batches: Iterable[Batch], layers: Sequence[str] | None = None
) -> dict[str, Score]:
    """The score of ``upper``'s network after layer l on ``lower``'s output of layer l, for each l.

    Identities: after the last layer it is ``lower``'s score; of a model with itself it is the model's score.

    Args:
        model: the module; it stays as it is.
        lower: state dict up to and including the layer.
        upper: state dict after it.
        batches: ``(inputs, labels)``; read once.
        layers: names of modules with one tensor as output; all layers by default. Where a stream goes past a layer
            (a residual connection), name modules that hold the whole stream, such as blocks: otherwise what goes past
            is ``upper``'s own.

    Returns:
        by layer, in order of execution; the error is ``1 - accuracy``.

    Raises:
        CalibrationError: if there is no data, a module is unknown, or it gives no single tensor.
    """
    names = layers_of(model) if layers is None else tuple(layers)
    sums: dict[str, dict[str, Tensor]] = {}
    with mode_of(model):
        for batch in each_batch(batches):
            for name, recorded in record_layers(model, lower, batch, names).items():
                if "#" in name:
                    continue
                with _replaced(module_named(model, name), recorded.outputs):
                    logits, labels = logits_and_labels(model, upper, batch)
                found = _score_sums(logits, labels)
                sums[name] = add_sums(sums[name], found) if name in sums else found
    return {name: Evaluation().finish(total) for name, total in sums.items()}


@contextmanager
def _replaced(module: nn.Module, output: Tensor) -> Iterator[None]:
    def replace(_: nn.Module, __: Any, own: Any) -> Tensor:
        return output.to(own)

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _score_sums(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    wide = logits.double()
    number = torch.tensor(float(len(labels)), dtype=torch.float64)
    return {
        "loss": nn.functional.cross_entropy(wide, labels, reduction="sum").cpu(),
        "correct": (wide.argmax(1) == labels).double().sum().cpu(),
        "labels": number,
        "examples": number,
    }
