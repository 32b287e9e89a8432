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
from fedrebasin.cli.tables import NO_BREAK, fit
from fedrebasin.errors import RebasinError

if TYPE_CHECKING:
    from fedrebasin.simulations import SimulationConfig, Study


@opt.run_config(several=True)
def compare(
    strategies: Annotated[
        str, typer.Option(help=f"Names with commas. Bases: {opt.STRATEGY}", autocompletion=opt.complete_strategy)
    ] = "fedavg,rebasin,merge-many,wide-avg,rebasin+seqreg+head+temperature",
    *,
    engine: Annotated[
        str,
        typer.Option(
            help="inline (this process) or flower (Flower's simulation engine).",
            autocompletion=opt.completing(("inline", "flower")),
        ),
    ] = "inline",
    client_cpus: Annotated[
        float | None,
        typer.Option(help="Cores for each client with --engine flower; 1 if not given.", show_default=False),
    ] = None,
    client_gpus: Annotated[
        float | None,
        typer.Option(help="GPUs for each client with --engine flower; else all share one.", show_default=False),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="A running Ray cluster (auto or HOST:PORT). Each comparison is a task there, with the cores and GPUs"
            " of a client; with --engine flower each client is one.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Comparisons at the same time; 0: one a core, or one on a GPU.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results.json, results.csv, report.html, picture.svg; what is there is not run again."
        ),
    ] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", help="Train nothing: show the table and the report of this results.json.")
    ] = None,
    json: Annotated[bool, AsJson] = False,
    **config: Any,
) -> None:
    """Train clients once and let several strategies merge them; what follows a + works with sums that clients send.

    Options with several values are combined, seeds become means and spreads. A run that was interrupted
    continues where it was when it is started again with the same --out.

    Example: fedrebasin compare --clients 2 --width 64,512,2048 --seeds 0,1,2 --out wide
    """
    from fedrebasin.simulations import expand, read_results

    if from_ is not None:
        study = read_results(from_)
        _show(study, out or (from_ if from_.is_dir() else from_.parent), json)
        return
    configs = expand({name: _values(name, value) for name, value in config.items()})
    names = [name.strip() for name in strategies.split(",") if name.strip()]
    resources = {"num_cpus": client_cpus, "num_gpus": client_gpus}
    given = {name: amount for name, amount in resources.items() if amount is not None}
    study = _run(configs, names, out, engine=engine, client_resources=given, ray=ray, jobs=jobs)
    _show(study, out, json)


def _values(name: str, value: Any) -> list[Any]:
    """The values of a key of the run config; where it can have several, those of a text with commas."""
    if not opt.KEYS[name].metadata["several"]:
        return [value]
    try:
        return opt.parse_values(value, opt.KINDS[name])
    except ValueError as error:
        raise RebasinError(f"{name}: {error}") from None


def _run(configs: tuple[SimulationConfig, ...], strategies: list[str], out: Path | None, **how: Any) -> Study:
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
        return f"finished comparisons are in {out / 'results.json'}; the same command continues from there"

    with leaving(finished), Bars() as bars:
        study = run_study(configs, strategies, known=known, finished=save, progress=bars, **how)
    return replace(study, command=command)


def _show(study: Study, folder: Path | None, as_json: bool) -> None:
    """The table or the results as JSON; into a folder, if there is one, the report of what was asked for.

    ``results.json`` was saved on the way, and may hold more.
    """
    from fedrebasin.simulations import write_page, write_picture, write_results, write_table

    console = Console(stderr=as_json)
    if as_json:
        with TemporaryDirectory() as place:
            sys.stdout.write(write_results(Path(place), study).read_text(encoding="utf-8"))
    else:
        console.print(fit(table_of(study), console.width))
    if folder is not None:
        pages = (write_table(folder, study), write_page(folder, study), write_picture(folder, study))
        for path in (folder / "results.json", *pages):
            if path is not None and path.exists():
                console.print(f"written: {path}", soft_wrap=True, highlight=False)


def table_of(study: Study) -> Table:
    """Every setting's strategies, then its reference rows; the best strategy of each in bold.

    Raises:
        RebasinError: if there is none.
    """
    from fedrebasin.simulations import COLUMNS, cells

    if not study.comparisons:
        raise RebasinError("there is no comparison to show")
    table = Table(
        title=_title(study),
        caption=f"all on 80 % of the test set, beta fitted on the other 20 %; {study.seconds:.0f} s in all",
    )

    for column in ("", *(name.replace("seconds", "s") for name in COLUMNS)):
        table.add_column(column, justify="right" if column else "left")
    for setting in study.settings:
        if setting.label:
            table.add_row(setting.label, style="italic")
        summaries = setting.summaries
        for place, summary in enumerate(summaries):
            if summary.is_reference and not summaries[place - 1].is_reference:
                table.add_section()
            style = "bold" if summary.best else "dim" if summary.is_reference else None
            figures = [text.replace("± ", "±").replace(" %", f"{NO_BREAK}%") for text in cells(summary)]
            table.add_row(summary.strategy, *figures, style=style)
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
