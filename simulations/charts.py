"""The charts of the report, as SVG elements with text alternatives."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fedrebasin import Barrier

from .measure import REFERENCES, Row

STRATEGY_COLOUR, REFERENCE_COLOUR, WARNING_COLOUR = "#1b6ca8", "#9aa5b1", "#c8553d"
SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def accuracy_by_strategy(rows: Sequence[Row]) -> str:
    """Horizontal bars, the reference rows in grey."""
    with _figure(0.8 + 0.42 * len(rows)) as (figure, axes):
        names = [row.strategy for row in rows][::-1]
        values = [100 * row.figures.accuracy for row in rows][::-1]
        colours = [REFERENCE_COLOUR if name in REFERENCES else STRATEGY_COLOUR for name in names]
        bars = axes.barh(names, values, color=colours, height=0.7)
        axes.bar_label(bars, [f"{value:.1f} %" for value in values], padding=4)
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("accuracy on the test set (%)")
        spoken = ", ".join(f"{row.strategy} {100 * row.figures.accuracy:.1f} %" for row in rows)
        return _svg(figure, "Accuracy by strategy", f"Bars: {spoken}.")


def accuracy_by_round(rows: Sequence[Row]) -> str:
    """One line for each strategy."""
    with _figure(3.4) as (figure, axes):
        curves: dict[str, list[Row]] = {}
        for row in rows:
            if row.strategy not in REFERENCES:
                curves.setdefault(row.strategy, []).append(row)
        for name, curve in curves.items():
            axes.plot([row.round for row in curve], [100 * row.figures.accuracy for row in curve], "o-", label=name)
        axes.set_xlabel("round")
        axes.set_ylabel("accuracy (%)")
        axes.legend(frameon=False)
        spoken = "; ".join(
            f"{name} from {100 * curve[0].figures.accuracy:.1f} % to {100 * curve[-1].figures.accuracy:.1f} %"
            for name, curve in curves.items()
        )
        return _svg(figure, "Accuracy by round", f"Lines: {spoken}.")


def loss_along_path(paths: Mapping[str, Barrier]) -> str:
    """The loss between two clients, before and after the second one was aligned to the first."""
    labels = {"before": "as trained", "after": "second client permuted"}
    colours = {"before": WARNING_COLOUR, "after": STRATEGY_COLOUR}
    with _figure(3.6) as (figure, axes):
        for name, path in paths.items():
            shown = [loss if math.isfinite(loss) else None for loss in path.losses]
            axes.plot(path.lams, shown, color=colours[name], linewidth=2.2, label=labels[name])
        axes.set_xlabel("position between the clients (0: first, 1: second)")
        axes.set_ylabel("loss on the test set (nats)")
        highest = max(loss for path in paths.values() for loss in path.losses if math.isfinite(loss))
        axes.set_ylim(0, 1.08 * highest)
        axes.legend(frameon=False)
        spoken = "; ".join(
            f"{labels[name]}: {path.losses[0]:.2f} and {path.losses[-1]:.2f} at the ends, at most "
            f"{max(path.losses):.2f} between them"
            for name, path in paths.items()
        )
        return _svg(figure, "Loss along the line between two clients", f"Lines: {spoken}.")


@contextmanager
def _figure(height: float) -> Iterator[tuple[Any, Any]]:
    """A figure of the page's width and its axes; no display is needed and no global state is left behind."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(8, height), layout="constrained")
        yield figure, figure.subplots()


def _svg(figure: Any, title: str, description: str) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):  # the same ids every time, others in every chart
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    name = title.lower().replace(" ", "-")
    text = text[text.index("<svg") :].replace("figure_1", f"{name}-figure").replace("axes_1", f"{name}-axes")
    start = text.index(">") + 1
    head = text[:start].replace("<svg", f'<svg role="img" aria-labelledby="{name}-title {name}-text"', 1)
    spoken = (
        f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-text">{html.escape(description)}</desc>'
    )
    return head + spoken + text[start:]
