"""picture.svg: a comparison in three panels: what alignment does, what happens between two clients, what comes out."""

import math
from pathlib import Path
from typing import Any

from fedrebasin.writing import write_text

from .charts import COLOURS, INK, REFERENCE_COLOUR, SETTINGS, STRATEGY_COLOUR, WARNING_COLOUR, described, drawn, folded
from .study import Setting, Study

#: The order of the second network's units in the first panel; its inverse is what the permutation undoes.
ORDER = (2, 0, 3, 1)
FILE = "picture.svg"


def write_picture(folder: Path, study: Study) -> Path | None:
    """Write ``folder/picture.svg`` for the study's first setting; its path, or None if there is no path to show.

    Raises:
        OSError: if it cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    setting = study.settings[0]
    if not setting.comparisons[0].paths:
        return None
    with matplotlib.rc_context(SETTINGS | {"svg.fonttype": "path", "font.size": 10}):
        figure = Figure(figsize=(12.5, 3.8), layout="constrained", facecolor="white")
        panels: Any = figure.subfigures(1, 3, width_ratios=(1, 1, 1.25), wspace=0.05)
        units, path, accuracy = panels
        _units(units)
        _path(path, setting)
        _accuracy(accuracy, setting)
        svg = drawn(figure, salt=FILE)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE
    write_text(file, described(svg, "Permute, then average", _in_words(setting), "picture-"))
    return file


def _titled(panel: Any, title: str) -> Any:
    panel.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold")
    return panel.subplots()


def _units(panel: Any) -> None:
    """Two networks with the same units in other places; above as trained, below with the second one permuted."""
    axes = _titled(panel, "1  Bring the units into one order")
    axes.set(xlim=(-0.6, 11.8), ylim=(-0.75, 3.3))
    axes.axis("off")
    in_order = range(len(ORDER))
    for height, order, label, verdict in (
        (2.2, ORDER, "client B as trained", "blurred"),
        (0.4, in_order, "client B permuted", "adds up"),
    ):
        average = [COLOURS[unit] if order is in_order else REFERENCE_COLOUR for unit in in_order]
        networks = (
            (0.0, [COLOURS[unit] for unit in in_order], "client A"),
            (4.4, [COLOURS[unit] for unit in order], label),
            (8.8, average, verdict),
        )
        for left, colours, name in networks:
            places = [left + 0.75 * place for place in in_order]
            axes.scatter(places, [height] * len(places), s=230, color=colours, edgecolor="white")
            axes.text(left + 1.12, height - 0.62, name.replace(" B ", " B\n"), ha="center", va="top", fontsize=10)
        axes.text(3.32, height, "+", ha="center", va="center", fontsize=17)
        axes.text(7.72, height, "=", ha="center", va="center", fontsize=17)


def _path(panel: Any, setting: Setting) -> None:
    axes = _titled(panel, "2  The loss between two clients")
    paths = setting.comparisons[0].paths
    for name, label, colour in (("before", "as trained", WARNING_COLOUR), ("after", "permuted", STRATEGY_COLOUR)):
        losses = [loss if math.isfinite(loss) else None for loss in paths[name].losses]
        axes.plot(paths[name].lams, losses, color=colour, linewidth=2.4, label=label)
    axes.set_xticks((0, 0.5, 1), ("client A", "average", "client B"))
    axes.set_ylabel("loss on the test set")
    axes.set_ylim(bottom=0)
    panel.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)


def _accuracy(panel: Any, setting: Setting) -> None:
    config = setting.config
    rounds = "one round" if config.rounds == 1 else f"{config.rounds} rounds"
    axes = _titled(panel, f"3  What {config.clients} clients make in {rounds}")
    summaries = setting.summaries[::-1]
    values = [100 * summary.figures.accuracy for summary in summaries]
    colours = [REFERENCE_COLOUR if summary.is_reference else STRATEGY_COLOUR for summary in summaries]
    bars = axes.barh([folded(summary.strategy, 20) for summary in summaries], values, color=colours, height=0.72)
    axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=4, color=INK)
    axes.set(xlim=(0, 116), xticks=(0, 50, 100), xlabel="accuracy (%)")
    axes.tick_params(axis="y", length=0)


def _in_words(setting: Setting) -> str:
    paths = setting.comparisons[0].paths
    values = ", ".join(f"{one.strategy} {100 * one.figures.accuracy:.1f} %" for one in setting.summaries)
    return (
        "Clients learn the same units in other places; averaged as they are these blur, permuted into one order they "
        f"add up. Between two clients the loss rises by {paths['before'].value:.2f} as trained and by "
        f"{max(paths['after'].value, 0):.2f} permuted. Accuracies: {values}."
    )
