"""Which charts a study gets, and the numbers in them."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from statistics import fmean, stdev

from fedrebasin.analysis import Barrier

from .charts import (
    COLOURS,
    REFERENCE_COLOUR,
    STRATEGY_COLOUR,
    WARNING_COLOUR,
    Bar,
    Curve,
    Panel,
    bars,
    curves,
    reliability,
    stacked,
)
from .figures import REFERENCES, Row
from .study import Setting, Study, shown

PATHS = {"before": ("as trained", WARNING_COLOUR), "after": ("second client permuted", STRATEGY_COLOUR)}


def accuracy_by_strategy(setting: Setting) -> str:
    """Bars, the reference rows in grey."""
    rows = [
        Bar(
            summary.strategy,
            100 * summary.figures.accuracy,
            None if summary.deviation is None else 100 * summary.deviation.accuracy,
            REFERENCE_COLOUR if summary.is_reference else STRATEGY_COLOUR,
        )
        for summary in setting.summaries
    ]
    return bars(_title("Accuracy by strategy", setting), "accuracy on the test set (%)", rows)


def accuracy_by_option(study: Study) -> str:
    """One line a strategy over the one option that varies, if it is a number; else nothing."""
    values = {setting.options[name] for setting in study.settings for name in study.varying}
    if len(study.varying) != 1 or len(values) < 2 or not all(isinstance(value, int | float) for value in values):
        return ""
    option = study.varying[0]
    lines = []
    settings = sorted(study.settings, key=lambda setting: float(setting.options[option]))
    for number, name in enumerate((*study.strategies, "mean-client")):
        points = [
            (float(setting.options[option]), summary)
            for setting in settings
            for summary in setting.summaries
            if summary.strategy == name
        ]
        if points:
            spread = [100 * one.deviation.accuracy if one.deviation else 0.0 for _, one in points]
            accuracy = [100 * one.figures.accuracy for _, one in points]
            colour = REFERENCE_COLOUR if name in REFERENCES else COLOURS[number % len(COLOURS)]
            lines.append(Curve(name, [x for x, _ in points], accuracy, spread, colour))
    axis = option.replace("_", "-")
    return curves(f"Accuracy by {axis}", (axis, "accuracy (%)"), lines)


def accuracy_by_round(setting: Setting) -> str:
    """One line a strategy; nothing for one round."""
    if setting.config.rounds == 1:
        return ""
    lines = []
    for name in dict.fromkeys(name for comparison in setting.comparisons for name in comparison.strategies):
        by_round: dict[int, list[float]] = {}
        for row in _rows(setting, name):
            by_round.setdefault(row.round, []).append(100 * row.figures.accuracy)
        rounds = sorted(by_round)
        means, spreads = _means([by_round[number] for number in rounds])
        lines.append(Curve(name, rounds, means, spreads))
    return curves(_title("Accuracy by round", setting), ("round", "accuracy (%)"), lines)


def loss_along_path(setting: Setting) -> str:
    """The loss between two clients, before and after the second one was aligned to the first, mean over seeds."""
    lines = []
    for name, (label, colour) in PATHS.items():
        paths: list[Barrier] = [one.paths[name] for one in setting.comparisons if name in one.paths]
        if paths:
            columns = list(zip(*(path.losses for path in paths), strict=True))
            kept = [(lam, column) for lam, column in zip(paths[0].lams, columns, strict=True) if _finite(column)]
            means, spreads = _means([column for _, column in kept])
            lines.append(Curve(label, [lam for lam, _ in kept], means, spreads, colour))
    axes = ("position between the clients (0: first, 1: second)", "loss on the test set (nats)")
    return curves(_title("Loss along the line between two clients", setting), axes, lines, True) if lines else ""


def reliability_diagrams(setting: Setting) -> str:
    """One diagram for each strategy and reference, the examples of all seeds together."""
    panels = []
    for summary in setting.summaries:
        rows = [row for row in _rows(setting, summary.strategy) if row.reliability]
        if rows:
            panels.append(_panel(summary.strategy, rows))
    return reliability(_title("Reliability", setting), panels) if panels else ""


def units_moved(setting: Setting) -> str:
    """By layer, the share of units that changed place, one line a strategy that aligns; nothing without any."""
    lines, groups = [], []
    for summary in setting.summaries:
        rows = [row for row in _rows(setting, summary.strategy) if row.moved]
        if rows:
            groups = list(rows[0].moved)
            means, spreads = _means([[100 * row.moved[group] for row in rows] for group in groups])
            lines.append(Curve(summary.strategy, range(1, len(groups) + 1), means, spreads))
    if not lines:
        return ""
    return curves(
        _title("Units moved by layer", setting), ("group of units, from the input on", "units moved (%)"), lines, True
    )


def groups_of(setting: Setting) -> list[str]:
    """The names of the groups of units, in the order of the chart."""
    for comparison in setting.comparisons:
        for row in comparison.final_rows:
            if row.moved:
                return list(row.moved)
    return []


def data_split(setting: Setting) -> str:
    """The classes that each client of the first seed trained on."""
    counts = setting.comparisons[0].label_counts
    if not counts:
        return ""
    names = [f"client {client}" for client in range(len(counts))]
    return stacked(_title("Training examples by client and class", setting), "training examples", names, counts)


def common_options(study: Study) -> list[tuple[str, str]]:
    """The options that all comparisons agree in, and the seeds, as on the command line."""
    first = asdict(study.comparisons[0].config)
    seeds = dict.fromkeys(str(comparison.config.seed) for comparison in study.comparisons)
    common = [
        (name.replace("_", "-"), shown(value))
        for name, value in first.items()
        if name != "seed" and name not in study.varying and value != ""
    ]
    return [*common, ("seed" if len(seeds) == 1 else "seeds", ", ".join(seeds))]


def _title(title: str, setting: Setting) -> str:
    return f"{title}, {setting.label}" if setting.label else title


def _rows(setting: Setting, name: str) -> list[Row]:
    return [row for comparison in setting.comparisons for row in comparison.rows if row.strategy == name]


def _panel(name: str, rows: Sequence[Row]) -> Panel:
    bins = [[row.reliability[place] for row in rows] for place in range(len(rows[0].reliability))]
    counts = [sum(one.count for one in column) for column in bins]

    def pooled(value: Callable[[int, int], float | None]) -> list[float]:
        sums = (
            sum(one.count * (value(place, seed) or 0.0) for seed, one in enumerate(column))
            for place, column in enumerate(bins)
        )
        return [total / count if count else 0.0 for total, count in zip(sums, counts, strict=True)]

    return Panel(
        name,
        confidence=pooled(lambda place, seed: bins[place][seed].confidence),
        accuracy=pooled(lambda place, seed: bins[place][seed].accuracy),
        counts=counts,
        edges=[place / len(bins) for place in range(len(bins) + 1)],
    )


def _means(columns: Iterable[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Mean and sample standard deviation of each column; the latter is 0 for a single number."""
    columns = list(columns)
    return [fmean(column) for column in columns], [stdev(column) if len(column) > 1 else 0.0 for column in columns]


def _finite(column: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in column)
