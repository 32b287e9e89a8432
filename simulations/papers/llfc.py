"""Experiments of LLFC (Zhou et al., NeurIPS 2023): features of merged models, and stitching."""

from collections import defaultdict
from dataclasses import replace
from statistics import fmean

from fedrebasin.analysis import ErrorBound, feature_connectivity, lemma_1, stitching

from .lab import Lab
from .pairs import spawned_and_independent
from .recipe import Recipe
from .registry import Setting, experiment
from .result import Claim, Figure, Result, below, chart, each, figures

SMALL = Setting(recipe=Recipe(weight_decay=0.0, spawn=5), widths=(256,))
PAPER = Setting(recipe=Recipe("mnist", width=512, weight_decay=0.0, epochs=100, spawn=5), widths=(512,))
CONV = Recipe(weight_decay=0.0, epochs=20, spawn=5)
PAPER_CONV = Recipe(
    "cifar10", optimizer="sgd", learning_rate=0.1, weight_decay=1e-4, batch_size=128, epochs=150, spawn=5
)
CONVOLUTIONAL = {
    "vgg": (
        Setting(recipe=replace(CONV, model="vgg11"), widths=(0.25,)),
        Setting(recipe=replace(PAPER_CONV, model="vgg16"), widths=(1,)),
    ),
    "resnet": (
        Setting(recipe=replace(CONV, model="resnet20"), widths=(2,)),
        Setting(recipe=replace(PAPER_CONV, model="resnet20"), widths=(1,)),
    ),
}
#: What connects two models: how each pair of :func:`spawned_and_independent` comes about.
PAIRS = ("spawning", "permutation", "neither")
#: Tables 2 and 3: test error after stitching at any layer of spawned models, and that of the models.
TABLES = {
    "vgg": ("6.88 to 11.84 (VGG-16, CIFAR-10)", "6.87 and 7.1"),
    "resnet20": ("8.99 to 13.35 (CIFAR-10)", "8.69 and 8.58"),
}


def _worst(left: list[list[float]], right: list[list[float]]) -> list[float]:
    """The largest ratio of two rows, for each seed."""
    return [max(x / max(y, 1e-300) for x, y in zip(*rows, strict=True)) for rows in zip(left, right, strict=True)]


def _layers(recipe: Recipe) -> tuple[str, ...] | None:
    """Where a model is cut: a ResNet between its blocks, which hold the whole stream."""
    return tuple(f"blocks.{number}" for number in range(9)) if recipe.model == "resnet20" else None


