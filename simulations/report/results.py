"""results.json: what simulations were run with and what came out."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from fedrebasin.analysis import Barrier
from fedrebasin.errors import RebasinError
from fedrebasin.writing import json_text, write_text

from ..config import SimulationConfig
from .comparison import Comparison
from .figures import Bin, Figures, Row
from .provenance import Origin
from .study import Study

VERSION = 2
FILE = "results.json"


def write_results(folder: Path, study: Study) -> Path:
    """Write ``folder/results.json``, making the folder; the path of the file.

    The form: ``{"version": 2, "command": ..., "comparisons": [{"config": {...}, "strategies": [...], "rows":
    [{"strategy", "seed", "round", "accuracy", "loss", "calibrated_loss", "beta", "ece", "seconds", "metrics",
    "reliability", "moved"}], "paths": {...}, "label_counts": [[...]], "seconds": ..., "origin": {...}}]}``. Numbers
    that JSON has no form for (a loss that is not finite) become null. The file is replaced at once or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    content: dict[str, Any] = {
        "version": VERSION,
        "command": study.command,
        "comparisons": [asdict(one) | {"rows": [row.to_json() for row in one.rows]} for one in study.comparisons],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FILE, json_text(content))
    return folder / FILE


def read_results(file: Path) -> Study:
    """What :func:`write_results` wrote; a folder stands for its ``results.json``.

    Raises:
        RebasinError: if this is no such file, or one of another version.
        OSError: if it cannot be read.
    """
    file = file / FILE if file.is_dir() else file
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RebasinError(f"{file} is not JSON: {error}") from None
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise RebasinError(f"{file} has version {version}, this package reads version {VERSION}: run it anew")
    try:
        comparisons = tuple(_comparison_from_json(one) for one in content["comparisons"])
        return Study(comparisons, content["command"])
    except (KeyError, TypeError, AttributeError) as error:
        raise RebasinError(f"{file} is not a file of results: {type(error).__name__} {error}") from None


def _comparison_from_json(content: Mapping[str, Any]) -> Comparison:
    return Comparison(
        config=_config(content["config"]),
        strategies=tuple(content["strategies"]),
        rows=tuple(_row(row) for row in content["rows"]),
        paths={name: _barrier(path) for name, path in content["paths"].items()},
        label_counts=tuple(tuple(counts) for counts in content["label_counts"]),
        seconds=content["seconds"],
        origin=Origin(**content["origin"]),
    )


def _config(content: Mapping[str, Any]) -> SimulationConfig:
    """The configuration as it was, whether or not its folder of data is on this machine."""
    config = object.__new__(SimulationConfig)
    for option in fields(SimulationConfig):
        object.__setattr__(config, option.name, content.get(option.name, option.default))
    return config


def _row(content: Mapping[str, Any]) -> Row:
    return Row(
        strategy=content["strategy"],
        seed=content["seed"],
        round=content["round"],
        figures=Figures(**{field.name: _number(content[field.name]) for field in fields(Figures)}),
        seconds=content["seconds"],
        metrics={key: _number(value) for key, value in content["metrics"].items()},
        reliability=tuple(Bin(**one) for one in content["reliability"]),
        moved=content["moved"],
    )


def _barrier(content: Mapping[str, Any]) -> Barrier:
    columns = {name: tuple(map(_number, content[name])) for name in ("lams", "losses", "accuracies", "betas")}
    return Barrier(value=_number(content["value"]), **columns)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
