"""A study as a table of text: what the command prints and the report shows."""

import math

from .study import Study, Summary

COLUMNS = ("accuracy", "loss", "calibrated loss", "beta", "ECE", "server seconds")

LEGEND = (
    "Every figure is taken on 80 % of the test set; beta, the inverse temperature of the calibrated loss, is fitted on "
    "the other 20 %. The grey rows are references: the clients on their own after their first local training, the "
    "ensemble that averages their probabilities, and one model trained on all the data for as many epochs as a client "
    "in one round. What follows a + in a strategy's name works with sums that the clients send. ECE is the expected "
    "calibration error. Server seconds are those of the last round's aggregation."
)


def spread_in_words(study: Study) -> str:
    """What stands behind a ±, or the empty text where there is none."""
    counts = {len(setting.comparisons) for setting in study.settings}
    if counts == {1}:
        return ""
    seeds = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return f"Mean ± sample standard deviation over {seeds} seeds."


def cells(summary: Summary) -> tuple[str, ...]:
    """A summary as text, in the order of ``COLUMNS``; the references take the server no time."""
    figures, deviation = summary.figures, summary.deviation
    numbers = [number(100 * figures.accuracy, 1, None if deviation is None else 100 * deviation.accuracy) + " %"]
    for name in ("loss", "calibrated_loss", "beta", "ece"):
        numbers.append(number(getattr(figures, name), 3, None if deviation is None else getattr(deviation, name)))
    return (*numbers, "" if summary.is_reference else f"{summary.seconds:.2f}")


def number(value: float, digits: int, deviation: float | None = None) -> str:
    """A number with its spread: ``95.8 ± 0.4``."""
    if not math.isfinite(value):
        return "not finite"
    spread = f" ± {deviation:.{digits}f}" if deviation is not None and math.isfinite(deviation) else ""
    return f"{value:.{digits}f}{spread}"
