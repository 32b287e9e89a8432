"""Stitching: the lower layers of one model under the upper layers of another (LLFC, section 5.2, Tables 1 to 3)."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedrebasin.analysis.features import demand_runs, layers_of
from fedrebasin.analysis.streams import each_batch
from fedrebasin.running import Batch, forward, mode_of, number_of_examples
from fedrebasin.state import State
from fedrebasin.sums import Evaluation, Score, add_sums
from fedrebasin.watching import LayerRun, watching


def stitching(
    model: nn.Module, lower: State, upper: State, batches: Iterable[Batch], layers: Sequence[str] | None = None
) -> dict[str, Score]:
    """The score of ``upper``'s network after layer l on ``lower``'s output of layer l, for each l.

    Identities: after the last layer it is ``lower``'s score; of a model with itself it is the model's score.

    Args:
        model: the module; it stays as it is.
        lower: state dict up to and including the layer.
        upper: state dict after it. The cut is right behind the module: a norm that follows it is ``upper``'s. Name the
            norms to cut behind them.
        batches: ``(inputs, labels)``; read once.
        layers: names of modules; all layers by default. Where a stream goes past a layer (a residual connection), name
            modules that hold the whole stream, such as blocks: otherwise what goes past is ``upper``'s own.

    Returns:
        by layer, in order of execution, a layer's second run as ``NAME#2``; the error is ``1 - accuracy``.

    Raises:
        CalibrationError: if there is no data, a module is unknown, or no layer ran.
    """
    names = layers_of(model) if layers is None else tuple(layers)
    sums: dict[str, dict[str, Tensor]] = {}
    with mode_of(model):
        for batch in each_batch(batches):
            for name, output in _outputs(model, lower, batch, names).items():
                with watching(model, layer=partial(_replaced, name, output), layers=[name]):
                    found = Evaluation().from_batch(model, upper, batch)
                found["examples"] = torch.tensor(float(number_of_examples(batch)), dtype=torch.float64)
                sums[name] = add_sums(sums[name], found) if name in sums else found
    return {name: Evaluation().finish(total) for name, total in sums.items()}


def _outputs(model: nn.Module, state: State, batch: Batch, names: Sequence[str]) -> dict[str, Any]:
    """All that each run of each layer gives, whatever it is made of."""
    found: dict[str, Any] = {}

    def take(run: LayerRun) -> None:
        found[run.name] = _copied(run.output)

    with watching(model, layer=take, layers=names):
        forward(model, state, batch)
    return demand_runs(found)


def _replaced(name: str, output: Any, run: LayerRun) -> Any:
    """This run of the layer gives ``output``; its other runs give their own."""
    return _copied(output) if run.name == name else None


def _copied(value: Any) -> Any:
    """The same nest with tensors that nothing changes in place."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_copied, value))
    return type(value)(map(_copied, value)) if isinstance(value, tuple | list) else value
