"""BatchNorm's running statistics of a merged model, from sums (Git Re-Basin, A.4)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, demand_reiterable
from fedrebasin.state import State
from fedrebasin.sums import BatchNormMoments, Moments, collect_sums


def batch_norms(model: nn.Module) -> tuple[str, ...]:
    """The names of the modules that own a running mean, instance norms aside: those whose batches are normalised."""
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "running_mean", None), Tensor) and not isinstance(module, _InstanceNorm)
    )


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
