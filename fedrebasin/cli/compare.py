"""``fedrebasin compare``: strategies side by side, over the same trained clients."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedrebasin.cli import options as opt
from fedrebasin.cli.bars import Bars
from fedrebasin.cli.show import AsJson, leaving
from fedrebasin.errors import RebasinError

if TYPE_CHECKING:
    from fedrebasin.simulations import SimulationConfig, Study, Summary

SEVERAL = "Several with commas."
ROOMY = 140  # columns that a table with spreads needs


def compare(
    strategies: Annotated[
        str,
        typer.Option(
            help="Names with commas. Bases: fedavg, rebasin, merge-many, wide-avg, frank-wolfe, cycle-consistent, "
            "activation, ste; then any of +activations, +bn, +repair, +regmean, +seqreg, +head, +temperature: "
            "rebasin+head."
        ),
    ] = "fedavg,rebasin,merge-many,wide-avg,rebasin+seqreg+head+temperature",
    dataset: opt.DataSet = "digits",
    data_dir: opt.DataDir = "",
    image_size: opt.ImageSize = 0,
    augment: opt.Augment = "none",
    model: Annotated[str, typer.Option(help=f"mlp, vgg11, vgg16 or resnet20; -bn for BatchNorm. {SEVERAL}")] = "mlp",
    width: Annotated[
        str, typer.Option(help=f"Units of a hidden layer (mlp) or multiplier; 0: the papers' (512 or 1). {SEVERAL}")
    ] = "0",
    clients: Annotated[str, typer.Option(help=f"Number of clients. {SEVERAL}")] = "4",
    partition: Annotated[str, typer.Option(help=f"iid, dirichlet, shards or label-skew. {SEVERAL}")] = "iid",
    alpha: Annotated[
        str, typer.Option(help=f"Concentration of the dirichlet partition; small is uneven. {SEVERAL}")
    ] = "0.5",
    init: Annotated[
        str, typer.Option(help=f"Clients' initialisation: independent or shared. {SEVERAL}")
    ] = "independent",
    rounds: opt.Rounds = 1,
    local_epochs: opt.LocalEpochs = 60,
    batch_size: opt.BatchSize = 64,
    optimizer: opt.Optimizer = "adam",
    learning_rate: opt.LearningRate = 1e-3,
    weight_decay: opt.WeightDecay = 3e-3,
    seed: Annotated[str, typer.Option("--seed", "--seeds", help=f"Of everything random. {SEVERAL}")] = "0",
    device: opt.Device = "auto",
    engine: Annotated[
        str, typer.Option(help="inline (this process) or flower (Flower's simulation engine).")
    ] = "inline",
    jobs: Annotated[int, typer.Option(help="Comparisons at the same time; 0: one a core, or one on a GPU.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for results.json, report.html, picture.svg; what is there is not run again."),
    ] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", help="Run nothing: table and report of this results.json.")
    ] = None,
    json: Annotated[bool, AsJson] = False,
) -> None:
    """Train clients once and let several strategies merge them; what follows a + works with sums that clients send.

    Options with several values make a grid, seeds become means and spreads. A run that was broken off goes on where it
    was when it is started again with the same --out.

    Example: fedrebasin compare --clients 2 --width 64,512,2048 --seeds 0,1,2 --out wide
    """
    from fedrebasin.simulations import expand, read_results

    if from_ is not None:
        study = read_results(from_)
        _show(study, out or (from_ if from_.is_dir() else from_.parent), json)
        return
    several = {"model": model, "width": width, "clients": clients, "partition": partition}
    several |= {"alpha": alpha, "init": init, "seed": seed}
    single: dict[str, Any] = {
        "dataset": dataset,
        "data_dir": data_dir,
        "image_size": image_size,
        "augment": augment,
        "rounds": rounds,
        "local_epochs": local_epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "device": device,
    }
    options = {name: _values(name, text) for name, text in several.items()}
    configs = expand(options | {name: [value] for name, value in single.items()})
    names = [name.strip() for name in strategies.split(",") if name.strip()]
    study = _run(configs, names, engine, jobs, out)
    _show(study, out, json)


def _values(name: str, text: str) -> list[Any]:
    """The values of an option that may have several; numbers as numbers."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    kinds = {"width": float, "clients": int, "alpha": float, "seed": int}
    if name not in kinds:
        return parts
    try:
        return [kinds[name](part) for part in parts]
    except ValueError as error:
        raise RebasinError(f"{name}: {error}") from None


