"""Experiments of LEWC ("Do We Really Need Permutations?", 2025): wide models merge as they are."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from fedrebasin.analysis import (
    active_overlap,
    commutativity,
    feature_connectivity,
    reciprocal_orthogonality,
    weak_additivity,
)

from .lab import Lab
from .pairs import Pair, by_width
from .recipe import Recipe
from .registry import Setting, experiment
from .result import Result, below, by_width_chart, by_width_figures, falls, falls_at_every_step, rises

WIDE = Setting(recipe=Recipe(), widths=(32, 128, 512), points=3)
PAPER = Setting(recipe=Recipe("mnist", epochs=100), widths=(128, 512, 2048, 8192), points=25)
BATCH_NORM = Recipe(epochs=20)
PAPER_CONV = Recipe("cifar10", optimizer="sgd", learning_rate=0.1, weight_decay=3e-3, batch_size=128, epochs=100)
#: Table 1, at 16, 16 and 32 times the width: naive calibrated barrier, that after weight matching, and the accuracy
#: lost by naive averaging in percent points.
TABLE_1 = {
    "mlp": ("0.013", "-0.003", "0.519"),
    "vgg11-bn": ("0.066", "0.177", "1.308"),
    "resnet20-bn": ("0.087", "0.173", "2.694"),
}


@experiment(
    "lewc-width-resnet",
    "LEWC, Table 1 and Figures 1 and 2 (ResNet-20)",
    "Without permutation the calibrated barrier of ResNet-20 falls with width",
    replace(WIDE, recipe=replace(BATCH_NORM, model="resnet20-bn"), widths=(0.5, 1, 2)),
    replace(PAPER, recipe=replace(PAPER_CONV, model="resnet20-bn"), widths=(1, 4, 8, 16, 32)),
)
@experiment(
    "lewc-width-vgg",
    "LEWC, Table 1 and Figures 1 and 2 (VGG-11)",
    "Without permutation the calibrated barrier of VGG-11 falls with width",
    replace(WIDE, recipe=replace(BATCH_NORM, model="vgg11-bn"), widths=(0.125, 0.25, 0.5, 1)),
    replace(PAPER, recipe=replace(PAPER_CONV, model="vgg11-bn"), widths=(1, 2, 4, 8, 16)),
)
@experiment(
    "lewc-width",
    "LEWC, Table 1 and Figures 1 and 2 (MLP)",
    "Without permutation the calibrated barrier falls with width",
    WIDE,
    PAPER,
)
def width(lab: Lab, setting: Setting) -> Result:
    """Naive and matched barriers, plain and calibrated, and the accuracy of the naive average."""

    def measure(p: Pair) -> tuple[float, ...]:
        naive = p.barrier(p.b, setting.points, calibrated=True)
        middle = len(naive.lams) // 2
        return (
            p.barrier(p.b, setting.points).value,
            naive.value,
            p.barrier(p.aligned, setting.points, calibrated=True).value,
            100 * (fmean((naive.accuracies[0], naive.accuracies[-1])) - naive.accuracies[middle]),
            naive.betas[middle],
        )

    naive, calibrated, aligned, accuracy, betas = by_width(lab, setting, measure)
    overtaken = below(
        "at the widest, averaging as they are beats averaging after weight matching (Table 1)",
        [row[-1] for row in calibrated],
        [row[-1] for row in aligned],
        "nats",
    )
    widths, paper = setting.widths, TABLE_1.get(setting.recipe.model, ("", "", ""))
    return Result(
        figures=(
            *by_width_figures("naive calibrated barrier", widths, calibrated, "nats", paper[0]),
            *by_width_figures("matched calibrated barrier", widths, aligned, "nats", paper[1]),
            *by_width_figures("naive accuracy barrier", widths, accuracy, "% points", paper[2]),
            *by_width_figures("naive barrier, not calibrated", widths, naive, "nats"),
            *by_width_figures("beta of the naive average", widths, betas),
        ),
        claims=(
            falls(
                "the naive calibrated barrier falls with width, by half or more from the narrowest to the widest",
                calibrated,
                0.5,
            ),
            falls_at_every_step("it falls at every step", calibrated),
            below(
                "at the widest, calibration removes at least half of the naive barrier",
                [row[-1] for row in calibrated],
                [0.5 * row[-1] for row in naive],
                "nats",
            ),
            falls("the accuracy lost by naive averaging falls with width", accuracy),
            *((overtaken,) if setting.recipe.model != "mlp" else ()),
        ),
        charts=(
            by_width_chart(
                "barrier and width",
                "test loss barrier (nats)",
                widths,
                {"naive": naive, "naive, calibrated": calibrated, "matched, calibrated": aligned},
                setting.width_axis,
            ),
        ),
        notes="The paper's numbers are of 16 times the width (MLP on MNIST, VGG-11) or 32 (ResNet-20, CIFAR-10).",
    )


@experiment(
    "lewc-features",
    "LEWC, Definition 4.1 and Figures 3 to 8, 20 to 22",
    "With width merged features become the exponentially weighted sum, while commutativity needs a permutation",
    WIDE,
    PAPER,
)
def features(lab: Lab, setting: Setting) -> Result:
    """LEWC's cosine and its conditions by width, beside LLFC's condition with and without permutation."""

    def measure(p: Pair) -> tuple[float, ...]:
        layers = feature_connectivity(p.model, p.a, p.b, p.test, law="exponential")
        norms = [layer.norm.mean / fmean(norm.mean for norm in layer.norms) for layer in layers]
        return (
            layers[-1].cosine.mean,
            fmean(found.cosine.mean for found in weak_additivity(p.model, p.a, p.b, p.test)),
            fmean(found.ratio.mean for found in reciprocal_orthogonality(p.model, p.a, p.b, p.test)[1:]),
            fmean(found.jaccard for found in active_overlap(p.model, p.a, p.b, p.test)),
            norms[-1],
            fmean(layer.dist_com for layer in commutativity(p.model, p.a, p.b, p.test)[1:]),
            fmean(layer.dist_com for layer in commutativity(p.model, p.a, p.aligned, p.test)[1:]),
        )

    cosine, additivity, ratio, overlap, norm, com, com_aligned = by_width(lab, setting, measure)
    return Result(
        figures=(
            *by_width_figures("LEWC cosine, last layer", setting.widths, cosine),
            *by_width_figures("weak additivity (cosine)", setting.widths, additivity),
            *by_width_figures("reciprocal norm ratio", setting.widths, ratio),
            *by_width_figures("overlap of active units (Jaccard)", setting.widths, overlap),
            *by_width_figures("norm of the merged logits over the models'", setting.widths, norm),
            *by_width_figures("Dist_com, no permutation", setting.widths, com),
            *by_width_figures("Dist_com, weight matching", setting.widths, com_aligned),
        ),
        claims=(
            rises("LEWC's cosine of the last layer rises with width", cosine),
            falls_at_every_step(
                "and does so at every step (0.01 of slack)", [[-value for value in row] for row in cosine], 0.01
            ),
            falls("the crossed terms shrink: the reciprocal norm ratio falls with width", ratio),
            below(
                "at the widest, commutativity fails without permutation (Dist_com > 0.5)",
                [0.5] * len(com),
                [row[-1] for row in com],
            ),
            below("and holds with it (< 0.1)", [row[-1] for row in com_aligned], [0.1] * len(com)),
        ),
        charts=(
            by_width_chart("LEWC's cosine of the last layer", "cosine", setting.widths, {"no permutation": cosine}),
            by_width_chart(
                "commutativity",
                "Dist_com",
                setting.widths,
                {"no permutation": com, "weight matching": com_aligned},
            ),
            by_width_chart(
                "LEWC's conditions",
                "value",
                setting.widths,
                {"weak additivity": additivity, "reciprocal norm ratio": ratio, "overlap of active units": overlap},
            ),
        ),
    )
