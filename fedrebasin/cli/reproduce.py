"""``fedrebasin reproduce``: the papers' experiments, with their figures beside ours."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedrebasin.cli import options as opt
from fedrebasin.cli.bars import Bars
from fedrebasin.cli.show import AsJson, leaving, print_json, print_table
from fedrebasin.errors import RebasinError

if TYPE_CHECKING:
    from fedrebasin.simulations import Record


def reproduce(
    name: Annotated[
        str, typer.Argument(help="Experiment; --list shows all.", autocompletion=opt.complete_experiment)
    ] = "",
    show: Annotated[bool, typer.Option("--list", help="List the experiments.")] = False,
    scale: Annotated[
        str,
        typer.Option(
            help="small (minutes on 2 cores) or paper (the papers' settings).",
            autocompletion=opt.completing(("small", "paper")),
        ),
    ] = "small",
    dataset: Annotated[
        str,
        typer.Option(
            help="Instead of the experiment's own: digits, fashion-mnist, ...", autocompletion=opt.complete_dataset
        ),
    ] = "",
    data_dir: opt.DataDir = "",
    device: opt.Device = "auto",
    seeds: Annotated[
        str, typer.Option(help="How many seeds, or which: 0..2 or 0,1,2; 0: as many as the experiment says.")
    ] = "0",
    out: Annotated[Path, typer.Option(help="Folder for NAME.json, .svg, .html and the trained models.")] = Path("out"),
    json: Annotated[bool, AsJson] = False,
) -> None:
    """Run an experiment of a paper: train what it needs, print its table, write figure, report and JSON.

    Models are kept in OUT/trained: a second run, and experiments that share them, start from there.

    Example: fedrebasin reproduce lewc-width --out out
    """
    from fedrebasin.simulations import EXPERIMENTS, write_experiment
    from fedrebasin.simulations import reproduce as run

    console = Console(stderr=json)
    if show:
        if json:
            print_json([{"name": e.name, "source": e.source, "title": e.title} for e in EXPERIMENTS.values()])
        else:
            print_table(list_of_experiments())
        return
    if not name:
        raise RebasinError(f"which experiment? choose from {', '.join(EXPERIMENTS)}")
    chosen = _seeds(seeds)
    out.mkdir(parents=True, exist_ok=True)  # fails now rather than after the training
    with (
        leaving(lambda: f"models trained so far are in {out / 'trained'}; the same command continues from there"),
        Bars() as bars,
    ):
        record = run(
            name, out, scale=scale, dataset=dataset, data_dir=data_dir, device=device, seeds=chosen, progress=bars
        )
    written = record.write(out)
    if json:
        sys.stdout.write(written.read_text(encoding="utf-8"))
    else:
        print_table(table_of(record))
    page = write_experiment(out, record, shlex.join(["fedrebasin", *sys.argv[1:]]))
    for path in (written, out / f"{name}.svg", page):
        if path.exists():
            console.print(f"written: {path}", soft_wrap=True, highlight=False)


def _seeds(text: str) -> int | tuple[int, ...]:
    """How many, or which."""
    try:
        found = opt.parse_values(text, int)
    except ValueError as error:
        raise RebasinError(f"seeds: {error}") from None
    return found[0] if found and text.strip() == str(found[0]) else tuple(found)


def list_of_experiments() -> Table:
    """Name, source and title of every experiment."""
    from fedrebasin.simulations import EXPERIMENTS

    table = Table(title="experiments")
    table.add_column("name", no_wrap=True)
    for column in ("source", "what it shows"):
        table.add_column(column)
    for found in EXPERIMENTS.values():
        table.add_row(found.name, found.source, found.title)
    return table


def table_of(record: Record) -> Table:
    """Our numbers beside the paper's, then what the paper claims and whether it holds."""
    count = len(record.setting["seeds"])
    seeds = f"{count} seed" + ("s" if count != 1 else "")
    table = Table(
        title=f"{record.source}: {record.title}",
        caption=f"{record.setting['recipe']['dataset']}, {record.scale} scale, {seeds}, "
        f"{record.seconds:.0f} s ({record.cpu_seconds:.0f} s of CPU) on {record.device}. {record.result.notes}",
    )
    for column in ("", "ours", "the paper's"):
        table.add_column(column, justify="right" if column == "ours" else "left")
    for figure in record.result.figures:
        table.add_row(figure.what, str(figure), figure.paper)
    table.add_section()
    for claim in record.result.claims:
        style = "green" if all(claim.holds) else "yellow"
        table.add_row(claim.text, claim.verdict, "" if all(claim.holds) else claim.why, style=style)
    return table
