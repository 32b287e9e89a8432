"""The experiments by name, with their settings at both scales."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from fedrebasin import RebasinError
from fedrebasin.devices import pick_device
from fedrebasin.errors import choose
from fedrebasin.registry import Registry

from .lab import Lab, Progress
from .recipe import Recipe
from .result import Record, Result

SCALES = ("small", "paper")
#: At small scale a data set larger than digits is cut to this many training examples, and epochs by this factor.
SMALL_EXAMPLES, SMALL_EPOCHS = 6000, 4


@dataclass(frozen=True)
class Setting:
    """What an experiment is run with.

    Args:
        recipe: how models are trained; width and seed are set by the experiment.
        widths: of the models, in rising order.
        seeds: each gives models of its own.
        models: how many are merged.
        points: positions on a path.
        others: recipes of other networks that the experiment compares, by name.
        larger: how models are trained on data sets larger than digits; None cuts training set and epochs.
    """

    recipe: Recipe = field(default_factory=Recipe)
    widths: tuple[float, ...] = (256,)
    seeds: tuple[int, ...] = (0, 1, 2)
    models: int = 2
    points: int = 11
    others: tuple[tuple[str, Recipe], ...] = ()
    larger: Recipe | None = None

    def of(self, width: float | None = None, seed: int = 0, number: int = 0) -> Recipe:
        """The recipe of model ``number`` of a seed's set."""
        return replace(self.recipe, width=self.widths[-1] if width is None else width).member(seed, number)

    @property
    def width_axis(self) -> str:
        """What widths count."""
        return "hidden units" if self.recipe.model == "mlp" else "width multiplier"


@dataclass(frozen=True)
class Experiment:
    """One experiment of a paper.

    Args:
        name: for the command.
        source: paper, figure or table.
        title: what it shows.
        small: minutes on 2 cores.
        paper: the paper's own setting, as far as this package has its data sets and architectures.
        run: measures.
    """

    name: str
    source: str
    title: str
    small: Setting
    paper: Setting
    run: Callable[[Lab, Setting], Result]


EXPERIMENTS: Registry[Experiment] = Registry("experiment", "fedrebasin.experiments")


def experiment(
    name: str, source: str, title: str, small: Setting, paper: Setting
) -> Callable[[Callable[[Lab, Setting], Result]], Callable[[Lab, Setting], Result]]:
    """Register a function as an experiment; the arguments are those of :class:`Experiment`."""

    def register(run: Callable[[Lab, Setting], Result]) -> Callable[[Lab, Setting], Result]:
        EXPERIMENTS.register(name, Experiment(name, source, title, small, paper, run))
        return run

    return register


def reproduce(
    name: str,
    folder: Path,
    *,
    scale: str = "small",
    dataset: str = "",
    data_dir: str = "",
    device: str = "auto",
    seeds: int | Sequence[int] = 0,
    progress: Progress | None = None,
) -> Record:
    """Run an experiment; models that are kept in ``folder/trained`` are not trained again.

    Args:
        name: one of ``EXPERIMENTS``.
        folder: of the trained models.
        scale: ``small`` or ``paper``.
        dataset: another data set than the experiment's own; "" for that.
        data_dir: where data sets other than digits lie.
        device: ``auto``, ``cpu`` or ``cuda``.
        seeds: how many, or which; 0 for the experiment's own.
        progress: called while models are trained.

    Raises:
        RebasinError: for an unknown name or scale, or missing data.
    """
    chosen = EXPERIMENTS.pick(name)
    setting = chosen.small if choose("scale", scale, SCALES) == "small" else chosen.paper
    if dataset:
        others = tuple((name, _on_dataset(recipe, dataset, scale)) for name, recipe in setting.others)
        recipe = _on_dataset(setting.recipe, dataset, scale)
        if setting.larger is not None and dataset != "digits":
            recipe = replace(setting.larger, dataset=dataset)
        setting = replace(setting, recipe=recipe, others=others)
    each = setting.seeds if seeds == 0 else tuple(range(abs(seeds)) if isinstance(seeds, int) else seeds)
    if not each or min(each) < 0 or (isinstance(seeds, int) and seeds < 0):
        raise RebasinError(f"seeds {seeds}: give at least one; they must not be negative")
    setting = replace(setting, seeds=each)
    pick_device(device)  # fails now rather than after the training
    lab = Lab(folder / "trained", data_dir, device, progress or (lambda who, done, total: None))
    if scale == "paper":
        lab = replace(lab, test_examples=0)
    started, worked = time.perf_counter(), time.process_time()
    result = chosen.run(lab, setting)
    return Record(
        name=name,
        title=chosen.title,
        source=chosen.source,
        scale=scale,
        setting=asdict(setting),
        seconds=time.perf_counter() - started,
        cpu_seconds=time.process_time() - worked + sum(lab.costs.values()),
        device=_device_in_words(device),
        result=result,
    )


def _on_dataset(recipe: Recipe, dataset: str, scale: str) -> Recipe:
    if dataset == recipe.dataset:
        return recipe
    if scale == "paper" or dataset == "digits":
        return replace(recipe, dataset=dataset)
    shorter = max(1, round(recipe.epochs / SMALL_EPOCHS))
    keep = tuple(dict.fromkeys(round(epoch * shorter / recipe.epochs) for epoch in recipe.keep))
    spawn = round(recipe.spawn * shorter / recipe.epochs)
    return replace(recipe, dataset=dataset, examples=SMALL_EXAMPLES, epochs=shorter, keep=keep, spawn=spawn)


def _device_in_words(device: str) -> str:
    picked = pick_device(device)
    return torch.cuda.get_device_name(picked) if picked.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
