"""results.csv: a study as one flat table, for spreadsheets and data frames."""

import csv
import io
from dataclasses import asdict, fields
from pathlib import Path

from fedrebasin.writing import write_text

from ..config import SimulationConfig
from .figures import Figures
from .study import Study

FILE = "results.csv"


def write_table(folder: Path, study: Study) -> Path:
    """Write ``folder/results.csv``: a line for each strategy or reference, seed and round; the path of the file.

    The columns: strategy, round, the figures (accuracy, loss, calibrated_loss, beta, ece), seconds, then every key of
    the configuration. The file is replaced at once or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    figures, keys = ([one.name for one in fields(kind)] for kind in (Figures, SimulationConfig))
    text = io.StringIO()
    table = csv.DictWriter(text, ["strategy", "round", *figures, "seconds", *keys], lineterminator="\n")
    table.writeheader()
    for comparison in study.comparisons:
        for row in comparison.rows:
            measured = {"strategy": row.strategy, "round": row.round, **asdict(row.figures), "seconds": row.seconds}
            table.writerow(measured | asdict(comparison.config))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FILE, text.getvalue())
    return folder / FILE