def _run(
    configs: tuple[SimulationConfig, ...], strategies: list[str], engine: str, jobs: int, out: Path | None
) -> Study:
    from fedrebasin.simulations import Study, read_results, run_study, write_results

    known, command = Study(()), shlex.join(["fedrebasin", *sys.argv[1:]])
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # fails now rather than after the training
        known = read_results(out) if (out / "results.json").exists() else known

    def save(study: Study) -> None:
        if out is not None:
            write_results(out, replace(study, command=command))

    def finished() -> str:
        if out is None:
            return "nothing is kept without --out"
        if not (out / "results.json").exists():
            return f"no comparison was finished, {out} is empty"
        return f"finished comparisons are in {out / 'results.json'}; the same command goes on from there"

    with leaving(finished), Bars() as bars:
        study = run_study(configs, strategies, engine=engine, jobs=jobs, known=known, finished=save, progress=bars)
    return replace(study, command=command)


def _show(study: Study, folder: Path | None, as_json: bool) -> None:
    """The table or the results as JSON; into a folder, if there is one, the report of what was asked for.

    ``results.json`` was saved on the way, and may hold more.
    """
    from fedrebasin.simulations import write_page, write_picture, write_results

    console = Console(stderr=as_json)
    if as_json:
        with TemporaryDirectory() as place:
            sys.stdout.write(write_results(Path(place), study).read_text(encoding="utf-8"))
    else:
        console.print(table_of(study, console.width))
    if folder is not None:
        for path in (folder / "results.json", write_page(folder, study), write_picture(folder, study)):
            if path is not None and path.exists():
                console.print(f"written: {path}", soft_wrap=True, highlight=False)


def table_of(study: Study, width: int = ROOMY) -> Table:
    """Every setting's strategies, then its reference rows; the best strategy of each in bold.

    Args:
        study: what to show.
        width: columns of the terminal; in a narrow one spreads stand below their means.
    """
    from fedrebasin.simulations import COLUMNS, cells

    settings = study.settings
    table = Table(
        title=_title(study),
        padding=(0, 1) if width >= ROOMY or study.seeds == 1 else 0,
        caption=f"all on 80 % of the test set, beta fitted on the other 20 %; {study.seconds:.0f} s in all",
    )

    def texts_of(summary: Summary) -> list[str]:
        return [text if width >= ROOMY else text.replace(" ±", "\n±") for text in cells(summary)]

    texts = [texts_of(summary) for setting in settings for summary in setting.summaries]
    # In a narrow terminal a strategy's long name is folded, never a number.
    table.add_column("", min_width=11, overflow="fold")
    for place, column in enumerate(COLUMNS):
        shortest = max(len(line) for text in texts for line in text[place].split("\n"))
        table.add_column(column, justify="right", min_width=shortest, overflow="fold")
    for setting in settings:
        if setting.label:
            table.add_row(setting.label, style="italic")
        summaries = setting.summaries
        for place, summary in enumerate(summaries):
            if summary.is_reference and not summaries[place - 1].is_reference:
                table.add_section()
            style = "bold" if summary.best else "dim" if summary.is_reference else None
            table.add_row(summary.strategy, *texts_of(summary), style=style)
        table.add_section()
    return table


def _title(study: Study) -> str:
    config, varying = study.comparisons[0].config, study.varying
    parts = {
        "clients": f"{config.clients} clients",
        "init": f"{config.init} init",
        "dataset": config.dataset,
        "partition": config.partition,
        "model": config.model,
    }
    title = ", ".join(text for name, text in parts.items() if name not in varying)
    return title if study.seeds == 1 else f"{title}; mean ± standard deviation over {study.seeds} seeds"
