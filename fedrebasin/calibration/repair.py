"""REPAIR: the merged model's pre-activations get back the mean and spread that averaging took (Jordan 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedrebasin.affine import AffineCall, affine_matrix, bias_of, watch, with_affine_matrix
from fedrebasin.calibration.batch_norm import Moments, check_moments, moments, recalibrate_batch_norm
from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, State, demand_reiterable, mode_of, number_of_examples
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.sums import Sums, collect_sums, demand, demand_data, unit_order


@dataclass(frozen=True)
class PreActivationMoments:
    """Count, sum and sum of squares of what each unit of each weight puts out, its bias included.

    Payload: ``KEY.count``, shape (); ``KEY.sum`` and ``KEY.squares``, shape ``(units,)``.

    With ``targets`` the outputs are given those moments, batch by batch, before they go on, so that one pass measures
    every layer behind repaired ones; sums then depend on the batching, as BatchNorm's do.

    Args:
        weights: keys of the weights, which must be multiplied with data as a whole.
        targets: moments by weight, or none.
    """

    weights: tuple[str, ...]
    targets: Mapping[str, Moments] = field(default_factory=dict)
    name: ClassVar[str] = "pre_activations"

    @property
    def batch_statistics(self) -> bool:
        """Whether BatchNorm modules normalise with each batch's own moments: as the layers do."""
        return bool(self.targets)

    def from_batch(self, model: nn.Module, state: State, batch: Batch) -> dict[str, Tensor]:
        """The sums of one batch, float64."""
        sums: dict[str, Tensor] = {}

        def take(call: AffineCall) -> Tensor | None:
            if call.weight not in self.weights or call.rows != call.total:
                return None
            values = call.outputs.double()
            bias = bias_of(call.weight, state)
            later = state[bias].double() if bias is not None and not call.has_bias else torch.zeros_like(values[0])
            values = values + later
            own = {
                f"{call.weight}.count": torch.tensor(float(len(values)), dtype=torch.float64, device=values.device),
                f"{call.weight}.sum": values.sum(0),
                f"{call.weight}.squares": values.square().sum(0),
            }
            for key, value in own.items():
                sums[key] = sums[key] + value if key in sums else value
            if call.weight not in self.targets:
                return None
            scale, shift = correction(moments(*own.values()), self.targets[call.weight], bias is not None)
            return call.like_output((values * scale + shift - later).to(call.output.dtype))

        watch(model, state, batch, take)
        return sums

    def validate(self, sums: Sums) -> None:
        """Refuse sums that no data can have.

        Raises:
            CalibrationError: if an entry is missing or not finite, or a variance is negative.
        """
        parts = ("count", "sum", "squares")
        demand(sums, {f"{key}.{part}": None for key in self.weights for part in parts}, self.name)
        for key in self.weights:
            count, total, squares = (sums[f"{key}.{part}"] for part in parts)
            if count.dim() != 0 or total.dim() != 1 or total.shape != squares.shape:
                raise CalibrationError(f"{self.name}: {key} has sums of wrong shapes")
            check_moments(count, total, squares, f"{self.name}: {key}")

    def finish(self, sums: Sums) -> dict[str, Moments]:
        """The moments by weight."""
        demand_data(sums, self.name)
        return {key: moments(sums[f"{key}.count"], sums[f"{key}.sum"], sums[f"{key}.squares"]) for key in self.weights}


def correction(current: Moments, target: Moments, has_bias: bool) -> tuple[Tensor, Tensor]:
    """Factor and shift that turn the current moments into the target's; a unit that never varies is only shifted.

    Without a bias there is nothing that a shift could be folded into: only the spread is restored.
    """
    spread = current.variance.sqrt()
    tiny = 1e-7 * current.mean.abs() + torch.finfo(torch.float32).tiny
    wanted = target.variance.to(spread.device).sqrt()
    scale = torch.where(spread > tiny, wanted / spread.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
    shift = target.mean.to(spread.device) - scale * current.mean
    return scale, shift if has_bias else torch.zeros_like(shift)


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
    outputs: list[AffineCall] = []
    normalised: set[str] = set()

    def mark(data: Tensor) -> None:
        normalised.update(
            call.weight
            for call in outputs
            if call.output.untyped_storage().data_ptr() == data.untyped_storage().data_ptr()
        )

    with mode_of(model):
        watch(model, state, batch, outputs.append, mark)
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
