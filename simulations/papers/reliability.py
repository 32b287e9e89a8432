"""Curves of reliability diagrams: accuracy against confidence (Git Re-Basin, Figures 11 and 13)."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from torch import Tensor

from fedrebasin.calibration import reliability_bins

from .result import Chart, Line

BINS = 10
Predictions = tuple[Tensor, Tensor]


def calibration_error(predictions: Predictions) -> float:
    """The expected calibration error of logits and labels, in percent points."""
    return 100 * reliability_bins(*predictions, BINS).expected_calibration_error


def reliability_chart(title: str, by_name: Mapping[str, Sequence[Predictions]]) -> Chart:
    """Accuracy in bins of confidence, means over the seeds; bins that are empty in a seed are left out of its mean.

    Args:
        title: of the panel.
        by_name: for each model its logits and labels, one pair for each seed.
    """
    lines = [Line("perfectly calibrated", (0.0, 1.0), (0.0, 1.0))]
    for name, seeds in by_name.items():
        found = [reliability_bins(logits, labels, BINS) for logits, labels in seeds]
        points = []
        for at in range(BINS):
            filled = [bins for bins in found if int(bins.counts[at])]
            sides = [bins.confidence for bins in filled], [bins.accuracy for bins in filled]
            if filled:
                points.append([fmean(float(each[at]) for each in side) for side in sides])
        if points:
            lines.append(Line(name, *map(tuple, zip(*points, strict=True))))
    return Chart(title, "confidence", "accuracy", tuple(lines))
