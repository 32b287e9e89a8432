"""What a merge of files did: by checkpoint, in a table's numbers, as plain data, and in a file's header."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedrebasin.files.calibrate import Calibration
from fedrebasin.sums import Score


@dataclass(frozen=True)
class MergedFile:
    """What became of one checkpoint.

    Args:
        name: its path.
        sha256: of its file, or of all files of weights of its folder, one after the other.
        weight: its share.
        before: its cosine to what it was aligned to, as it was given.
        after: the same, aligned.
        moved: units that have another place now.
        units: all that may move.
        seconds: that aligning it took.
        by_layer: the cosine of every layer, aligned; empty where layers were not measured.
        score: how good it is on the data; None without data.
    """

    name: str
    sha256: str
    weight: float
    before: float
    after: float
    moved: int
    units: int
    seconds: float
    by_layer: Mapping[str, float] = field(default_factory=dict)
    score: Score | None = None

    @property
    def least_similar(self) -> tuple[str, float] | None:
        """The layer that agrees least, and its cosine; None where layers were not measured."""
        return min(self.by_layer.items(), key=lambda item: item[1], default=None)


@dataclass(frozen=True)
class MergedFiles:
    """What a merge did.

    Args:
        method: one of ``METHODS``.
        model: its name, or "".
        reference: the path of the model that the others were aligned to; "" if they were aligned to their mean.
        base: whether the result is the base and weighted differences from it.
        rows: one for each checkpoint.
        seconds: that everything took.
        calibration: None without data.
        infinite: keys with infinite numbers, as the checkpoints have them there.
        unaligned: how good the mean of the checkpoints as they are is; None without data, or where nothing is aligned.
    """

    method: str
    model: str
    reference: str
    base: bool
    rows: tuple[MergedFile, ...]
    seconds: float = 0.0
    calibration: Calibration | None = None
    unaligned: Score | None = None
    infinite: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        found = asdict(self)
        for row, entry in zip(self.rows, found["rows"], strict=True):
            entry["least_similar"] = row.least_similar
        return found

    def metadata(self) -> dict[str, str]:
        """For the header of the file: texts only."""
        from fedrebasin import __version__  # the package imports this file

        inputs = [
            {
                "name": Path(row.name).name,
                "sha256": row.sha256,
                "weight": row.weight,
                "similarity_before": round(row.before, 6),
                "similarity": round(row.after, 6),
                "units_moved": row.moved,
            }
            for row in self.rows
        ]
        texts = {
            "format": "pt",
            "made_by": f"fedrebasin {__version__}",
            "torch": torch.__version__,
            "method": self.method,
            "inputs": json.dumps(inputs),
            "reference": Path(self.reference).name,
        }
        if self.base:
            texts["base"] = Path(self.reference).name
        if self.model:
            texts["model"] = self.model
        if self.calibration is not None:
            texts["calibration"] = json.dumps(asdict(self.calibration))
            texts["beta"] = repr(self.calibration.beta)
        return texts
