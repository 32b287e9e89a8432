"""Git Re-Basin's two constructions: networks that no permutation connects (A.6), units that greedy mixes up (A.7.2)."""

from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor, nn

from fedrebasin.analysis import interpolate, loss_barrier
from fedrebasin.matching import WeightMatching
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import State

from .lab import Lab
from .registry import Setting, experiment
from .result import Chart, Claim, Figure, Line, Result, below

ONCE = Setting(seeds=(0,), points=25)
SIDE = 40
ORDERS = (torch.tensor([0, 1]), torch.tensor([1, 0]))


@experiment(
    "grb-counterexample",
    "Git Re-Basin, A.6 and Figure 6",
    "Two perfect networks that no permutation connects",
    ONCE,
    ONCE,
)
def counterexample(lab: Lab, setting: Setting) -> Result:
    """The error along the path to each of the four permutations of B."""
    model, a, b, batches = counterexample_nets()
    spec = spec_of_two_layers(a)
    curves = {
        f"{first.tolist()}, {second.tolist()}": loss_barrier(
            model, a, Permutation(spec, {"P_0": first, "P_1": second}).apply(b), batches, setting.points
        )
        for first, second in product(ORDERS, ORDERS)
    }
    errors = {name: tuple(100 * error for error in found.errors) for name, found in curves.items()}
    least = min(max(error) for error in errors.values())
    ends = max(max(error[0], error[-1]) for error in errors.values())
    return Result(
        figures=(
            Figure("smallest error barrier over all permutations", (least,), "above 0", "%"),
            Figure("largest error of both networks", (ends,), "0", "%"),
        ),
        claims=(
            below("both networks are perfect", [ends], [1e-9], "%"),
            below("every permutation leaves an error barrier above 5 %", [5], [least], "%"),
        ),
        charts=(
            Chart(
                "all permutations of the counterexample",
                "lam",
                "error (%)",
                tuple(Line(name, found.lams, errors[name]) for name, found in curves.items()),
            ),
        ),
        notes="The networks of Eq. 4 and 5 at 40 x 40 points; both compute the same function.",
    )


def counterexample_nets() -> tuple[nn.Module, State, State, list[tuple[Tensor, Tensor]]]:
    """The module, A (Eq. 4), B (Eq. 5), and points of ``[-1, 1]^2``, positive where x_1 < 0 and x_2 > 0.

    Both compute ``f = -relu(x_1) - relu(-x_2)`` and predict a positive label for ``f >= 0``: of the logits ``(c, f)``
    the second one is larger, c being a little below 0.
    """
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    head = {"4.weight": [[0.0, 0.0], [-1.0, -1.0]], "4.bias": [-1e-9, 0.0]}
    a = {
        "0.weight": [[-1.0, 0.0], [0.0, -1.0]],
        "0.bias": [1.0, 0.0],
        "2.weight": [[-1.0, 0.0], [0.0, 1.0]],
        "2.bias": [1.0, 0.0],
        **head,
    }
    b = {
        "0.weight": [[1.0, 0.0], [0.0, 1.0]],
        "0.bias": [0.0, 1.0],
        "2.weight": [[1.0, 0.0], [0.0, -1.0]],
        "2.bias": [0.0, 1.0],
        **head,
    }
    line = (torch.arange(SIDE, dtype=torch.float64) + 0.5) / SIDE * 2 - 1
    points = torch.cartesian_prod(line, line)
    labels = ((points[:, 0] < 0) & (points[:, 1] > 0)).long()
    return model, _state(a), _state(b), [(points, labels)]


def spec_of_two_layers(like: State) -> PermutationSpec:
    """The permutations of two hidden layers in a row of modules ``0, 1, ...``."""
    weights = sorted(key for key in like if key.endswith("weight"))
    groups = ("P_0", "P_1", None)
    axes: dict[str, tuple[str | None, ...]] = {}
    for key, out, read in zip(weights, groups, (None, *groups), strict=False):
        axes[key] = (out, read)
        if (bias := key.replace("weight", "bias")) in like:
            axes[bias] = (out,)
    return PermutationSpec.from_axes(axes, like=like)


@experiment(
    "grb-greedy-example",
    "Git Re-Basin, A.7.2",
    "Matching that looks at what a unit reads alone mixes up units that weight matching tells apart",
    ONCE,
    ONCE,
)
def greedy_example(lab: Lab, setting: Setting) -> Result:
    """The slope of the halfway model after greedy and after weight matching; both networks compute x."""
    a, b = greedy_nets(1e-2)
    slopes, found = {}, {}
    matchers = {"greedy": WeightMatching(method="greedy"), "coordinate": WeightMatching(method="coordinate")}
    for method, matcher in matchers.items():
        alignment = matcher(spec_of_two_layers(a), reference=a, candidate=b)
        found[method] = {name: alignment.permutation[name].tolist() for name in alignment.permutation}
        merged = interpolate(a, alignment.apply(b), 0.5)
        slopes[method] = float(merged["2.weight"] @ merged["1.weight"] @ merged["0.weight"])
    return Result(
        figures=(
            Figure("slope of the halfway model, greedy", (slopes["greedy"],), "0.5 + O(eps)"),
            Figure("slope of the halfway model, weight matching", (slopes["coordinate"],), "1 + eps / 2"),
        ),
        claims=(
            *(
                Claim(text, (found[method] == {"P_0": order, "P_1": order},), f"found: {found[method]}")
                for text, method, order in (
                    ("greedy leaves both layers as they are", "greedy", [0, 1]),
                    ("weight matching swaps both", "coordinate", [1, 0]),
                )
            ),
            below("the greedy merge halves the function", [abs(slopes["greedy"] - 0.5)], [0.05]),
            below("weight matching keeps it", [abs(slopes["coordinate"] - 1)], [0.05]),
        ),
        notes="Eq. 6 and 7 with eps = 0.01.",
    )


def greedy_nets(eps: float) -> tuple[State, State]:
    """A (Eq. 6) computes x and B (Eq. 7) ``(1 + eps) x``, without activation functions."""
    read = [[1.0], [1.0 + eps]]
    a = {"0.weight": read, "1.weight": [[1.0, 0.0], [0.0, eps]], "2.weight": [[1.0, 0.0]]}
    b = {"0.weight": read, "1.weight": [[0.0, 0.0], [0.0, 1.0]], "2.weight": [[0.0, 1.0]]}
    return _state(a), _state(b)


def _state(values: Mapping[str, object]) -> State:
    return {key: torch.tensor(value, dtype=torch.float64) for key, value in values.items()}
