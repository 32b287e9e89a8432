"""REPAIR: the merged model's pre-activations get back the mean and spread that averaging took (Jordan 2023)."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedrebasin.calibration.batch_norm import recalibrate_batch_norm
from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, demand_reiterable, mode_of, number_of_examples
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import State
from fedrebasin.sums import Moments, PreActivationMoments, collect_sums, correction, unit_order
from fedrebasin.watching import Norm, Product, affine_matrix, bias_of, watch, with_affine_matrix


def fold_correction(state: State, weight: str, current: Moments, target: Moments) -> dict[str, Tensor]:
    """The entries of a state dict that give a layer's outputs the target's moments where they had the current ones."""
    scale, shift = correction(current, target, bias_of(weight, state) is not None)
    matrix = affine_matrix(state, weight)[0] * scale[:, None]
    if bias_of(weight, state) is not None:
        matrix[:, -1] += shift
    return with_affine_matrix(state, weight, matrix)


def repairable_weights(model: nn.Module, state: State, batch: Batch, spec: PermutationSpec) -> tuple[str, ...]:
    """The weights whose units some group permutes and that no BatchNorm follows at once, in order of execution.

    Args:
        model: the module.
        state: its state dict.
        batch: any batch, to see what follows what.
        spec: the model's permutation spec: the units of the last layer are in no group.
    """
    outputs: list[Product] = []
    normalised: set[str] = set()

    def mark(norm: Norm) -> None:
        memory = norm.inputs.untyped_storage().data_ptr()
        normalised.update(call.weight for call in outputs if call.output.untyped_storage().data_ptr() == memory)

    with mode_of(model):
        watch(model, state, batch, outputs.append, norm=mark)
    hidden = {axis.key for group in spec.groups.values() for axis in group.axes if axis.dim == 0}
    whole = {call.weight for call in outputs if call.rows == call.total}
    return tuple(dict.fromkeys(c.weight for c in outputs if c.weight in (hidden & whole) - normalised))


def interpolated_moments(
    found: Sequence[Mapping[str, Moments]], weights: Sequence[float] | None = None
) -> dict[str, Moments]:
    """The targets of REPAIR: weighted means of the end points' means and spreads (Jordan 2023, Eq. 2 and 3).

    Args:
        found: for each end point its moments by weight.
        weights: one for each end point, equal by default.

    Raises:
        CalibrationError: if there is no end point, or the weights do not fit.
    """
    shares = [1.0] * len(found) if weights is None else list(weights)
    total = sum(shares)
    if not found or len(shares) != len(found) or min(shares) < 0 or not total > 0:
        raise CalibrationError(f"{len(found)} end points need as many weights, none negative, with a positive sum")
    targets = {}
    for key in found[0]:
        mean = sum((share / total * each[key].mean for share, each in zip(shares, found, strict=True)), torch.zeros(()))
        spread = sum(
            (share / total * each[key].variance.sqrt() for share, each in zip(shares, found, strict=True)),
            torch.zeros(()),
        )
        targets[key] = Moments(sum(each[key].count for each in found), mean, spread.square())
    return targets


def repair(
    model: nn.Module,
    merged: State,
    states: Sequence[State],
    batches: Iterable[Batch],
    spec: PermutationSpec,
    weights: Sequence[float] | None = None,
    passes: int = 1,
) -> dict[str, Tensor]:
    """REPAIR (Jordan 2023): every hidden unit's pre-activation gets the end points' mean and spread, interpolated.

    The correction is folded into weights and biases, so that the model keeps its form. A layer that a BatchNorm
    follows is left alone, and BatchNorm's statistics are taken anew: its merged factors and shifts are the
    interpolation already. Where a layer has no bias only the spread is restored.

    Identity: after as many passes as there are layers, the hidden pre-activations of the result have on ``batches``
    exactly the interpolated moments; end points that equal the merged model change nothing.

    Args:
        model: the module; neither its parameters nor its mode change.
        merged: the merged model.
        states: the end points, aligned.
        batches: inputs, with or without labels; read once for each end point and pass.
        spec: the model's permutation spec, by which hidden layers are found.
        weights: of the end points, equal by default.
        passes: in the first one every layer is corrected with the batch at hand while deeper ones are measured; each
            further one corrects what is left with the exact moments.

    Raises:
        CalibrationError: if there are no examples or end points, or ``batches`` can be read only once.
    """
    demand_reiterable(batches, "REPAIR")
    first = next((batch for batch in batches if number_of_examples(batch)), None)
    if first is None:
        raise CalibrationError("REPAIR: there are no batches")
    result = dict(merged)
    if keys := repairable_weights(model, merged, first, spec.bind(merged)):
        plain = PreActivationMoments(keys)
        targets = interpolated_moments(
            [plain.finish(collect_sums(plain, model, state, batches)) for state in states], weights
        )
        for number in range(passes):
            statistic = PreActivationMoments(keys, targets if number == 0 else {})
            for key, current in statistic.finish(collect_sums(statistic, model, result, batches)).items():
                result.update(fold_correction(result, key, current, targets[key]))
    return recalibrate_batch_norm(model, result, batches, passes)


def permute_moments(permutation: Permutation, state: State, found: Mapping[str, Moments]) -> dict[str, Moments]:
    """Moments taken on a model, as they would be if taken on the permuted model.

    Args:
        permutation: the member.
        state: a state dict of the model; only shapes count.
        found: moments of the units' outputs by weight.
    """
    orders = unit_order(permutation, state, list(found))
    return {
        key: Moments(
            each.count, each.mean[orders[key].to(each.mean.device)], each.variance[orders[key].to(each.mean.device)]
        )
        for key, each in found.items()
    }
