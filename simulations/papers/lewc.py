"""Experiments of LEWC ("Do We Really Need Permutations?", 2025): wide models merge as they are."""

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
from .pairs import Pair, by_width, width_chart, width_figures
from .recipe import Recipe
from .registry import Setting, experiment
from .result import Result, at, below, falls, falls_at_every_step, rises, times

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
        at(calibrated, -1),
        at(aligned, -1),
        "nats",
    )
    paper = TABLE_1.get(setting.recipe.model, ("", "", ""))
    lines = {"naive": naive, "naive, calibrated": calibrated, "matched, calibrated": aligned}
    return Result(
        figures=(
            *width_figures(setting, "naive calibrated barrier", calibrated, "nats", paper[0]),
            *width_figures(setting, "matched calibrated barrier", aligned, "nats", paper[1]),
            *width_figures(setting, "naive accuracy barrier", accuracy, "% points", paper[2]),
            *width_figures(setting, "naive barrier, not calibrated", naive, "nats"),
            *width_figures(setting, "beta of the naive average", betas),
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
                at(calibrated, -1),
                times(0.5, at(naive, -1)),
                "nats",
            ),
            falls("the accuracy lost by naive averaging falls with width", accuracy),
            *((overtaken,) if setting.recipe.model != "mlp" else ()),
        ),
        charts=(width_chart(setting, "barrier and width", "test loss barrier (nats)", lines),),
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
    conditions = {"weak additivity": additivity, "reciprocal norm ratio": ratio, "overlap of active units": overlap}
    return Result(
        figures=(
            *width_figures(setting, "LEWC cosine, last layer", cosine),
            *width_figures(setting, "weak additivity (cosine)", additivity),
            *width_figures(setting, "reciprocal norm ratio", ratio),
            *width_figures(setting, "overlap of active units (Jaccard)", overlap),
            *width_figures(setting, "norm of the merged logits over the models'", norm),
            *width_figures(setting, "Dist_com, no permutation", com),
            *width_figures(setting, "Dist_com, weight matching", com_aligned),
        ),
        claims=(
            rises("LEWC's cosine of the last layer rises with width", cosine),
            falls_at_every_step("and does so at every step (0.01 of slack)", [times(-1, row) for row in cosine], 0.01),
            falls("the crossed terms shrink: the reciprocal norm ratio falls with width", ratio),
            below("at the widest, commutativity fails without permutation (Dist_com > 0.5)", 0.5, at(com, -1)),
            below("and holds with it (< 0.1)", at(com_aligned, -1), 0.1),
        ),
        charts=(
            width_chart(setting, "LEWC's cosine of the last layer", "cosine", {"no permutation": cosine}),
            width_chart(setting, "commutativity", "Dist_com", {"no permutation": com, "weight matching": com_aligned}),
            width_chart(setting, "LEWC's conditions", "value", conditions),
        ),
    )
