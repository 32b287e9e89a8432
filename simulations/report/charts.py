"""The charts of the report, as SVG elements with text alternatives."""

import html
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

INK, LINES = "#1f2933", "#d9dee4"
STRATEGY_COLOUR, REFERENCE_COLOUR, WARNING_COLOUR = "#1b6ca8", "#9aa5b1", "#c8553d"
COLOURS = ("#1b6ca8", "#c8553d", "#588b3b", "#8c5aa8", "#b98a1d", "#4a5560", "#2aa198", "#d33682")
#: Of every figure: text stays text, and two sides of the frame are enough.
PLAIN: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
SETTINGS: Any = {
    **PLAIN,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#7b8794",
    "grid.color": LINES,
    "axes.axisbelow": True,
}
WIDTH = 8.6  # inches


@dataclass(frozen=True)
class Bar:
    """One bar, with the spread of its value where one is known."""

    name: str
    value: float
    spread: float | None = None
    colour: str = STRATEGY_COLOUR


@dataclass(frozen=True)
class Curve:
    """One line, with a band of its spread where one is known."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    colour: str | None = None


@dataclass(frozen=True)
class Panel:
    """One reliability diagram: accuracy by confidence, and how many examples stand behind each bar."""

    name: str
    confidence: Sequence[float]
    accuracy: Sequence[float]
    counts: Sequence[int]
    edges: Sequence[float]


def bars(title: str, axis: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars of percentages with their numbers beside them, the first one on top."""
    with _figure(0.9 + 0.4 * len(rows)) as (figure, axes):
        shown = list(rows)[::-1]
        spreads = [bar.spread or 0.0 for bar in shown]
        values = [bar.value for bar in shown]
        error = {"ecolor": INK, "capsize": 3, "elinewidth": 1.2}
        drawn = axes.barh(
            [bar.name for bar in shown],
            values,
            xerr=spreads if any(spreads) else None,
            color=[bar.colour for bar in shown],
            height=0.7,
            error_kw=error,
        )
        axes.bar_label(drawn, list(map(_in_percent, shown)), padding=5)
        axes.set(xlim=(0, 122), xticks=range(0, 101, 20), xlabel=axis)
        axes.tick_params(axis="y", length=0)
        spoken = ", ".join(f"{bar.name} {_in_percent(bar)}" for bar in rows)
        return _svg(figure, title, f"Bars: {spoken}.")


