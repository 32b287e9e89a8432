"""report.html: a comparison as one page that needs nothing but itself."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import fedrebasin

from .charts import accuracy_by_round, accuracy_by_strategy, loss_along_path
from .compare import Comparison
from .measure import REFERENCES, Row
from .results import write_results

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; } .scroll { overflow-x: auto; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid #d9dee4; }
td { font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } tr.best { font-weight: 700; background: #e8f1f8; }
tr.reference { color: #52606d; } tr.first-reference td { border-top: 2px solid #7b8794; }
svg { width: 100%; height: auto; } dt { font-weight: 600; } dd { margin: 0 0 .4rem; } footer { color: #52606d; }
"""

COLUMNS = ("", "accuracy", "loss", "calibrated loss", "beta", "ECE", "server seconds")


def write_report(folder: Path, comparison: Comparison) -> tuple[Path, Path]:
    """Write ``results.json`` and ``report.html`` into the folder, making it; the two paths.

    Raises:
        OSError: if they cannot be written.
    """
    results = write_results(folder, comparison.config, comparison.rows, comparison.paths)
    report = folder / "report.html"
    report.write_text(render(comparison), encoding="utf-8")
    return results, report


def render(comparison: Comparison) -> str:
    """The page: the question, the answer in words, the table, the charts, the data split, what was run."""
    rows = comparison.final_rows
    sections = [
        "<h1>Can these clients' models be averaged?</h1>",
        f"<p>{html.escape(in_words(comparison))}</p>",
        f"<h2>The table</h2>{_table(rows)}",
        f"<p>{html.escape(LEGEND)}</p>",
        f"<h2>Accuracy by strategy</h2>{accuracy_by_strategy(rows)}",
    ]
    if comparison.config.rounds > 1:
        sections.append(f"<h2>Accuracy by round</h2>{accuracy_by_round(comparison.rows)}")
    if comparison.paths:
        sections.append(f"<h2>Loss on the line between two clients</h2>{loss_along_path(comparison.paths)}")
    sections += [
        f"<h2>What each client trained on</h2>{_split_table(comparison)}",
        f"<h2>What was run</h2>{_settings(comparison)}",
    ]
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>fedrebasin: {html.escape(', '.join(comparison.strategies))}</title>\n<style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n<footer>fedrebasin {fedrebasin.__version__}</footer>\n</body></html>\n"
    )


LEGEND = (
    "Every figure is taken on 80 % of the test set; beta, the inverse temperature of the calibrated loss, is fitted on "
    "the other 20 %. The grey rows are references: the clients on their own after their first local training, the "
    "ensemble that averages their probabilities, and one model trained on all the data for as many epochs. What "
    "follows a + in a strategy's name works with sums that the clients send. ECE is the expected calibration error."
)


def in_words(comparison: Comparison) -> str:
    """What the numbers say, in plain words."""
    config = comparison.config
    start = "each from its own initialisation" if config.init == "independent" else "all from the same initialisation"
    rows = [row for row in comparison.final_rows if row.strategy not in REFERENCES]
    best = best_row(rows)
    client = comparison.row("mean-client").figures.accuracy
    words = [
        f"{config.clients} clients trained models ({config.model}) on their parts of {config.dataset}, {start}.",
        f"On its own a client classifies {_percent(client)} of the test set correctly.",
    ]
    words += [f"{row.strategy} gives a model with {_percent(row.figures.accuracy)}." for row in rows if row != best]
    words.append(f"The best merge is {best.strategy} with {_percent(best.figures.accuracy)}.")
    if comparison.paths:
        before, after = comparison.paths["before"], comparison.paths["after"]
        words.append(
            f"Between two clients lies a loss barrier of {before.value:.2f} nats; once the units of one are "
            f"permuted to match the other's, {max(after.value, 0):.2f} nats of it are left."
        )
    return " ".join(words)


def best_row(rows: Sequence[Row]) -> Row:
    """The most accurate row; among equals the one with the lowest loss."""
    return max(rows, key=lambda row: (row.figures.accuracy, -row.figures.loss))


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, in the order of ``COLUMNS``; the references take the server no time."""
    figures = row.figures
    numbers = (figures.loss, figures.calibrated_loss, figures.beta, figures.ece)
    shown = (f"{number:.3f}" if math.isfinite(number) else "not finite" for number in numbers)
    return (
        row.strategy,
        _percent(figures.accuracy),
        *shown,
        "" if row.strategy in REFERENCES else f"{row.seconds:.2f}",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(rows: Sequence[Row]) -> str:
    best = best_row([row for row in rows if row.strategy not in REFERENCES])
    lines = []
    for row in rows:
        kinds = ["best"] if row == best else []
        if row.strategy in REFERENCES:
            kinds.append("reference")
        if row.strategy == REFERENCES[0]:
            kinds.append("first-reference")
        lines.append(_line(cells(row), " ".join(kinds)))
    return _scrolling(COLUMNS, lines)


def _split_table(comparison: Comparison) -> str:
    classes = range(len(comparison.label_counts[0]))
    lines = [
        _line((f"client {client}", *map(str, counts), str(sum(counts))))
        for client, counts in enumerate(comparison.label_counts)
    ]
    return _scrolling(("examples of class", *map(str, classes), "all"), lines)


def _line(texts: Iterable[str], kinds: str = "") -> str:
    columns = "".join(f"<td>{html.escape(text)}</td>" for text in texts)
    return f'<tr class="{kinds}">{columns}</tr>' if kinds else f"<tr>{columns}</tr>"


def _scrolling(head: Sequence[str], lines: Sequence[str]) -> str:
    titles = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in head)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _settings(comparison: Comparison) -> str:
    shown = {key.replace("_", "-"): value for key, value in asdict(comparison.config).items() if value != ""}
    settings = ", ".join(f"{key} {value}" for key, value in shown.items())
    return f"<p>{html.escape(settings)}.</p><p>It took {comparison.seconds:.0f} seconds.</p>"
