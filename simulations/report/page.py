"""report.html: a study, or an experiment, as one page that needs nothing but itself."""

import math
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import fedrebasin
from fedrebasin.writing import write_text

from ..papers import Record
from . import study_charts as charts
from .experiment_figure import draw
from .results import write_results
from .sentences import experiment_in_words, in_words, question
from .study import Setting, Study, shown
from .table import COLUMNS, LEGEND, cells, spread_in_words

TEMPLATES = Path(__file__).parent / "templates"


def write_report(folder: Path, study: Study) -> tuple[Path, Path]:
    """Write ``results.json`` and ``report.html`` into the folder, making it; the two paths.

    Raises:
        OSError: if they cannot be written.
    """
    return write_results(folder, study), write_page(folder, study)


def write_page(folder: Path, study: Study) -> Path:
    """Write ``report.html`` alone, making the folder; its path.

    Raises:
        OSError: if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "report.html"
    write_text(report, render(study))
    return report


def render(study: Study) -> str:
    """The page: the question, the answer in words, the table, the charts, the data split, what was run."""
    settings = study.settings
    return _page(
        "study.html",
        title=f"fedrebasin: {', '.join(study.strategies)}",
        question=question(study),
        words=in_words(study),
        varying=[name.replace("_", "-") for name in study.varying],
        columns=COLUMNS,
        lines=list(_lines(settings)),
        spread=spread_in_words(study),
        legend=LEGEND,
        by_option=Markup(charts.accuracy_by_option(study)),
        settings=[_charts(setting) for setting in settings],
        command=study.command,
        facts=_facts(study),
    )


def write_experiment(folder: Path, record: Record, command: str = "") -> Path:
    """Write ``folder/NAME.html``: numbers beside the paper's, claims, the figure; its path.

    Raises:
        OSError: if it cannot be written.
    """
    drawn = draw(record, folder)
    facts = [
        ("data", record.setting["recipe"]["dataset"]),
        ("scale", record.scale),
        ("seeds", ", ".join(map(str, record.setting["seeds"]))),
        ("device", record.device),
        ("time", f"{record.seconds:.0f} s, {record.cpu_seconds:.0f} s of CPU"),
    ]
    page = _page(
        "experiment.html",
        title=f"fedrebasin: {record.title}",
        record=record,
        words=experiment_in_words(record),
        figure=Markup("") if drawn is None else Markup(drawn.read_text(encoding="utf-8")),
        command=command,
        facts=facts,
    )
    report = folder / f"{record.name}.html"
    write_text(report, page)
    return report


def _page(template: str, **content: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(version=fedrebasin.__version__, **content) + "\n"


def _lines(settings: tuple[Setting, ...]) -> Iterator[dict[str, Any]]:
    for setting in settings:
        for summary in setting.summaries:
            values = (*astuple(summary.figures), math.nan if summary.is_reference else summary.seconds)
            yield {
                "options": [shown(value) for value in setting.options.values()],
                "strategy": summary.strategy,
                "kind": "best" if summary.best else "reference" if summary.is_reference else "",
                "cells": [_cell(text, value) for text, value in zip(cells(summary), values, strict=True)],
            }


def _cell(text: str, value: float) -> dict[str, Any]:
    mean, sign, spread = text.partition(" ±")
    return {"mean": mean, "spread": sign.strip() + spread, "value": value if math.isfinite(value) else ""}


def _charts(setting: Setting) -> dict[str, Any]:
    return {
        "label": setting.label,
        "accuracy": Markup(charts.accuracy_by_strategy(setting)),
        "rounds": Markup(charts.accuracy_by_round(setting)),
        "path": Markup(charts.loss_along_path(setting)),
        "reliability": Markup(charts.reliability_diagrams(setting)),
        "moved": Markup(charts.units_moved(setting)),
        "groups": charts.groups_of(setting),
        "split": Markup(charts.data_split(setting)),
        "counts": setting.comparisons[0].label_counts,
    }


def _facts(study: Study) -> list[tuple[str, str]]:
    origins = [comparison.origin for comparison in study.comparisons]
    versions = dict.fromkeys(
        ", ".join(f"{package} {number}" for package, number in origin.versions.items()) for origin in origins
    )
    count = "one comparison" if len(origins) == 1 else f"{len(origins)} comparisons"
    facts = [
        ("options", ", ".join(f"{name} {value}" for name, value in charts.common_options(study))),
        *((name.replace("_", "-"), ", ".join(_values(study, name))) for name in study.varying),
        ("versions", "; ".join(versions)),
        ("device", "; ".join(dict.fromkeys(origin.device for origin in origins))),
        ("machine", "; ".join(dict.fromkeys(origin.machine for origin in origins))),
        ("engine", ", ".join(dict.fromkeys(origin.engine for origin in origins))),
        ("started", min(origin.started for origin in origins)),
        ("time", f"{study.seconds:.0f} s for {count}"),
    ]
    return [(name, value) for name, value in facts if value]


def _values(study: Study, option: str) -> list[str]:
    return list(dict.fromkeys(shown(setting.options[option]) for setting in study.settings))
