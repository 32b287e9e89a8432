"""BatchNorm's running statistics of a merged model, from sums (Git Re-Basin, A.4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, State, demand_reiterable, forward
from fedrebasin.sums import Sums, collect_sums, demand, demand_data


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm modules that keep running statistics, by name, each once."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }


@dataclass(frozen=True)
class Moments:
    """Mean and (population) variance by channel, over ``count`` values, float64."""

    count: float
    mean: Tensor
    variance: Tensor


def moments(count: Tensor, total: Tensor, squares: Tensor) -> Moments:
    """Moments from a number of values, their sum and the sum of their squares."""
    number = float(count)
    mean = total / number
    return Moments(number, mean, (squares / number - mean.square()).clamp(min=0))


def check_moments(count: Tensor, total: Tensor, squares: Tensor, where: str) -> None:
    """Refuse sums that no values have.

    Raises:
        CalibrationError: if there are no values, or the variance is negative by more than rounding.
    """
    number = float(count)
    if number < 1:
        raise CalibrationError(f"{where}: sums over {number:g} values")
    if bool((squares < 0).any()) or bool((total.square() / number > squares * (1 + 1e-9) + 1e-300).any()):
        raise CalibrationError(f"{where}: negative variance")


@dataclass(frozen=True)
class BatchNormMoments:
    """Count, sum and sum of squares of the inputs of every BatchNorm module, by channel.

    The input of a BatchNorm module depends on how the ones before it normalise. With ``normalise="batch"`` each uses
    the batch at hand, as in training: one pass is enough, but what a batch contributes to deeper modules depends on
    who else is in it. With ``normalise="state"`` the running statistics of ``state`` are used: sums are then
    independent of batching and of how data are split, and repeating the pass makes one more module in depth exact
    each time.

    Args:
        normalise: "batch" or "state".
    """

    normalise: str = "batch"
    name: ClassVar[str] = "batch_norm"

    @property
    def batch_statistics(self) -> bool:
        """Whether BatchNorm modules normalise with each batch's own moments."""
        return self.normalise == "batch"

    def from_batch(self, model: nn.Module, state: State, batch: Batch) -> dict[str, Tensor]:
        """``NAME.count``, ``NAME.sum`` and ``NAME.squares`` for each BatchNorm module NAME."""
        sums: dict[str, Tensor] = {}

        def take(name: str, inputs: Tensor) -> None:
            rows = inputs.detach().double().movedim(1, 0).flatten(1)
            values = {
                f"{name}.count": torch.tensor(float(rows.shape[1]), dtype=torch.float64, device=rows.device),
                f"{name}.sum": rows.sum(1),
                f"{name}.squares": rows.square().sum(1),
            }
            for key, value in values.items():
                sums[key] = sums[key] + value if key in sums else value

        handles = [
            module.register_forward_pre_hook(lambda _, inputs, name=name: take(name, inputs[0]))
            for name, module in batch_norms(model).items()
        ]
        try:
            forward(model, state, batch)
        finally:
            for handle in handles:
                handle.remove()
        return sums

    def validate(self, sums: Sums) -> None:
        """Refuse sums that no data can have.

        Raises:
            CalibrationError: if an entry is missing or not finite, or a variance is negative.
        """
        names = {key.rpartition(".")[0] for key in sums if "." in key}
        demand(sums, {f"{name}.{part}": None for name in names for part in ("count", "sum", "squares")}, self.name)
        for name in names:
            count, total, squares = (sums[f"{name}.{part}"] for part in ("count", "sum", "squares"))
            if count.dim() != 0 or total.dim() != 1 or total.shape != squares.shape:
                raise CalibrationError(f"{self.name}: {name} has sums of wrong shapes")
            check_moments(count, total, squares, f"{self.name}: {name}")

    def finish(self, sums: Sums) -> dict[str, Moments]:
        """The moments by module."""
        demand_data(sums, self.name)
        names = dict.fromkeys(key.rpartition(".")[0] for key in sums if key.endswith(".count"))
        return {name: moments(sums[f"{name}.count"], sums[f"{name}.sum"], sums[f"{name}.squares"]) for name in names}


def with_moments(state: State, found: dict[str, Moments]) -> dict[str, Tensor]:
    """The state with these running statistics, in their dtype and on their device; the rest is shared.

    Raises:
        CalibrationError: if a module is not in the state, or has another number of channels.
    """
    result = dict(state)
    for name, values in found.items():
        for key, value in (("running_mean", values.mean), ("running_var", values.variance)):
            full = f"{name}.{key}" if name else key
            if full not in state or state[full].shape != value.shape:
                raise CalibrationError(f"{full}: the state dict has no such statistic of shape {tuple(value.shape)}")
            result[full] = value.to(state[full])
    return result


def recalibrate_batch_norm(
    model: nn.Module, state: State, batches: Iterable[Batch], passes: int | None = 1
) -> dict[str, Tensor]:
    """BatchNorm's running statistics taken anew, over all data instead of as a moving average (Git Re-Basin, A.4).

    In the first pass every module normalises with the batch at hand while the moments of its inputs are summed; in
    each further one it normalises with what the pass before found. Identity: after as many passes as there are
    BatchNorm modules in a row, the model in evaluation mode gives what it gives in training mode on one batch with
    all data in it, however they are batched.

    Args:
        model: the module; neither its parameters nor its mode change.
        state: its state dict; not changed.
        batches: inputs, with or without labels.
        passes: how many; None goes on until nothing moves by more than 1e-7 of its spread.

    Returns:
        a state dict with new running means and (population) variances; everything else is shared.

    Raises:
        CalibrationError: if there are no examples, or ``batches`` can be read only once and ``passes`` is not 1.
    """
    layers = len(batch_norms(model))
    if layers == 0:
        return dict(state)
    if passes != 1:
        demand_reiterable(batches, "more than one pass")
    result = dict(state)
    found: dict[str, Moments] = {}
    for number in range(layers + 1 if passes is None else passes):
        statistic = BatchNormMoments("batch" if number == 0 else "state")
        before, found = found, statistic.finish(collect_sums(statistic, model, result, batches))
        result = with_moments(result, found)
        if passes is None and before and all(_close(before[name], found[name]) for name in found):
            break
    return result


def _close(before: Moments, after: Moments) -> bool:
    spread = after.variance.sqrt() + 1e-30
    moved = torch.maximum((before.mean - after.mean).abs(), (before.variance.sqrt() - spread).abs())
    return bool((moved <= 1e-7 * spread).all())
