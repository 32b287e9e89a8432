"""The figure of a path between two models: loss and accuracy before and after matching, as SVG and PNG."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedrebasin.analysis import Barrier
from fedrebasin.writing import write_text, written_atomically

from .charts import SETTINGS, STRATEGY_COLOUR, WARNING_COLOUR, described, drawn

LABELS = {"before": "as they are", "after": "B permuted to match A"}
COLOURS = {"before": WARNING_COLOUR, "after": STRATEGY_COLOUR}


def draw_paths(paths: Mapping[str, Barrier], folder: Path, names: tuple[str, str]) -> tuple[Path, Path]:
    """Write ``folder/barrier.svg`` and ``folder/barrier.png``, making the folder; their paths.

    Args:
        paths: ``before`` and ``after`` matching, or one of them.
        folder: where they go.
        names: of the models at both ends.

    Raises:
        OSError: if they cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    file, png = folder / "barrier.svg", folder / "barrier.png"
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(9.6, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        _panel(left, paths, "loss (nats)", lambda path: list(path.losses))
        _panel(right, paths, "accuracy (%)", lambda path: [100 * share for share in path.accuracies])
        left.legend(frameon=False)
        figure.suptitle(f"from A, {names[0]}, to B, {names[1]}")
        with written_atomically(png) as partial:
            figure.savefig(partial, dpi=160, format="png")
        svg = drawn(figure, salt="barrier")
    write_text(file, described(svg, f"Between {' and '.join(names)}", in_words(paths)))
    return file, png


def in_words(paths: Mapping[str, Barrier]) -> str:
    """The figure for those who cannot see it."""
    parts = [
        f"{LABELS[name]}: loss {path.losses[0]:.3f} at A, {path.losses[-1]:.3f} at B, at most {max(path.losses):.3f} "
        f"between them, where accuracy falls to {100 * min(path.accuracies):.1f} %"
        for name, path in paths.items()
    ]
    return "; ".join(parts) + "."


def _panel(axes: Any, paths: Mapping[str, Barrier], unit: str, values: Any) -> None:
    for name, path in paths.items():
        shown = [value if math.isfinite(value) else None for value in values(path)]
        axes.plot(path.lams, shown, "o-", markersize=3, linewidth=2, color=COLOURS[name], label=LABELS[name])
    axes.set_xlabel("position (0: A, 1: B)")
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
