"""Experiments of LEWC on where its law holds: spawned models, low rank, curvature in training, good permutations."""

from dataclasses import replace
from operator import itemgetter
from statistics import fmean

from fedrebasin.analysis import activation_spectra, feature_connectivity, weight_spectra

from .lab import Lab
from .lewc import PAPER, WIDE
from .pairs import Pair, by_width, spawned_and_independent, width_chart, width_figures
from .recipe import Recipe
from .registry import Setting, experiment
from .result import Result, below, chart, each, falls, figures, rises


@experiment(
    "lewc-spawning",
    "LEWC, Definition 4.1 beside LLFC, Definition 2",
    "Which law holds: spawned models follow the linear one, wide independent models the exponential one",
    replace(WIDE, recipe=Recipe(spawn=5), widths=(512,)),
    replace(PAPER, recipe=Recipe("mnist", epochs=100, spawn=5), widths=(8192,)),
)
def spawning(lab: Lab, setting: Setting) -> Result:
    """The coefficients of both laws, by layer, of spawned, matched and independent pairs."""
    kinds = ("spawned", "matched", "independent")
    linear: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    exponential: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    cosines: dict[str, list[float]] = {kind: [] for kind in kinds}
    for seed in setting.seeds:
        for kind, (p, b) in zip(kinds, spawned_and_independent(lab, setting, seed), strict=True):
            layers = feature_connectivity(p.model, p.a, b, p.test)
            linear[kind].append([layer.coefficient.mean for layer in layers])
            exponential[kind].append([layer.coefficient.mean * 2.0 ** (layer.depth - 1) for layer in layers])
            cosines[kind].append(layers[-1].cosine.mean)
    depth = range(1, len(linear["spawned"][0]) + 1)
    laws = {"linear": linear, "exponential": exponential}
    return Result(
        figures=(
            *figures("cosine of the logits, {}", cosines),
            *figures("coefficient of the linear law at the logits, {}", each(itemgetter(-1), linear)),
            *figures("coefficient of the exponential law at the logits, {}", each(itemgetter(-1), exponential)),
        ),
        claims=(
            *(
                below(
                    f"{kind}: the linear law is nearer in length than the exponential one",
                    _off(linear[kind]),
                    _off(exponential[kind]),
                )
                for kind in ("spawned", "matched")
            ),
            below(
                "independent: the exponential law is nearer in length than the linear one",
                _off(exponential["independent"]),
                _off(linear["independent"]),
            ),
        ),
        charts=tuple(
            chart(f"length relative to the {law} law", "layer", "coefficient at lam = 1/2", depth, found)
            for law, found in laws.items()
        ),
    )


def _off(rows: list[list[float]]) -> list[float]:
    """By which factor the last layer's coefficient is off 1, either way."""
    return [max(row[-1], 1 / max(row[-1], 1e-12)) for row in rows]


@experiment(
    "lewc-rank",
    "LEWC, section 5 (low rank keeps wide models apart)",
    "With width the rank of weights and features falls relative to the units there are",
    WIDE,
    PAPER,
)
def rank(lab: Lab, setting: Setting) -> Result:
    """Stable rank over the number of units, of the hidden layers' weights and of what they read."""

    def measure(p: Pair) -> tuple[float, ...]:
        weights = list(weight_spectra(p.model, p.a).values())[1:-1]
        inputs = list(activation_spectra(p.model, p.a, p.test).values())[1:]
        return (
            fmean(found.relative_rank for found in weights),
            fmean(found.stable_rank for found in weights),
            fmean(found.relative_rank for found in inputs),
        )

    weights, absolute, inputs = by_width(lab, setting, measure)
    return Result(
        figures=(
            *width_figures(setting, "relative stable rank of hidden weights", weights),
            *width_figures(setting, "stable rank of hidden weights", absolute),
            *width_figures(setting, "relative stable rank of features", inputs),
        ),
        claims=(
            falls("the relative rank of weights falls with width", weights),
            falls("the relative rank of features falls with width", inputs),
        ),
        charts=(
            width_chart(setting, "relative rank", "stable rank / units", {"weights": weights, "features": inputs}),
        ),
    )


@experiment(
    "lewc-second-order",
    "LEWC, Figure 24 (a second-order optimiser)",
    "Models trained by L-BFGS merge without permutation too when they are wide",
    replace(WIDE, recipe=Recipe(optimizer="lbfgs", epochs=5), widths=(32, 128, 256)),
    replace(PAPER, recipe=Recipe("mnist", optimizer="lbfgs", epochs=20)),
)
def second_order(lab: Lab, setting: Setting) -> Result:
    """The calibrated naive barrier, LEWC's cosine and accuracy by width of models trained with curvature."""

    def measure(p: Pair) -> tuple[float, ...]:
        barrier = p.barrier(p.b, setting.points, calibrated=True)
        layers = feature_connectivity(p.model, p.a, p.b, p.test)
        return (
            barrier.value,
            layers[-1].cosine.mean,
            100 * fmean((barrier.accuracies[0], barrier.accuracies[-1])),
            100 * barrier.accuracies[len(barrier.lams) // 2],
        )

    barrier, cosine, own, merged = by_width(lab, setting, measure)
    return Result(
        figures=(
            *width_figures(setting, "naive calibrated barrier", barrier, "nats"),
            *width_figures(setting, "LEWC cosine, last layer", cosine),
            *width_figures(setting, "accuracy of the models", own, "%"),
            *width_figures(setting, "accuracy of the average", merged, "%"),
        ),
        claims=(
            falls("the calibrated barrier falls with width, by half or more", barrier, 0.5),
            rises("LEWC's cosine of the last layer rises with width", cosine),
        ),
        charts=(
            width_chart(setting, "L-BFGS: barrier", "calibrated naive barrier (nats)", {"naive": barrier}),
            width_chart(setting, "L-BFGS: LEWC's cosine", "cosine of the logits", {"naive": cosine}),
        ),
        notes="L-BFGS on all examples; the weight decay is an L2 term of the loss.",
    )


@experiment(
    "lewc-good-permutation",
    "LEWC, appendix F.4",
    "The wider the models, the less a good permutation is better than a random one",
    WIDE,
    PAPER,
)
def good_permutation(lab: Lab, setting: Setting) -> Result:
    """Calibrated barriers by width: as trained, randomly permuted, and after weight matching."""

    def measure(p: Pair) -> tuple[float, ...]:
        shuffled = p.shuffled_barrier(setting.points, p.recipe.seed)
        trained, matched = (p.barrier(b, setting.points, calibrated=True).value for b in (p.b, p.aligned))
        return trained, shuffled, matched, shuffled - matched

    trained, shuffled, matched, gap = by_width(lab, setting, measure)
    named = {"as trained": trained, "randomly permuted": shuffled, "weight matching": matched}
    return Result(
        figures=(
            *(
                figure
                for name, rows in named.items()
                for figure in width_figures(setting, f"calibrated barrier, {name}", rows, "nats")
            ),
            *width_figures(setting, "random minus matched", gap, "nats"),
        ),
        claims=(falls("what a good permutation gains over a random one falls with width, by half or more", gap, 0.5),),
        charts=(width_chart(setting, "does the order matter?", "calibrated barrier (nats)", named),),
    )
