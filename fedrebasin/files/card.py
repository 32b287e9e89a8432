"""The model card of a merged folder: what was merged, how, and how it scored."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedrebasin.errors import printable
from fedrebasin.files.merged import MergedFiles
from fedrebasin.sums import Score

_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


def model_card(merged: MergedFiles, config: Mapping[str, Any], dtype: str, tokens: bool = False) -> str:
    """A ``README.md`` with the header that hubs read.

    Args:
        merged: what was done.
        config: the models' ``config.json``.
        dtype: of the weights, if another one was asked for, or "".
        tokens: whether labels are tokens, so that the loss is one of a language model.
    """
    from fedrebasin import __version__  # the package imports this file

    names = [Path(row.name).name or row.name for row in merged.rows]
    header = ["---", *(["library_name: transformers"] if "model_type" in config else []), "tags:", "- merge"]
    known = [name for name in (config.get("_name_or_path"),) if isinstance(name, str) and _NAME.fullmatch(name)]
    header += [f"base_model: {known[0]}"] if known else []
    lines = [*header, "---", "", f"# Merge of {_text(', '.join(names))}", ""]
    lines += [f"Made by fedrebasin {__version__}, {_how(merged)}{f', written in {dtype}' if dtype else ''}.", ""]
    scored = all(row.score is not None for row in merged.rows)
    columns = ["checkpoint", "weight", "similarity before", "after", "units moved", "sha256 of its weights"]
    columns += ["loss", "accuracy"] if scored else []
    lines += [_row(columns), _row(["---"] * len(columns))]
    for name, row in zip(names, merged.rows, strict=True):
        cells = [_text(name), f"{row.weight:.4g}", f"{row.before:.4f}", f"{row.after:.4f}"]
        cells += [f"{row.moved} of {row.units}", f"`{row.sha256[:16]}`"]
        cells += list(_score(row.score)) if row.score is not None and scored else []
        lines.append(_row(cells))
    lines += ["", "Similarity is the cosine of all weights, to the first model or to the mean.", ""]
    if merged.calibration is not None:
        found = merged.calibration
        lines += [
            f"## On {found.examples} test examples of {_text(found.data)}",
            "",
            _row(["model", "loss", "accuracy"]),
        ]
        lines.append(_row(["---"] * 3))
        if merged.unaligned is not None:
            lines.append(_row(["the checkpoints averaged as they are", *_score(merged.unaligned)]))
        lines.append(_row(["this model", *_score(Score(found.loss, found.accuracy, found.examples))]))
        lines += ["", f"Inverse temperature {found.beta:.3f}: the loss is {found.calibrated_loss:.4f} with it."]
        lines += [f"Perplexity: {math.exp(min(found.loss, 700)):.4g}."] if tokens else []
        lines += [f"Statistics of {found.batch_norms} BatchNorm layers were taken anew."] if found.batch_norms else []
        lines.append("")
    return "\n".join(lines)


def _how(merged: MergedFiles) -> str:
    if merged.base:
        return f"weighted differences to {_text(Path(merged.reference).name)} added to it, aligned by {merged.method}"
    if merged.method == "average":
        return "averaged as they are"
    to = _text(Path(merged.reference).name) if merged.reference else "one another"
    return f"units matched to {to} by {merged.method}, then averaged"


def _score(score: Score) -> tuple[str, str]:
    return f"{score.loss:.4f}", f"{100 * score.accuracy:.2f} %"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str) -> str:
    """A name without what Markdown would read."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", printable(text))
