"""results.json: what simulations were run with and what came out."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

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

Kind = TypeVar("Kind")


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
    except (ValueError, RecursionError) as error:
        raise RebasinError(f"{file} is not JSON: {error}") from None
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise RebasinError(f"{file} has version {version}, this package reads version {VERSION}: run it anew")
    try:
        comparisons = tuple(_comparison_from_json(one) for one in content["comparisons"])
        return Study(comparisons, _as(str, content["command"]))
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise RebasinError(f"{file} is not a file of results: {type(error).__name__} {error}") from None


def _comparison_from_json(content: Mapping[str, Any]) -> Comparison:
    return Comparison(
        config=_config(content["config"]),
        strategies=_texts(content["strategies"]),
        rows=tuple(_row(row) for row in content["rows"]),
        paths={name: _barrier(path) for name, path in content["paths"].items()},
        label_counts=_counts(content["label_counts"]),
        seconds=_as(float, content["seconds"]),
        origin=_origin(content["origin"]),
    )


def _origin(content: Mapping[str, Any]) -> Origin:
    texts = {field.name: _as(str, content[field.name]) for field in fields(Origin) if field.name != "versions"}
    return Origin(**texts, versions={_as(str, key): _as(str, text) for key, text in content["versions"].items()})


def _config(content: Mapping[str, Any]) -> SimulationConfig:
    """The configuration as it was, whether or not its folder of data is on this machine."""
    config = object.__new__(SimulationConfig)
    for option in fields(SimulationConfig):
        value = content.get(option.name, option.default)
        object.__setattr__(config, option.name, _as(get_type_hints(SimulationConfig)[option.name], value))
    return config


def _row(content: Mapping[str, Any]) -> Row:
    return Row(
        strategy=_as(str, content["strategy"]),
        seed=_as(int, content["seed"]),
        round=_as(int, content["round"]),
        figures=Figures(**{field.name: _number(content[field.name]) for field in fields(Figures)}),
        seconds=_as(float, content["seconds"]),
        metrics={key: _number(value) for key, value in content["metrics"].items()},
        reliability=tuple(_bin(one) for one in content["reliability"]),
        moved={key: _number(value) for key, value in content["moved"].items()},
    )


def _bin(content: Mapping[str, Any]) -> Bin:
    shares = [None if content[name] is None else _as(float, content[name]) for name in ("accuracy", "confidence")]
    return Bin(_as(int, content["count"]), *shares)


def _barrier(content: Mapping[str, Any]) -> Barrier:
    columns = {name: tuple(map(_number, content[name])) for name in ("lams", "losses", "accuracies", "betas")}
    return Barrier(value=_number(content["value"]), **columns)


def _counts(rows: Any) -> tuple[tuple[int, ...], ...]:
    """By client and class."""
    found = tuple(tuple(_as(int, count) for count in row) for row in rows)
    if len({len(row) for row in found}) > 1:
        raise TypeError("label_counts has rows of different lengths")
    return found


def _number(value: Any) -> float:
    return math.nan if value is None else _as(float, value)


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(_as(str, value) for value in _as(list, values))


def _as(kind: type[Kind], value: Any) -> Kind:
    """A value of this kind; whole numbers are numbers, whatever else is something else.

    Raises:
        TypeError: if it is of another kind, or no finite number.
    """
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise TypeError(f"{value!r:.40} instead of {kind.__name__}")
    return value
