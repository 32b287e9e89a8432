"""Comparisons of several configurations, and what they say together: means and spreads over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from itertools import product
from statistics import fmean, stdev
from typing import Any

from fedrebasin.errors import RebasinError

from ..config import SimulationConfig
from .comparison import Comparison
from .figures import REFERENCES, Figures

OPTIONS = tuple(field.name for field in fields(SimulationConfig))


def expand(options: Mapping[str, Sequence[Any]]) -> tuple[SimulationConfig, ...]:
    """Every combination of the values, those of the seed changing fastest.

    Args:
        options: for fields of :class:`SimulationConfig` the values to try; a value given twice is tried once.

    Raises:
        RebasinError: if a value is not allowed, or there is none.
    """
    for name, values in options.items():
        if not values:
            raise RebasinError(f"{name.replace('_', '-')}: name at least one value")
    order = sorted(options, key=lambda name: (name == "seed", OPTIONS.index(name)))
    combinations = product(*(options[name] for name in order))
    configs = (SimulationConfig(**dict(zip(order, values, strict=True))) for values in combinations)
    return tuple(dict.fromkeys(configs))


@dataclass(frozen=True)
class Summary:
    """A strategy (or a reference) in one setting, over its seeds.

    Args:
        strategy: its name.
        seeds: that it was run with.
        figures: the mean of every figure.
        deviation: the sample standard deviation of every figure; None for one seed.
        seconds: of aggregation, the mean.
        best: whether no other strategy is more accurate in this setting.
    """

    strategy: str
    seeds: tuple[int, ...]
    figures: Figures
    deviation: Figures | None
    seconds: float
    best: bool = False

    @property
    def is_reference(self) -> bool:
        """Whether this is no strategy."""
        return self.strategy in REFERENCES


@dataclass(frozen=True)
class Setting:
    """The comparisons that differ in nothing but the seed.

    Args:
        options: what this setting has and others of the study have not, by the names of :class:`SimulationConfig`.
        comparisons: one for each seed.
    """

    options: Mapping[str, Any]
    comparisons: tuple[Comparison, ...]

    @property
    def config(self) -> SimulationConfig:
        """That of the first seed."""
        return self.comparisons[0].config

    @property
    def label(self) -> str:
        """Such as ``width 64, partition iid``; empty if there are no other settings."""
        return ", ".join(f"{name.replace('_', '-')} {shown(value)}" for name, value in self.options.items())

    @property
    def summaries(self) -> tuple[Summary, ...]:
        """The strategies, then the references."""
        there = {row.strategy for comparison in self.comparisons for row in comparison.rows}
        names = dict.fromkeys(name for comparison in self.comparisons for name in comparison.strategies)
        found = [self._summary(name) for name in (*names, *REFERENCES) if name in there]
        best = max(
            (one for one in found if not one.is_reference), key=lambda one: (one.figures.accuracy, -one.figures.loss)
        )
        return tuple(replace(one, best=one is best) for one in found)

    @property
    def best(self) -> Summary:
        """The most accurate strategy; among equals the one with the lowest loss."""
        return next(one for one in self.summaries if one.best)

    def _summary(self, name: str) -> Summary:
        rows = [row for comparison in self.comparisons for row in comparison.final_rows if row.strategy == name]
        figures = [row.figures for row in rows]
        return Summary(
            strategy=name,
            seeds=tuple(row.seed for row in rows),
            figures=Figures.mean(figures),
            deviation=_deviation(figures) if len(figures) > 1 else None,
            seconds=fmean(row.seconds for row in rows),
        )


@dataclass(frozen=True)
class Study:
    """Comparisons of any configurations.

    Args:
        comparisons: at most one for each configuration.
        command: that they were last asked for with; empty if it was no command.
    """

    comparisons: tuple[Comparison, ...]
    command: str = ""

    @property
    def strategies(self) -> tuple[str, ...]:
        """Of all comparisons, in the order in which they come first."""
        return tuple(dict.fromkeys(name for comparison in self.comparisons for name in comparison.strategies))

    @property
    def seconds(self) -> float:
        """Of all comparisons, added up."""
        return sum(comparison.seconds for comparison in self.comparisons)

    @property
    def seeds(self) -> int:
        """How many different ones there are."""
        return len({comparison.config.seed for comparison in self.comparisons})

    @property
    def varying(self) -> tuple[str, ...]:
        """The options that not all comparisons agree in, besides the seed."""
        described = [asdict(comparison.config) for comparison in self.comparisons]
        return tuple(name for name in OPTIONS if name != "seed" and len({one[name] for one in described}) > 1)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The comparisons, put together where they differ in the seed only."""
        groups: dict[SimulationConfig, list[Comparison]] = {}
        for comparison in self.comparisons:
            groups.setdefault(replace(comparison.config, seed=0), []).append(comparison)
        return tuple(
            Setting({name: getattr(config, name) for name in self.varying}, tuple(members))
            for config, members in groups.items()
        )

    def find(self, config: SimulationConfig) -> Comparison | None:
        """The comparison of a configuration, if there is one."""
        return next((one for one in self.comparisons if one.config == config), None)

    def with_(self, comparison: Comparison) -> Study:
        """With the strategies of one more comparison; what is there already for other strategies stays."""
        found = self.find(comparison.config)
        if found is None:
            return replace(self, comparisons=(*self.comparisons, comparison))
        joined = found.joined(comparison)
        return replace(self, comparisons=tuple(joined if one is found else one for one in self.comparisons))

    def only(self, configs: Iterable[SimulationConfig], strategies: Sequence[str]) -> Study:
        """What is there of these configurations and strategies, in their order."""
        kept = []
        for config in configs:
            found = self.find(config)
            names = [name for name in strategies if found is not None and name in found.strategies]
            if found is not None and names:
                kept.append(found.only(names))
        return replace(self, comparisons=tuple(kept))


def shown(value: Any) -> str:
    """An option's value as one writes it on the command line."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _deviation(figures: Sequence[Figures]) -> Figures:
    return Figures(*(stdev(column) for column in zip(*map(astuple, figures), strict=True)))
