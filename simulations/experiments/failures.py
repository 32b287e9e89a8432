"""Where Git Re-Basin says that matching fails: known failure modes, and a counterexample no permutation helps."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import torch
from torch import Tensor, nn

from fedrebasin import Permutation, PermutationSpec, State, WeightMatching, loss_barrier

from .lab import Lab
from .pairs import pair
from .recipe import Recipe
from .registry import Setting, experiment
from .result import Chart, Claim, Figure, Line, Result


@experiment(
    "grb-failures",
    "Git Re-Basin, A.1",
    "Failure modes, shown to fail: too narrow, too early in training",
    Setting(recipe=Recipe(weight_decay=0.0, keep=(1,)), widths=(16, 256), points=11),
    Setting(recipe=Recipe("mnist", width=512, weight_decay=0.0, epochs=100, keep=(1,)), widths=(16, 512), points=25),
)
def failures(lab: Lab, setting: Setting) -> Result:
    """Barriers after matching of narrow nets, of nets after one epoch, and of wide trained ones, over the loss."""
    rows: dict[str, list[float]] = {"too narrow": [], "after one epoch": [], "wide and trained": []}
    for seed in setting.seeds:
        without = replace(setting, recipe=replace(setting.recipe, keep=()))
        narrow, wide = (pair(lab, without, width, seed) for width in (setting.widths[0], setting.widths[-1]))
        rows["too narrow"].append(narrow.barrier(narrow.aligned, setting.points).value)
        rows["wide and trained"].append(wide.barrier(wide.aligned, setting.points).value)
        first = setting.recipe.keep[0]
        a, b = (lab.checkpoints(setting.of(seed=seed, number=number))[first] for number in (0, 1))
        aligned = WeightMatching()(wide.spec, reference=a, candidate=b).apply(b)
        rows["after one epoch"].append(loss_barrier(wide.model, a, aligned, wide.test, setting.points).value)
    good = rows["wide and trained"]
    return Result(
        figures=tuple(Figure(f"barrier after matching, {name}", tuple(x), "", "nats") for name, x in rows.items()),
        claims=tuple(
            Claim(
                f"{name}: matching leaves more than twice the barrier of wide trained networks",
                tuple(bad > 2 * max(fine, 0.0) + 0.01 for bad, fine in zip(rows[name], good, strict=True)),
                "the barrier is in nats; after one epoch the loss itself is still large",
            )
            for name in ("too narrow", "after one epoch")
        ),
        notes="A.1's other modes need VGG on MNIST, ConvNeXt and ResNet with other optimizers: not run at small scale.",
    )


@experiment(
    "grb-counterexample",
    "Git Re-Basin, A.6",
    "Two perfect networks that no permutation connects",
    Setting(seeds=(0,), points=25),
    Setting(seeds=(0,), points=25),
)
def counterexample(lab: Lab, setting: Setting) -> Result:
    """Every permutation of two networks of two hidden units that classify three points on a line.

    A computes ``2 relu(x) + 2 relu(-x) - 1`` and B ``1 - 2 relu(x + 1) + 4 relu(x)``: both are 1, -1, 1 at -1, 0, 1.
    """
    model, a, b, batches = counterexample_nets()
    spec = PermutationSpec.from_axes(
        {"0.weight": ("P", None), "0.bias": ("P",), "2.weight": (None, "P"), "2.bias": (None,)}, like=a
    )
    curves = {}
    for order in permutations(range(2)):
        moved = Permutation(spec, {"P": torch.tensor(order)}).apply(b)
        curves[str(order)] = loss_barrier(model, a, moved, batches, setting.points)
    least = min(barrier.value for barrier in curves.values())
    ends = max(max(barrier.losses[0], barrier.losses[-1]) for barrier in curves.values())
    return Result(
        figures=(
            Figure("smallest barrier over all permutations", (least,), "above 0", "nats"),
            Figure("largest loss of both networks", (ends,), "about 0", "nats"),
        ),
        claims=(
            Claim("both networks are perfect and every permutation leaves a barrier", (ends < 1e-3 and least > 0.1,)),
        ),
        charts=(
            Chart(
                "all permutations of the counterexample",
                "lam",
                "loss (nats)",
                tuple(Line(f"order {name}", found.lams, found.losses) for name, found in curves.items()),
            ),
        ),
        notes="A construction of ours in the spirit of A.6, small enough to try every permutation.",
    )


def counterexample_nets() -> tuple[nn.Module, State, State, list[tuple[Tensor, Tensor]]]:
    """The module, A, B, and the three points with their classes."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    margin = 10.0

    def state(slopes: list[float], shifts: list[float], outer: list[float], constant: float) -> State:
        row = torch.tensor(outer, dtype=torch.float64) * margin / 2
        bias = torch.tensor([-constant, constant], dtype=torch.float64) * margin / 2
        return {
            "0.weight": torch.tensor(slopes, dtype=torch.float64)[:, None],
            "0.bias": torch.tensor(shifts, dtype=torch.float64),
            "2.weight": torch.stack([-row, row]),
            "2.bias": bias,
        }

    a = state([1.0, -1.0], [0.0, 0.0], [2.0, 2.0], -1.0)
    b = state([1.0, 1.0], [1.0, 0.0], [-2.0, 4.0], 1.0)
    points = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    return model, a, b, [(points, torch.tensor([1, 0, 1]))]
