"""The loss in the plane through three models (Simultaneous connectivity, Appendix I; after Garipov et al. 2018)."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedrebasin.analysis.barrier import demand_alike
from fedrebasin.calibration import recalibrate_batch_norm
from fedrebasin.errors import MergeError
from fedrebasin.running import Batch, demand_reiterable
from fedrebasin.state import State, inner, is_statistic, length
from fedrebasin.sums import evaluate


@dataclass(frozen=True, eq=False)
class Landscape:
    """Loss and accuracy on a grid of the plane.

    Args:
        x: coordinates along B - A, float64, shape ``(points,)``, in Euclidean distance of weights.
        y: coordinates along the part of C - A at right angles to it, likewise.
        losses: mean NLL in nats, shape ``(len(y), len(x))``.
        accuracies: in [0, 1], likewise.
        models: the coordinates of A, B and C, shape ``(3, 2)``; A lies at (0, 0) and B at (|B - A|, 0).
    """

    x: Tensor
    y: Tensor
    losses: Tensor
    accuracies: Tensor
    models: Tensor


def loss_plane(
    model: nn.Module,
    a: State,
    b: State,
    c: State,
    batches: Iterable[Batch],
    points: int = 15,
    margin: float = 0.2,
    recalibrate: Iterable[Batch] | None = None,
) -> Landscape:
    """Evaluate the plane through three models.

    Distances are those of the parameters; running statistics go along in the same proportions of A, B and C, their
    variances never below 0. Identity: at its own coordinates each model has its own loss.

    Args:
        model: the module; nothing is copied.
        a: state dict at the origin.
        b: state dict that gives the x axis.
        c: state dict that completes the plane.
        batches: ``(inputs, labels)``, read once for each point.
        points: along each axis.
        margin: how far the grid goes beyond the models, as a share of their extent.
        recalibrate: batches that BatchNorm's statistics are taken from anew at each point.

    Raises:
        MergeError: if the models lie on one line, or do not fit each other.
        CalibrationError: if batches can be read only once, or do not fit the model.
    """
    demand_alike(a, b)
    demand_alike(a, c)
    for iterable in (batches, recalibrate):
        if iterable is not None:
            demand_reiterable(iterable, "a plane")
    keys = [key for key, tensor in a.items() if tensor.is_floating_point()]
    parameters = [key for key in keys if not is_statistic(key)]
    u = {key: b[key].double() - a[key].double() for key in keys}
    w = {key: c[key].double() - a[key].double() for key in keys}
    way = length(u, parameters)
    if way == 0:
        raise MergeError("A and B are one model: they span no plane")
    u = {key: tensor / way for key, tensor in u.items()}
    along = inner(w, u, parameters)
    v = {key: w[key] - along * u[key] for key in keys}
    height = length(v, parameters)
    if height < 1e-9 * max(way, abs(along)):
        raise MergeError("the three models lie on one line: they span no plane")
    v = {key: tensor / height for key, tensor in v.items()}
    models = torch.tensor([[0.0, 0.0], [way, 0.0], [along, height]], dtype=torch.float64)
    x, y = (_axis(models[:, dim], points, margin) for dim in (0, 1))
    losses, accuracies = torch.zeros(2, points, points, dtype=torch.float64)
    for row, up in enumerate(y.tolist()):
        for column, right in enumerate(x.tolist()):
            state: State = {
                key: _moved(key, tensor, right * u[key] + up * v[key]) if key in u else tensor
                for key, tensor in a.items()
            }
            if recalibrate is not None:
                state = recalibrate_batch_norm(model, state, recalibrate)
            score = evaluate(model, state, batches)
            losses[row, column], accuracies[row, column] = score.loss, score.accuracy
    return Landscape(x, y, losses, accuracies, models)


def _moved(key: str, tensor: Tensor, by: Tensor) -> Tensor:
    moved = tensor.double() + by
    return (moved.clamp_min(0) if key.endswith("running_var") else moved).to(tensor.dtype)


def _axis(coordinates: Tensor, points: int, margin: float) -> Tensor:
    low, high = float(coordinates.min()), float(coordinates.max())
    beyond = margin * (high - low)
    return torch.linspace(low - beyond, high + beyond, points, dtype=torch.float64)
