"""What an experiment found: numbers beside the paper's, whether the paper's ordering holds, and what to draw."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeVar

from fedrebasin.writing import json_text, write_text

T = TypeVar("T")
#: ``rows[s][i]`` is of seed s at place i.
Rows = Sequence[Sequence[float]]

VERSION = 1


@dataclass(frozen=True)
class Figure:
    """One number of the paper beside ours.

    Args:
        what: the quantity and where it was taken.
        values: ours, one for each seed.
        paper: the paper's, as text; empty where it gives none.
        unit: of the values.
    """

    what: str
    values: tuple[float, ...]
    paper: str = ""
    unit: str = ""

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return fmean(self.values)

    @property
    def deviation(self) -> float:
        """The sample standard deviation over the seeds; 0 for one seed."""
        return stdev(self.values) if len(self.values) > 1 else 0.0

    def __str__(self) -> str:
        spread = f" ± {self.deviation:.2g}" if len(self.values) > 1 else ""
        return f"{self.mean:.4g}{spread}{' ' + self.unit if self.unit else ''}"


@dataclass(frozen=True)
class Claim:
    """What the paper says, and whether it is so here.

    Args:
        text: the ordering or the direction, in words.
        holds: for each seed.
        why: what is found instead, and why that may be, where it does not hold.
    """

    text: str
    holds: tuple[bool, ...]
    why: str = ""

    @property
    def verdict(self) -> str:
        """``holds``, ``fails``, or in how many seeds it holds."""
        if all(self.holds):
            return "holds"
        return f"holds in {sum(self.holds)} of {len(self.holds)}" if any(self.holds) else "fails"


@dataclass(frozen=True)
class Line:
    """One curve of a chart; ``spread`` is drawn as a band."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plane:
    """A field over a plane, drawn in colours.

    Args:
        x: coordinates, rising.
        y: likewise.
        values: ``values[i][j]`` at ``(x[j], y[i])``.
        points: label and coordinates of what is marked.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    points: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True)
class Chart:
    """One panel.

    Args:
        title: of the panel.
        x: the axis, with its unit.
        y: likewise.
        lines: curves.
        log_x: whether widths or epochs are spread out evenly by their logarithm.
        plane: a field in place of curves.
    """

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    log_x: bool = False
    plane: Plane | None = None


@dataclass(frozen=True)
class Result:
    """What one experiment found.

    Args:
        figures: numbers, ours beside the paper's.
        claims: what the paper says.
        charts: the panels of the figure.
        notes: where the setting differs from the paper's.
    """

    figures: tuple[Figure, ...]
    claims: tuple[Claim, ...]
    charts: tuple[Chart, ...] = ()
    notes: str = ""

    @property
    def holds(self) -> bool:
        """Whether every claim holds in every seed."""
        return all(all(claim.holds) for claim in self.claims)


@dataclass(frozen=True)
class Record:
    """A result with everything that is needed to judge it.

    Args:
        name: of the experiment.
        title: what it is about.
        source: paper, figure or table.
        scale: ``small`` or ``paper``.
        setting: everything that was set.
        seconds: wall time of this run; models from the disk cost none.
        cpu_seconds: of this process, and those that models from the disk once took to train.
        device: in words.
        result: what was found.
    """

    name: str
    title: str
    source: str
    scale: str
    setting: dict[str, Any]
    seconds: float
    cpu_seconds: float
    device: str
    result: Result
    version: int = field(default=VERSION)

    def write(self, folder: Path) -> Path:
        """Write ``folder/NAME.json``; its path. Numbers that JSON has no form for become null."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.name}.json"
        content = asdict(self)
        for figure, found in zip(content["result"]["figures"], self.result.figures, strict=True):
            figure |= {"mean": found.mean, "deviation": found.deviation}
        for claim, said in zip(content["result"]["claims"], self.result.claims, strict=True):
            claim["verdict"] = said.verdict
        write_text(file, json_text(content))
        return file