@experiment(
    "llfc-features-resnet",
    "LLFC, Figures 8 to 15 (ResNet-20)",
    "Features of every block of spawned ResNet-20 are linearly connected",
    *CONVOLUTIONAL["resnet"],
)
@experiment(
    "llfc-features-vgg",
    "LLFC, Figures 8 to 15 (VGG)",
    "Features of every layer of spawned VGG are linearly connected",
    *CONVOLUTIONAL["vgg"],
)
@experiment(
    "llfc-features",
    "LLFC, Figures 8 to 15 (MLP)",
    "Features of every layer are linearly connected where the weights are: by spawning, and by permutation",
    SMALL,
    PAPER,
)
def features(lab: Lab, setting: Setting) -> Result:
    """1 - cosine by layer, for spawned, permuted and unpermuted pairs, with each pair's own baseline."""
    rows: dict[str, list[list[float]]] = defaultdict(list)
    coefficients: dict[str, list[float]] = defaultdict(list)
    lemma: list[ErrorBound] = []
    for seed in setting.seeds:
        pairs = spawned_and_independent(lab, setting, seed)
        for name, (p, b) in zip(PAIRS, pairs, strict=True):
            layers = feature_connectivity(p.model, p.a, b, p.test, layers=_layers(p.recipe))
            rows[name].append([1 - layer.cosine.mean for layer in layers])
            rows[f"{name}, baseline"].append([1 - layer.baseline.mean for layer in layers])
            coefficients[name].append(fmean(layer.coefficient.mean for layer in layers))
        spawned, _ = pairs[0]
        lemma += lemma_1(spawned.model, spawned.a, spawned.b, spawned.test)
    depth = range(1, len(rows["neither"][0]) + 1)
    about_one = dict.fromkeys(("spawning", "permutation"), "about 1")
    return Result(
        figures=(
            *figures("1 - cosine, mean over layers, {}", each(fmean, rows)),
            *figures("coefficient, mean over layers, {}", coefficients, paper=about_one),
        ),
        claims=(
            *(
                below(
                    f"{name}: merged features follow the linear law in every layer far better than A follows B",
                    _worst(rows[name], rows[f"{name}, baseline"]),
                    0.5,
                    why="largest ratio of both distances, and its bound",
                )
                for name in (("spawning", "permutation") if setting.recipe.model == "mlp" else ("spawning",))
            ),
            below(
                "without permutation the law is broken by more than with it, in every layer after the first",
                _worst([row[1:] for row in rows["permutation"]], [row[1:] for row in rows["neither"]]),
                1.0,
                why="largest ratio with and without, and its bound",
            ),
            Claim(
                "Lemma 1: the halfway model's error is at most twice the larger one",
                tuple(bound.holds for bound in lemma),
                "error and bound: " + ", ".join(f"{bound.error:.3f} / {bound.bound:.3f}" for bound in lemma),
            ),
        ),
        charts=(chart("how far features are from the linear law", "layer", "1 - cosine at lam = 1/2", depth, rows),),
    )


@experiment(
    "llfc-stitching-resnet",
    "LLFC, Table 3 (ResNet-20)",
    "Lower blocks of one ResNet-20 under upper blocks of another",
    *CONVOLUTIONAL["resnet"],
)
@experiment(
    "llfc-stitching-vgg",
    "LLFC, Table 2 (VGG)",
    "Lower layers of one VGG under upper layers of another",
    *CONVOLUTIONAL["vgg"],
)
@experiment(
    "llfc-stitching", "LLFC, Table 1 (MLP)", "Lower layers of one model under upper layers of another", SMALL, PAPER
)
def stitched(lab: Lab, setting: Setting) -> Result:
    """Error after stitching at every layer, spawned, permuted and unpermuted."""
    rows: dict[str, list[list[float]]] = defaultdict(list)
    own = []
    for seed in setting.seeds:
        for name, (p, b) in zip(PAIRS, spawned_and_independent(lab, setting, seed), strict=True):
            scores = list(stitching(p.model, p.a, b, p.test, _layers(p.recipe)).values())[:-1]
            rows[name].append([100 * (1 - score.accuracy) for score in scores])
            if name == "neither":
                own.append(100 * (1 - p.score(b).accuracy))
    depth = range(1, len(rows["neither"][0]) + 1)
    means = each(fmean, rows)
    cheap = {"spawning": "stitching spawned models"}
    if setting.recipe.model == "mlp":
        cheap["permutation"] = "stitching permuted models"
    paper = next((found for name, found in TABLES.items() if setting.recipe.model.startswith(name)), ("", ""))
    return Result(
        figures=(
            *figures("error after stitching, mean over layers, {}", means, "%", {"spawning": paper[0]}),
            Figure("error of B itself", tuple(own), paper[1], "%"),
        ),
        claims=(
            below("stitching strangers ruins them (above 30 % errors)", 30.0, means["neither"], "%"),
            below("stitching permuted models costs less", means["permutation"], means["neither"], "%"),
            *(
                below(f"{text} costs little (below 5 % more errors)", means[name], [e + 5 for e in own], "%")
                for name, text in cheap.items()
            ),
        ),
        charts=(chart("error after stitching", "after layer", "test error (%)", depth, rows),),
    )