def curves(title: str, axes_names: tuple[str, str], lines: Sequence[Curve], from_zero: bool = False) -> str:
    """Lines with their bands; ``axes_names`` are those of x and y."""
    with _figure(3.8) as (figure, axes):
        for number, line in enumerate(lines):
            colour = line.colour or COLOURS[number % len(COLOURS)]
            marker = "o" if len(line.x) <= 12 else None
            axes.plot(line.x, line.y, color=colour, marker=marker, markersize=4, linewidth=2, label=line.name)
            if line.spread is not None and any(line.spread):
                low = [y - s for y, s in zip(line.y, line.spread, strict=True)]
                high = [y + s for y, s in zip(line.y, line.spread, strict=True)]
                axes.fill_between(line.x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.grid(axis="y")
        axes.set_xlabel(axes_names[0])
        axes.set_ylabel(axes_names[1])
        if from_zero:
            axes.set_ylim(bottom=0)
        places = sorted({x for line in lines for x in line.x})
        if len(places) <= 12:
            axes.set_xticks(places, [f"{place:g}" for place in places])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
        spoken = "; ".join(
            f"{line.name}: {line.y[0]:.3g} at {line.x[0]:g}, {line.y[-1]:.3g} at {line.x[-1]:g}, "
            f"at most {max(line.y):.3g}"
            for line in lines
        )
        return _svg(figure, title, f"Lines of {axes_names[1]} by {axes_names[0]}. {spoken}.")


def reliability(title: str, panels: Sequence[Panel]) -> str:
    """One square for each model: on the diagonal, confidence means what it says."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with _figure(2.5 * rows + 0.4, rows, columns) as (figure, grid):
        places = list(grid.flat) if len(panels) > 1 else [grid]
        for axes, panel in zip(places, panels, strict=False):
            width = panel.edges[1] - panel.edges[0]
            largest = max(panel.counts, default=1)
            for left, accuracy, count in zip(panel.edges, panel.accuracy, panel.counts, strict=False):
                if count:
                    strength = 0.25 + 0.75 * count / largest
                    axes.bar(left + width / 2, accuracy, width=0.92 * width, color=STRATEGY_COLOUR, alpha=strength)
            axes.plot([0, 1], [0, 1], color=WARNING_COLOUR, linewidth=1.2, linestyle="--")
            axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            axes.set_title(folded(panel.name, 18), fontsize=10)
        for axes in places[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel("confidence", fontsize=11)
        figure.supylabel("share that is correct", fontsize=11)
        spoken = "; ".join(f"{panel.name}: {_lean(panel)}" for panel in panels)
        return _svg(figure, title, f"Diagrams of accuracy by confidence. {spoken}.")


def stacked(title: str, axis: str, names: Sequence[str], parts: Sequence[Sequence[int]]) -> str:
    """Horizontal bars that are put together from parts (columns), one bar a name."""
    import matplotlib

    with _figure(1.1 + 0.34 * len(names)) as (figure, axes):
        scale = matplotlib.colormaps["tab20"]
        left = [0] * len(names)
        for part in range(len(parts[0])):
            widths = [row[part] for row in parts][::-1]
            axes.barh(names[::-1], widths, left=left, color=scale(part % 20), height=0.75, label=str(part))
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_xlabel(axis)
        axes.tick_params(axis="y", length=0)
        if len(parts[0]) <= 20:
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper left", ncols=10, frameon=False, handlelength=0.9)
        spoken = "; ".join(
            f"{name}: {sum(row)} in {sum(map(bool, row))} classes" for name, row in zip(names, parts, strict=True)
        )
        return _svg(figure, title, f"Bars. {spoken}.")


def folded(name: str, letters: int) -> str:
    """A strategy's name in lines of at most this many letters, cut before a + only."""
    lines = [""]
    for part in name.split("+"):
        joined = f"{lines[-1]}+{part}" if lines[-1] else part
        lines = [*lines[:-1], joined] if len(joined) <= letters else [*lines, f"+{part}"]
    return "\n".join(line for line in lines if line)


def drawn(figure: Any, salt: str, transparent: bool = False) -> str:
    """A matplotlib figure as an SVG element, the same every time.

    Args:
        figure: to draw, inside the settings that it was made with.
        salt: figures with the same one get the same ids.
        transparent: whether the page's background shows through.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=transparent)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def described(svg: str, title: str, description: str, prefix: str = "") -> str:
    """An SVG element with a title and a description for those who cannot see it.

    Args:
        svg: beginning with its tag, see :func:`drawn`.
        title: what it shows.
        description: what can be seen in it.
        prefix: of both ids, which differ on a page with several figures.
    """
    ids = f"{prefix}title", f"{prefix}text"
    start = svg.index(">") + 1
    head = svg[:start].replace("<svg", f'<svg role="img" aria-labelledby="{" ".join(ids)}"', 1)
    texts = f'<title id="{ids[0]}">{html.escape(title)}</title><desc id="{ids[1]}">{html.escape(description)}</desc>'
    return head + texts + svg[start:]


def _in_percent(bar: Bar) -> str:
    spread = "" if bar.spread is None else f" ± {bar.spread:.1f}"
    return f"{bar.value:.1f}{spread} %"


def _lean(panel: Panel) -> str:
    """Whether a model is too sure of itself, by the mean gap over all examples."""
    total = sum(panel.counts)
    gaps = zip(panel.counts, panel.accuracy, panel.confidence, strict=True)
    gap = sum(count * (accuracy - sure) for count, accuracy, sure in gaps if count) / max(total, 1)
    if abs(gap) < 0.01:
        return "confidence and accuracy agree to a point"
    return f"{100 * abs(gap):.0f} points {'less' if gap > 0 else 'more'} confident than accurate"


@contextmanager
def _figure(height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple[Any, Any]]:
    """A figure of the page's width and its axes; no display is needed and no global state is left behind."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.subplots(rows, columns)


def _svg(figure: Any, title: str, description: str) -> str:
    """A chart for a page that has others: all of its ids begin with its title."""
    prefix = "".join(letter if letter.isalnum() else "-" for letter in title.lower()) + "-"
    text = drawn(figure, salt=title, transparent=True)
    for reference in ('id="', "url(#", 'href="#'):
        text = text.replace(reference, reference + prefix)
    return described(text, title, description, prefix)
