"""``fedrebasin diff``: two checkpoints layer by layer, as they are and with their units matched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedrebasin.cli import options as opt
from fedrebasin.cli.barrier import METHODS
from fedrebasin.cli.bars import Bars
from fedrebasin.cli.show import AsJson, leaving, print_json, print_table, say
from fedrebasin.errors import choose
from fedrebasin.writing import json_text, write_text

if TYPE_CHECKING:
    from fedrebasin.files import Difference


def diff(
    a: opt.A,
    b: opt.B,
    model: opt.Model = "",
    inputs: opt.Inputs = None,
    spec: opt.SpecFile = None,
    key: opt.Key = "",
    prefix: opt.Prefix = "",
    method: Annotated[
        str,
        typer.Option(help=f"How B's units are matched: {', '.join(METHODS)}.", autocompletion=opt.completing(METHODS)),
    ] = "weight-matching",
    seed: opt.MatchingSeed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for diff.json, diff.svg and diff.png.")] = None,
    json: Annotated[bool, AsJson] = False,
) -> None:
    """Compare two checkpoints layer by layer, as they are and with B's units matched to A's.

    Example: fedrebasin diff a.safetensors b.pt --model torchvision:resnet18
    """
    from fedrebasin.cli.inputs import open_inputs
    from fedrebasin.files import diff_files
    from fedrebasin.simulations import draw_difference

    choose("method", method, METHODS)
    given = open_inputs([a, b], model, None, spec, key=key, prefix=prefix)
    for note in given.opened.notes:
        say(note)
    groups = given.bound_spec(inputs or [])
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # fails now rather than after the work
    with leaving(lambda: "nothing was written"), Bars() as bars:
        found = diff_files(given.opened, groups, method=METHODS[method], seed=seed, progress=bars)
    written = []
    if out is not None:
        write_text(out / "diff.json", json_text(found.to_json()))
        layers = [(row.layer, row.similarity, row.matched) for row in found.layers]
        written = [out / "diff.json", *draw_difference(layers, out, (a.name, b.name))]
    if json:
        print_json(found.to_json())
        return
    print_table(table_of(found), [f"written: {path}" for path in written])


def table_of(found: Difference) -> Table:
    """A row for each layer."""
    table = Table(
        title=f"{Path(found.a).name} (A) and {Path(found.b).name} (B), layer by layer",
        caption=(
            f"all weights: similarity {found.similarity:.3f} as they are, {found.matched:.3f} matched; similarity: the "
            "cosine; apart: the distance relative to A; rank: the stable ranks of A and B"
        ),
    )
    for column in ("layer", "similar", "matched", "apart", "matched", "moved", "rank A", "B"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for row in found.layers:
        ranks = ("", "") if row.stable_ranks is None else tuple(f"{rank:.1f}" for rank in row.stable_ranks)
        table.add_row(
            row.layer,
            *(f"{row.similarity:.3f}", f"{row.matched:.3f}", f"{row.distance:.2f}", f"{row.distance_matched:.2f}"),
            f"{row.moved}/{row.units}",
            *ranks,
        )
    return table