def curve(label: str, x: Sequence[float], by_seed: Rows) -> Line:
    """A line of means over seeds; ``by_seed[s][i]`` belongs to ``x[i]``."""
    columns = list(zip(*by_seed, strict=True))
    spread = tuple(stdev(column) for column in columns) if len(by_seed) > 1 else ()
    return Line(label, tuple(map(float, x)), tuple(fmean(column) for column in columns), spread)


def chart(title: str, x: str, y: str, places: Sequence[float], lines: Mapping[str, Rows], log_x: bool = False) -> Chart:
    """A curve for each entry of ``lines``."""
    return Chart(title, x, y, tuple(curve(label, places, rows) for label, rows in lines.items()), log_x)


def figures(
    what: str, found: Mapping[str, Sequence[float]], unit: str = "", paper: Mapping[str, str] | None = None
) -> tuple[Figure, ...]:
    """One figure for each name, which stands in place of ``{}`` in ``what``; ``paper``: the paper's numbers by name."""
    said = paper or {}
    return tuple(Figure(what.format(name), tuple(row), said.get(name, ""), unit) for name, row in found.items())


def figures_along(
    what: str, found: Mapping[str, Rows], places: Iterable[float | str], unit: str = ""
) -> tuple[Figure, ...]:
    """One figure for each name and each place, in place of ``{}`` and ``{}`` in ``what``."""
    return tuple(
        Figure(what.format(name, place), tuple(at(rows, i)), "", unit)
        for name, rows in found.items()
        for i, place in enumerate(places)
    )


def at(rows: Rows, place: int) -> list[float]:
    """Each seed's number at one place."""
    return [row[place] for row in rows]


def each(summary: Callable[[Sequence[float]], float], found: Mapping[str, Rows]) -> dict[str, list[float]]:
    """Each seed's row summed up in one number, by name."""
    return {name: [summary(row) for row in rows] for name, rows in found.items()}


def times(factor: float, values: Iterable[float]) -> list[float]:
    """Each number times the factor."""
    return [factor * value for value in values]


def by_name(found: Iterable[Mapping[str, T]]) -> dict[str, list[T]]:
    """For each name all that was found under it, in turn: what seeds or widths measured, as rows."""
    return {name: [row[name] for row in rows] for rows in [list(found)] for name in rows[0]}


def below(
    text: str, left: Sequence[float] | float, right: Sequence[float] | float, unit: str = "", why: str = ""
) -> Claim:
    """That ``left`` is below ``right`` in each seed, one of them may be one number for all seeds.

    The reason gives both numbers, after ``why``.
    """
    seeds = max(len(side) for side in (left, right) if isinstance(side, Sequence))
    sides = (side if isinstance(side, Sequence) else [side] * seeds for side in (left, right))
    pairs = list(zip(*sides, strict=True))
    said = ", ".join(f"{x:.4g} / {y:.4g}" for x, y in pairs) + (f" {unit}" if unit else "")
    return Claim(text, tuple(x < y for x, y in pairs), f"{why or 'against each other'}, by seed: {said}")


def falls(text: str, rows: Rows, factor: float = 1.0) -> Claim:
    """That each seed's last value is below ``factor`` times its first one; ``rows[s]`` is of seed s."""
    said = "the last and the first" + (f", times {factor:g}" if factor != 1 else "")
    return below(text, at(rows, -1), times(factor, at(rows, 0)), why=said)


def rises(text: str, rows: Rows) -> Claim:
    """That each seed's last value is above its first one."""
    return below(text, at(rows, 0), at(rows, -1), why="the first and the last")


def falls_at_every_step(text: str, rows: Rows, slack: float = 0.0) -> Claim:
    """That no value of a seed is above the one before it by ``slack`` or more."""
    rise = [max(y - x for x, y in pairwise(row)) for row in rows]
    return below(text, rise, slack, why="largest rise, and the slack")
