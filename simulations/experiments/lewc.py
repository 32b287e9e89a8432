"""Experiments of LEWC ("Do We Really Need Permutations?", 2025): wide models merge as they are."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean

from fedrebasin import (
    active_overlap,
    commutativity,
    evaluate,
    feature_connectivity,
    reciprocal_orthogonality,
    weak_additivity,
)

from .lab import Lab, halfway
from .pairs import Pair, by_width
from .recipe import Recipe
from .registry import Setting, experiment
from .result import Chart, Claim, Figure, Result, curve

WIDE = Setting(recipe=Recipe(), widths=(32, 128, 512), points=3)
PAPER = Setting(recipe=Recipe("mnist", epochs=100), widths=(128, 512, 2048, 8192), points=25)


def _rises(rows: tuple[tuple[float, ...], ...], by: float = 0.0) -> tuple[bool, ...]:
    return tuple(row[-1] > row[0] + by for row in rows)


def _by_width(title: str, y: str, setting: Setting, lines: dict[str, tuple[tuple[float, ...], ...]]) -> Chart:
    drawn = tuple(curve(label, setting.widths, rows) for label, rows in lines.items())
    return Chart(title, "hidden units", y, drawn, log_x=True)


def _ends(name: str, setting: Setting, rows: tuple[tuple[float, ...], ...], unit: str = "") -> tuple[Figure, ...]:
    return tuple(
        Figure(f"{name}, width {width:g}", tuple(row[i] for row in rows), "", unit)
        for i, width in enumerate(setting.widths)
    )


@experiment(
    "lewc-width",
    "LEWC, Table 1 and Figures 1 and 2",
    "Without permutation the calibrated barrier falls with width",
    WIDE,
    PAPER,
)
def width(lab: Lab, setting: Setting) -> Result:
    """Naive and matched barriers, plain and calibrated, and the accuracy of the naive average."""

    def measure(p: Pair) -> tuple[float, ...]:
        ends = fmean(evaluate(p.model, state, p.test).accuracy for state in (p.a, p.b))
        middle = evaluate(p.model, halfway(p.a, p.b), p.test).accuracy
        return (
            p.barrier(p.b, setting.points).value,
            p.barrier(p.b, setting.points, calibrated=True).value,
            p.barrier(p.aligned, setting.points, calibrated=True).value,
            100 * (ends - middle),
        )

    naive, calibrated, aligned, accuracy = by_width(lab, setting, measure)
    wide = f"{setting.widths[-1]:g}"
    return Result(
        figures=(
            *_ends("naive calibrated barrier", setting, calibrated, "nats"),
            Figure(
                f"naive barrier, width {wide}", tuple(row[-1] for row in naive), "0.013 (MLP 16x, calibrated)", "nats"
            ),
            Figure(f"matched calibrated barrier, width {wide}", tuple(row[-1] for row in aligned), "-0.003", "nats"),
            Figure(f"naive accuracy barrier, width {wide}", tuple(row[-1] for row in accuracy), "0.519", "% points"),
        ),
        claims=(
            Claim(
                "the naive calibrated barrier falls with width, by half or more from the narrowest to the widest",
                tuple(row[-1] < 0.5 * row[0] for row in calibrated),
            ),
            Claim(
                "at the widest, calibration removes at least half of the naive barrier",
                tuple(c[-1] < 0.5 * n[-1] for c, n in zip(calibrated, naive, strict=True)),
            ),
            Claim("the accuracy lost by naive averaging falls with width", tuple(r[-1] < r[0] for r in accuracy)),
        ),
        charts=(
            _by_width(
                "barrier and width",
                "test loss barrier (nats)",
                setting,
                {"naive": naive, "naive, calibrated": calibrated, "matched, calibrated": aligned},
            ),
        ),
        notes="The paper's widest MLP is 16 times 512 wide, on MNIST.",
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
            *_ends("LEWC cosine, last layer", setting, cosine),
            *_ends("weak additivity (cosine)", setting, additivity),
            *_ends("reciprocal norm ratio", setting, ratio),
            *_ends("overlap of active units (Jaccard)", setting, overlap),
            *_ends("norm of the merged logits over the models'", setting, norm),
            *_ends("Dist_com, no permutation", setting, com),
            *_ends("Dist_com, weight matching", setting, com_aligned),
        ),
        claims=(
            Claim("LEWC's cosine of the last layer rises with width", _rises(cosine)),
            Claim(
                "and does so at every step (0.01 of slack)",
                tuple(all(y >= x - 0.01 for x, y in pairwise(row)) for row in cosine),
            ),
            Claim(
                "the crossed terms shrink: the reciprocal norm ratio falls with width",
                tuple(r[-1] < r[0] for r in ratio),
            ),
            Claim(
                "at the widest, commutativity fails without permutation (Dist_com > 0.5) and holds with it (< 0.1)",
                tuple(x[-1] > 0.5 and y[-1] < 0.1 for x, y in zip(com, com_aligned, strict=True)),
            ),
        ),
        charts=(
            _by_width("LEWC's cosine of the last layer", "cosine", setting, {"no permutation": cosine}),
            _by_width(
                "commutativity",
                "Dist_com",
                setting,
                {"no permutation": com, "weight matching": com_aligned},
            ),
            _by_width(
                "LEWC's conditions",
                "value",
                setting,
                {"weak additivity": additivity, "reciprocal norm ratio": ratio, "overlap of active units": overlap},
            ),
        ),
    )
