"""The figure of an experiment, as one SVG file with a text alternative."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedrebasin.writing import write_text

from ..papers import Chart, Plane, Record
from .charts import COLOURS, PLAIN, described, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(record: Record, folder: Path) -> Path | None:
    """Write ``folder/NAME.svg``; its path, or None for an experiment without a chart."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    charts = record.result.charts
    if not charts:
        return None
    with matplotlib.rc_context(PLAIN):
        canvas = Canvas(figsize=(4.6 * len(charts) + 0.6, 3.6), layout="constrained")
        for axes, chart in zip(canvas.subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
            _panel(axes, chart)
        svg = drawn(canvas, salt=record.name)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{record.name}.svg"
    write_text(file, described(svg, record.title, _in_words(record)))
    return file


def _panel(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator

    if chart.plane is not None:
        _field(axes, chart.plane)
    for number, line in enumerate(chart.lines):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(line.x, line.y, "o-", color=colour, markersize=3.5, label=line.label)
        if line.spread:
            low = [y - s for y, s in zip(line.y, line.spread, strict=True)]
            high = [y + s for y, s in zip(line.y, line.spread, strict=True)]
            axes.fill_between(line.x, low, high, color=colour, alpha=0.15, linewidth=0)
    if chart.log_x:
        ticks = sorted({x for line in chart.lines for x in line.x})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    elif chart.lines and all(x.is_integer() for line in chart.lines for x in line.x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # layers and epochs
    axes.set_title(chart.title)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    if len(chart.lines) > 1:
        axes.legend(frameon=False, fontsize=8)


def _field(axes: Axes, plane: Plane) -> None:
    from matplotlib.patheffects import withStroke

    drawn = axes.contourf(plane.x, plane.y, plane.values, levels=16, cmap="cividis")
    axes.figure.colorbar(drawn, ax=axes)
    for label, x, y in plane.points:
        axes.plot(x, y, "o", color="white", markeredgecolor="black", markersize=6)
        outlined = [withStroke(linewidth=2, foreground="black")]
        axes.annotate(label, (x, y), (6, 6), textcoords="offset points", color="white", path_effects=outlined)
    axes.set_aspect("equal")


def _in_words(record: Record) -> str:
    said = []
    for chart in record.result.charts:
        said += [f"{chart.title}: {line.label} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in chart.lines]
        if chart.plane is not None:
            values = [value for row in chart.plane.values for value in row]
            said.append(f"{chart.title}: from {min(values):.3g} to {max(values):.3g}")
    return "; ".join(said) + "."
