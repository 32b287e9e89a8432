"""Sections of RESULTS.md: each is replaced by the script that measures it, with the machine and the date."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from fedrebasin.simulations import Origin

RESULTS = Path(__file__).parents[1] / "RESULTS.md"


def stamp() -> str:
    """What the numbers were taken with: date, machine, versions."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    origin = Origin.now(device, "inline")
    versions = ", ".join(f"{package} {number}" for package, number in origin.versions.items())
    return f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or origin.machine}, {origin.device}; {versions}."


def write_section(heading: str, lines: Sequence[str], file: Path = RESULTS) -> None:
    """Put a section into the file in the place of the one with the same heading, or at its end.

    Args:
        heading: of the second level, such as ``## Comparisons``.
        lines: what follows it.
        file: which.
    """
    text = file.read_text(encoding="utf-8") if file.is_file() else "# Results\n"
    section = "\n".join([heading, "", *lines]).rstrip() + "\n"
    pattern = re.compile(rf"^{re.escape(heading)}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    text = pattern.sub(lambda _: section + "\n", text) if pattern.search(text) else f"{text.rstrip()}\n\n{section}"
    file.write_text(text.rstrip() + "\n", encoding="utf-8")
