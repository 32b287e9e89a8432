"""``fedrebasin merge``: several checkpoints, aligned and averaged into one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedrebasin.cli.bars import Bars
from fedrebasin.cli.options import DATA_HELP, MODEL_HELP
from fedrebasin.cli.show import AsJson, leaving, print_json, print_table, say
from fedrebasin.errors import MergeError, choose
from fedrebasin.merge_methods import METHODS, REFERENCED

if TYPE_CHECKING:
    from fedrebasin.files import CheckpointSet, Data, MergedFiles
    from fedrebasin.spec import PermutationSpec


def merge(
    checkpoints: Annotated[
        list[Path], typer.Argument(metavar="A B [C ...]", help="Safetensors files, or files that torch.save wrote.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The merged model, a safetensors file.")],
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "",
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.")] = "weight-matching",
    weights: Annotated[str, typer.Option(help="One for each checkpoint, with commas: 0.3,0.7.")] = "",
    base: Annotated[
        Path | None,
        typer.Option(
            help="Align to this model instead of the first, and add the weighted differences from it to it (task "
            "arithmetic); weights are then taken as they are."
        ),
    ] = None,
    data: Annotated[
        str, typer.Option(help=f"Recalibrate BatchNorm and fit a temperature. {DATA_HELP}", metavar="DATA")
    ] = "",
    data_dir: Annotated[str, typer.Option(help="Folder of a data set that is given by name.")] = "",
    image_size: Annotated[int, typer.Option(help="Images of a folder become squares of this size.")] = 224,
    examples: Annotated[int, typer.Option(help="At most so many training and test examples.")] = 5000,
    inputs: Annotated[
        str, typer.Option("--input", help="Shape of an example input; with --data that of the data.")
    ] = "",
    spec: Annotated[Path | None, typer.Option(help="A spec that 'fedrebasin spec --out' wrote.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order in which layers are matched.")] = 0,
    json: Annotated[bool, AsJson] = False,
) -> None:
    """Permute checkpoints until their units correspond, and average them.

    The files are mapped into memory and read piece by piece; what was done is written into the header of the result.

    Example: fedrebasin merge a.safetensors b.pt --model torchvision:resnet18 -o merged.safetensors
    """
    import torch

    from fedrebasin.cli.data import open_data
    from fedrebasin.cli.inputs import open_inputs, spec_of
    from fedrebasin.files import estimate, merge_files
    from fedrebasin.spec import coverage_gaps

    choose("method", method, METHODS)
    shares = _parse_weights(weights, len(checkpoints))
    _demand_sense(checkpoints, out, method, base, data, model)
    opened = open_inputs(checkpoints, model, base)
    for note in opened.notes:
        say(note)
    found = open_data(data, data_dir, image_size, examples, torch.device("cpu")) if data else None
    shape = inputs or (found.shape if found else "1,3,224,224")
    groups = spec_of(opened, spec, shape) if method != "average" else opened.no_groups()
    if not model and spec is None and method != "average":
        say(f"without --model, by names and shapes: a plain stack with {len(groups.groups)} hidden layers")
    matched = len(checkpoints) - (method in REFERENCED and base is None)
    if method != "average" and (missing := coverage_gaps(groups)):
        say(f"warning: {missing}")
    expected = estimate(groups, method, len(checkpoints), opened.nbytes, matched, opened.largest_tensor)
    say(f"merging {len(checkpoints)} checkpoints of {opened.nbytes / 1e6:.0f} MB by {method}: {expected}")
    with leaving(lambda: f"nothing was written to {out}"), Bars() as bars:
        merged = merge_files(opened, out, groups, method=method, weights=shares, data=found, seed=seed, progress=bars)
    if json:
        print_json(
            {
                **merged.to_json(),
                "estimated_seconds": expected.seconds,
                "estimated_bytes": expected.memory,
                "output": str(out),
            }
        )
        return
    print_table(table_of(merged, groups), _lines(merged, out, opened, found))


def table_of(merged: MergedFiles, groups: PermutationSpec) -> Table:
    """For every input how similar it was to what it was aligned to, how similar it is now, and what that took."""
    to = "the mean" if merged.method not in REFERENCED else merged.reference
    table = Table(
        title=f"{merged.method}, aligned to {to}" if groups.groups else "averaged as they are",
        caption=f"{merged.seconds:.1f} s; similarity: the cosine of all weights",
    )
    for column in ("", "weight", "similarity before", "after", "units moved", "seconds"):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    for row in merged.rows:
        table.add_row(
            Path(row.name).name,
            f"{row.weight:.3g}",
            f"{row.before:.3f}",
            f"{row.after:.3f}",
            f"{row.moved} of {row.units}",
            f"{row.seconds:.1f}",
        )
    return table


def _lines(merged: MergedFiles, out: Path, opened: CheckpointSet, data: Data | None) -> list[str]:
    lines = [
        f"{Path(row.name).name}: far less similar in the layer {row.least_similar[0]}, {row.least_similar[1]:.3f}"
        for row in merged.rows
        if row.least_similar is not None and row.least_similar[1] < row.after / 2
    ]
    if merged.calibration is not None and data is not None:
        found = merged.calibration
        lines.append(
            f"on {found.examples} test examples of {data.name}: accuracy {100 * found.accuracy:.1f} %, "
            f"loss {found.loss:.3f}, with beta {found.beta:.3f} {found.calibrated_loss:.3f}"
        )
        if found.batch_norms:
            lines.append(
                f"statistics of {found.batch_norms} BatchNorm layers taken anew; "
                f"before that, accuracy {100 * found.accuracy_before:.1f} %, loss {found.loss_before:.3f}"
            )
    elif opened.model is not None and any("running_mean" in key for key in opened.first):
        lines.append("the model has BatchNorm: its statistics were averaged, too; --data takes them anew")
    return [*lines, f"written: {out}"]


def _parse_weights(text: str, count: int) -> list[float] | None:
    if not text:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise MergeError(f"weights {text!r}: write numbers with commas, such as 0.3,0.7") from None
    if len(found) != count:
        raise MergeError(f"{len(found)} weights for {count} checkpoints: give one for each")
    return found


def _demand_sense(checkpoints: list[Path], out: Path, method: str, base: Path | None, data: str, model: str) -> None:
    """Refuse what cannot work before anything is read.

    Raises:
        MergeError: saying what to give instead.
    """
    if len(checkpoints) + (base is not None) < 2:
        raise MergeError("one checkpoint is nothing to merge: give at least two, or one and --base")
    if out.suffix != ".safetensors":
        raise MergeError(f"{out}: the merged model is a safetensors file: name it {out.stem}.safetensors")
    if not out.parent.is_dir():
        raise MergeError(f"{out}: there is no folder {out.parent}")
    if base is not None and method not in REFERENCED:
        raise MergeError(f"--base: {method} aligns to no reference; choose {', '.join(REFERENCED)}")
    if data and not model:
        raise MergeError("--data: to run on data the model is needed, too: --model")
