"""results.json: what a simulation was run with and what came out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedrebasin import Barrier

from .config import SimulationConfig
from .measure import Row

VERSION = 1


def write_results(
    folder: Path, config: SimulationConfig, rows: Iterable[Row], paths: Mapping[str, Barrier] | None = None
) -> Path:
    """Write ``folder/results.json``, making the folder; the path of the file.

    The form: ``{"version": 1, "config": {...}, "rows": [{"strategy", "seed", "round", "accuracy", "loss",
    "calibrated_loss", "beta", "ece", "seconds", "metrics"}], "paths": {...}}``. Numbers that JSON has no form for (a
    loss that is not finite) become null.

    Raises:
        OSError: if it cannot be written.
    """
    content: dict[str, Any] = {
        "version": VERSION,
        "config": asdict(config),
        "rows": [row.to_json() for row in rows],
    }
    if paths:
        content["paths"] = {name: asdict(path) for name, path in paths.items()}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    file.write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return file


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
