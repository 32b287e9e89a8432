"""Sections of the results, a page each: written by the script that measures it, with the machine and the date.

RESULTS.md says in short what they come to, and is for people to write.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from fedrebasin.simulations import Origin

RESULTS = Path(__file__).parents[1] / "results"


def stamp() -> str:
    """What the numbers were taken with: date, machine, versions."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    origin = Origin.now(device, "inline")
    versions = ", ".join(f"{package} {number}" for package, number in origin.versions.items())
    return f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or origin.machine}, {origin.device}; {versions}."


def write_section(heading: str, lines: Sequence[str], folder: Path = RESULTS) -> None:
    """Write the page of a section, in the place of the one that was there.

    Args:
        heading: of the second level, as it is in RESULTS.md, such as ``## Comparisons``.
        lines: what follows it, with headings from the third level on.
        folder: where the pages are.
    """
    title = heading.removeprefix("## ")
    name = "-".join(re.findall("[a-z0-9]+", title.lower().replace("'", "")))
    body = re.sub("^##", "#", "\n".join(lines), flags=re.MULTILINE).strip()
    (folder / f"{name}.md").write_text(f"# {title}\n\n{body}\n", encoding="utf-8")
