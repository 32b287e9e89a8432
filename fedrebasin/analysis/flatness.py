"""Is it only that the landscape is flat? Random directions as long as the way to another model, random permutations."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedrebasin.analysis.barrier import Barrier, demand_alike, loss_barrier
from fedrebasin.calibration import fit_temperature
from fedrebasin.errors import MergeError
from fedrebasin.running import Batch, demand_reiterable
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import State, computable, distance, is_statistic, length
from fedrebasin.sums import evaluate, logits_of

Measured = Literal["tensor", "model"]


def step_of_equal_length(
    a: State, b: State, lam: float, generator: torch.Generator, by: Measured = "tensor"
) -> dict[str, Tensor]:
    """A moved in a random direction, exactly as far as ``lam`` of the way to B.

    Args:
        a: state dict.
        b: state dict.
        lam: 0 stays at A; 1 goes as far as B lies.
        generator: on the CPU.
        by: "tensor": every tensor goes as far as it would towards B; "model": all of them together do, as one vector
            that points anywhere, so that large tensors take most of the way.

    Raises:
        MergeError: if the keys differ, or ``by`` is neither.
    """
    demand_alike(a, b)
    if by not in ("tensor", "model"):
        raise MergeError(f"by {by!r} is neither 'tensor' nor 'model'")
    keys = [key for key, tensor in a.items() if tensor.is_floating_point() and not is_statistic(key)]
    steps = {key: torch.randn(a[key].shape, generator=generator, dtype=torch.float64) for key in keys}
    parts = [keys] if by == "model" else [[key] for key in keys]
    scales = {key: distance(a, b, part) / max(length(steps, part), 1e-300) for part in parts for key in part}
    moved = dict(a)
    for key, step in steps.items():
        there = computable(a[key])
        moved[key] = (there + (lam * scales[key] * step).to(there)).to(a[key].dtype)
    return moved


@dataclass(frozen=True)
class Flatness:
    """The loss at equal distances in random directions and towards the other model.

    Args:
        lam: the distance as a share of the way to B.
        losses: calibrated mean NLL for each direction, in nats.
        accuracies: in [0, 1], for each direction.
    """

    lam: float
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]


def flatness(
    model: nn.Module,
    a: State,
    b: State,
    batches: Iterable[Batch],
    lam: float = 0.5,
    directions: int = 3,
    *,
    generator: torch.Generator,
    by: Measured = "tensor",
) -> Flatness:
    """LEWC's Appendix D: is the merged model good because everything at that distance is?

    Where random steps of the merge's length ruin the model and the merge does not, flatness is no explanation. The loss
    is calibrated by an inverse temperature fitted on the same batches, as that of the merged model.

    Args:
        model: the module.
        a: state dict to start from.
        b: state dict that sets the distance.
        batches: ``(inputs, labels)``; read more than once.
        lam: the distance as a share of the way to B.
        directions: how many.
        generator: on the CPU.
        by: see :func:`step_of_equal_length`.

    Raises:
        MergeError: if the keys differ.
        CalibrationError: if there is no data, or it can be read only once.
    """
    demand_reiterable(batches, "flatness")
    losses, accuracies = [], []
    for _ in range(directions):
        state = step_of_equal_length(a, b, lam, generator, by)
        beta = fit_temperature(*logits_of(model, state, batches)).beta
        score = evaluate(model, state, batches, beta)
        losses.append(score.loss)
        accuracies.append(score.accuracy)
    return Flatness(lam, tuple(losses), tuple(accuracies))


def random_permutation_barriers(
    model: nn.Module,
    spec: PermutationSpec,
    a: State,
    b: State,
    batches: Iterable[Batch],
    count: int = 3,
    points: int = 3,
    *,
    calibrate: Iterable[Batch] | None = None,
    generator: torch.Generator,
) -> tuple[Barrier, ...]:
    """Barriers to randomly permuted copies of B (LEWC, F.4): width alone does not care about the order of units.

    Args:
        model: the module.
        spec: of both models.
        a: state dict at lam = 0.
        b: state dict, permuted anew for each barrier.
        batches: ``(inputs, labels)``, read more than once.
        count: how many permutations.
        points: positions on each path.
        calibrate: see :func:`fedrebasin.loss_barrier`.
        generator: on the CPU.

    Raises:
        MergeError: if the models do not fit each other.
        CalibrationError: if batches can be read only once, or do not fit the model.
    """
    demand_reiterable(batches, "a barrier")
    spec = spec.bind(b)
    shuffled = (Permutation.random(spec, generator).apply(b) for _ in range(count))
    return tuple(loss_barrier(model, a, state, batches, points, calibrate=calibrate) for state in shuffled)
