"""The figure of two checkpoints layer by layer: how similar they are before and after matching, as SVG and PNG."""

from collections.abc import Sequence
from pathlib import Path

from fedrebasin.writing import write_text, written_atomically

from .charts import SETTINGS, described, drawn
from .path_figure import COLOURS, LABELS

_MOST = 60


def draw_difference(
    layers: Sequence[tuple[str, float, float]], folder: Path, names: tuple[str, str]
) -> tuple[Path, Path]:
    """Write ``folder/diff.svg`` and ``folder/diff.png``, making the folder; their paths.

    Args:
        layers: their names, and the similarities as they are and matched; of more than 60 the least similar are drawn.
        folder: where they go.
        names: of the models.

    Raises:
        OSError: if they cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    file, png = folder / "diff.svg", folder / "diff.png"
    least = {name for name, *_ in sorted(layers, key=lambda row: row[2])[:_MOST]}
    shown = [row for row in layers if row[0] in least]
    places = range(len(shown))
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(9.6, 1.4 + 0.24 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for column, which in ((1, "before"), (2, "after")):
            values = [row[column] for row in shown]
            axes.plot(values, places, "o", markersize=5, color=COLOURS[which], label=LABELS[which])
        axes.hlines(places, [row[1] for row in shown], [row[2] for row in shown], color="0.8", linewidth=1, zorder=0)
        axes.set_yticks(list(places), [row[0] for row in shown])
        axes.invert_yaxis()
        axes.set_xlabel("similarity (cosine)")
        axes.legend(frameon=False)
        figure.suptitle(f"{names[0]} (A) and {names[1]} (B)")
        with written_atomically(png) as partial:
            figure.savefig(partial, dpi=160, format="png")
        svg = drawn(figure, salt="diff")
    words = "; ".join(
        f"{name}: similarity {before:.3f} as they are, {after:.3f} matched" for name, before, after in shown
    )
    write_text(file, described(svg, f"{names[0]} and {names[1]}, layer by layer", words + "."))
    return file, png
