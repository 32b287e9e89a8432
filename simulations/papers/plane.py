"""The loss in the plane through three models (Simultaneous connectivity, Appendix I)."""

import torch
from torch import Tensor

from fedrebasin.analysis import Landscape, loss_plane
from fedrebasin.merging import MergeMany

from .lab import Lab
from .pairs import members
from .recipe import Recipe
from .registry import Setting, experiment
from .result import Chart, Figure, Plane, Result, below, figures, times


@experiment(
    "sim-plane",
    "Simultaneous connectivity, Appendix I",
    "The loss in the plane through three models, as trained and after MergeMany",
    Setting(recipe=Recipe(weight_decay=0.0), widths=(512,), models=3, points=15),
    Setting(recipe=Recipe("mnist", weight_decay=0.0, epochs=100), widths=(2048,), models=3, points=25),
)
def plane(lab: Lab, setting: Setting) -> Result:
    """The loss at the three models' centre and the mean over their triangle, before and after alignment."""
    kinds = ("as trained", "aligned")
    centre: dict[str, list[float]] = {kind: [] for kind in kinds}
    inside: dict[str, list[float]] = {kind: [] for kind in kinds}
    corners: list[float] = []
    drawn: dict[str, Landscape] = {}
    for seed in setting.seeds:
        nets, states = members(lab, setting, seed)
        for kind, (a, b, c) in zip(kinds, (states, MergeMany(seed=seed)(nets.spec, states).states), strict=True):
            found = loss_plane(nets.model, a, b, c, nets.test, setting.points)
            shares, losses = barycentric(found), found.losses.flatten()
            inside[kind].append(float(found.losses[(shares > -1e-9).all(-1)].mean()))
            centre[kind].append(float(losses[(shares - 1 / 3).square().sum(-1).argmin()]))
            drawn.setdefault(kind, found)
            if kind == kinds[0]:
                corner = [(shares - one).square().sum(-1).argmin() for one in torch.eye(3, dtype=torch.float64)]
                corners.append(sum(float(losses[index]) for index in corner) / 3)
    return Result(
        figures=(
            *figures("loss near the centre, {}", centre, "nats"),
            *figures("mean loss over the triangle, {}", inside, "nats"),
            Figure("loss near the models", tuple(corners), "", "nats"),
        ),
        claims=(
            below(
                "as trained there is a hill between the three models: the centre's loss is ten times theirs or more",
                times(10, corners),
                centre["as trained"],
                "nats",
            ),
            below(
                "aligned they lie in one basin: the centre's loss is a tenth of what it was, or less",
                centre["aligned"],
                times(0.1, centre["as trained"]),
                "nats",
            ),
        ),
        charts=tuple(
            Chart(f"loss (nats), {kind}", "along B - A", "at right angles to it", (), plane=_plane(found))
            for kind, found in drawn.items()
        ),
        notes="The figure shows the first seed.",
    )


def barycentric(found: Landscape) -> Tensor:
    """The shares of A, B and C at every point of the landscape, shape ``(len(y), len(x), 3)``; they sum to 1."""
    y, x = torch.meshgrid(found.y, found.x, indexing="ij")
    (_, _), (length, _), (along, height) = found.models.tolist()
    c = y / height
    b = (x - c * along) / length
    return torch.stack([1 - b - c, b, c], -1)


def _plane(found: Landscape) -> Plane:
    marks = tuple((name, x, y) for name, (x, y) in zip("ABC", found.models.tolist(), strict=True))
    rows = tuple(tuple(map(float, row)) for row in found.losses)
    return Plane(tuple(found.x.tolist()), tuple(found.y.tolist()), rows, marks)
