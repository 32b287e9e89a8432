"""``fedrebasin merge``: several checkpoints, aligned and averaged into one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fedrebasin.cli import options as opt
from fedrebasin.cli.bars import Bars
from fedrebasin.cli.options import DATA_HELP
from fedrebasin.cli.show import AsJson, leaving, print_json, print_table, say
from fedrebasin.errors import MergeError, choose
from fedrebasin.merge_methods import DTYPES, METHODS, REFERENCED

if TYPE_CHECKING:
    from fedrebasin.files import CheckpointSet, Data, MergedFiles, Output
    from fedrebasin.spec import PermutationSpec


def merge(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B [C ...]", help="Safetensors files, files that torch.save wrote, or folders with a config.json."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The merged model: a safetensors file, or a folder if A is one.")
    ],
    model: opt.Model = "",
    method: Annotated[
        str, typer.Option(help=f"{', '.join(METHODS)}.", autocompletion=opt.completing(METHODS))
    ] = "weight-matching",
    weights: Annotated[str, typer.Option(help="One for each checkpoint, with commas: 0.3,0.7.")] = "",
    base: Annotated[
        Path | None,
        typer.Option(
            help="Align to this model instead of the first, and add the weighted differences from it to it (task "
            "arithmetic); weights are then taken as they are."
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="Recalibrate BatchNorm, fit a temperature, and say how good the models are, before and after. "
            + DATA_HELP,
            metavar="DATA",
            autocompletion=opt.complete_dataset,
        ),
    ] = "",
    data_dir: Annotated[str, typer.Option(help="Folder of a data set that is given by name.")] = "",
    image_size: Annotated[int, typer.Option(help="Images of a folder become squares of this size.")] = 224,
    examples: Annotated[int, typer.Option(help="Use at most this many training and test examples.")] = 5000,
    inputs: opt.Inputs = None,
    spec: opt.SpecFile = None,
    key: opt.Key = "",
    prefix: opt.Prefix = "",
    dtype: Annotated[
        str,
        typer.Option(
            help=f"Dtype of the merged weights: {', '.join(DTYPES)}; sums are taken in float64.",
            autocompletion=opt.completing(DTYPES),
        ),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace what is at --out, even if it is an input.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be merged, in what time and memory; merge nothing."),
    ] = False,
    seed: opt.MatchingSeed = 0,
    json: Annotated[bool, AsJson] = False,
) -> None:
    """Permute checkpoints until their units correspond, and average them.

    The files are mapped into memory and read piece by piece; what was done is written into the header of the result,
    and into the model card of a folder. Nothing is replaced without --force.

    Example: fedrebasin merge a.safetensors b.pt --model torchvision:resnet18 -o merged.safetensors
    """
    import torch

    from fedrebasin.cli.data import open_data
    from fedrebasin.cli.inputs import open_inputs
    from fedrebasin.files import Output, estimate, merge_files
    from fedrebasin.spec import coverage_gaps

    choose("method", method, METHODS)
    shares = _parse_weights(weights, len(checkpoints), base is not None)
    kind = getattr(torch, choose("dtype", dtype, DTYPES)) if dtype else None
    _demand_sense(checkpoints, method, base)
    aligned = method != "average"
    given = open_inputs(
        checkpoints, model, base, spec, key=key, prefix=prefix, run=bool(data), needed=aligned or bool(data)
    )
    opened = given.opened
    if data and opened.model is None:
        raise MergeError("--data: the model is needed, too, to run on it: give --model")
    output = Output(out, opened.leading, kind)
    output.demand_free([*checkpoints, *([base] if base else [])], force)
    for note in opened.notes:
        say(note)
    found = open_data(data, data_dir, image_size, examples, torch.device("cpu")) if data else None
    groups = given.bound_spec(inputs or [], found.shape if found else "1,3,224,224") if aligned else opened.no_groups()
    if given.model is None and given.spec is None and aligned:
        say(f"without --model, by names and shapes: a plain stack with {len(groups.groups)} hidden layers")
    if given.model is not None and given.spec is None and aligned and not groups.checked:
        say(f"{given.model.name}: too large to be run with random weights: its spec is traced and not checked")
    matched = len(checkpoints) - (method in REFERENCED and base is None)
    if aligned and (missing := coverage_gaps(groups)):
        say(f"warning: {missing}")
    expected = estimate(groups, method, len(checkpoints), opened.nbytes, matched, opened.largest_tensor)
    say(f"merging {len(checkpoints)} checkpoints of {opened.nbytes / 1e6:.0f} MB by {method}: {expected}")
    plan = {"estimated_seconds": expected.seconds, "estimated_bytes": expected.memory, "output": str(out)}
    if dry_run:
        _show_plan(opened, groups, output, shares, plan, json)
        return
    with leaving(lambda: f"nothing was written to {out}"), Bars() as bars:
        merged = merge_files(
            opened, out, groups, method=method, weights=shares, data=found, dtype=kind, force=force, seed=seed,
            progress=bars,
        )  # fmt: skip
    if json:
        print_json({**merged.to_json(), **plan})
        return
    print_table(table_of(merged, groups), _lines(merged, out, opened, found))


def _show_plan(
    opened: CheckpointSet,
    groups: PermutationSpec,
    output: Output,
    weights: list[float] | None,
    plan: dict[str, Any],
    json: bool,
) -> None:
    """What a merge would do."""
    equal = [1 / len(opened.checkpoints)] * len(opened.checkpoints)
    inputs: list[dict[str, Any]] = [
        {"name": str(one.path), "weight": weight, "tensors": len(one.state), "bytes": one.state.nbytes}
        for one, weight in zip(opened.checkpoints, weights or equal, strict=True)
    ]
    content = {
        "inputs": inputs,
        "base": None if opened.base is None else str(opened.base.path),
        "model": opened.name,
        "groups": len(groups.groups),
        "units": sum(math.prod(groups.shape(name)) for name in groups.groups),
        "output_bytes": output.nbytes,
        **plan,
    }
    if json:
        print_json(content)
        return
    table = Table(
        title="what would be merged", caption=f"{content['units']} units in {content['groups']} groups may move"
    )
    for column in ("", "weight", "tensors", "MB"):
        table.add_column(column, justify="right" if column else "left")
    for row in inputs:
        table.add_row(Path(row["name"]).name, f"{row['weight']:.3g}", f"{row['tensors']}", f"{row['bytes'] / 1e6:.1f}")
    print_table(table, [f"would be written: {output.path}, {output.nbytes / 1e6:.1f} MB; nothing was done"])


def table_of(merged: MergedFiles, groups: PermutationSpec) -> Table:
    """For every input how similar it was to what it was aligned to, how similar it is now, and what that took."""
    to = "the mean" if merged.method not in REFERENCED else merged.reference
    table = Table(
        title=f"{merged.method}, aligned to {to}" if groups.groups else "averaged as they are",
        caption=f"{merged.seconds:.1f} s; similarity: the cosine of all weights",
    )
    scored = all(row.score is not None for row in merged.rows)
    scores = ("accuracy", "loss") if scored else ()
    for column in ("", "weight", "similarity before", "after", "units moved", "seconds", *scores):
        table.add_column(column, justify="right" if column else "left")
    for row in merged.rows:
        table.add_row(
            Path(row.name).name,
            f"{row.weight:.3g}",
            f"{row.before:.3f}",
            f"{row.after:.3f}",
            f"{row.moved} of {row.units}",
            f"{row.seconds:.1f}",
            *(
                (f"{100 * row.score.accuracy:.1f} %", f"{row.score.loss:.3f}")
                if row.score is not None and scored
                else ()
            ),
        )
    return table


def _lines(merged: MergedFiles, out: Path, opened: CheckpointSet, data: Data | None) -> list[str]:
    finite = f"infinite numbers, as in the checkpoints: {', '.join(merged.infinite[:3])}"
    lines = [finite if merged.infinite else "every number of the result is finite"]
    for row in merged.rows:
        if row.by_layer and row.name != merged.reference:
            least = sorted(row.by_layer.items(), key=lambda item: item[1])[:3]
            lines.append(
                f"{Path(row.name).name}, least similar of {len(row.by_layer)} layers: "
                + ", ".join(f"{layer} {found:.3f}" for layer, found in least)
            )
    lines += [
        f"{Path(row.name).name}: far less similar in the layer {row.least_similar[0]}, {row.least_similar[1]:.3f}"
        for row in merged.rows
        if row.least_similar is not None and row.least_similar[1] < row.after / 2
    ]
    if merged.calibration is not None and data is not None:
        found = merged.calibration
        lines.append(
            f"on {found.examples} test examples of {data.name}: accuracy {100 * found.accuracy:.1f} %, "
            f"loss {found.loss:.3f}, with beta {found.beta:.3f} {found.calibrated_loss:.3f}"
            + (f", perplexity {math.exp(min(found.loss, 700)):.4g}" if data.tokens else "")
        )
        if merged.unaligned is not None:
            was = merged.unaligned
            lines.append(f"averaged as they are: accuracy {100 * was.accuracy:.1f} %, loss {was.loss:.3f}")
        if found.batch_norms:
            lines.append(
                f"statistics of {found.batch_norms} BatchNorm layers taken anew; "
                f"before that, accuracy {100 * found.accuracy_before:.1f} %, loss {found.loss_before:.3f}"
            )
    elif opened.model is not None and any("running_mean" in key for key in opened.first):
        lines.append("the model has BatchNorm: its statistics were averaged, too; --data takes them anew")
    return [*lines, f"written: {out}"]


def _parse_weights(text: str, count: int, are_final: bool) -> list[float] | None:
    """Weights from the command line; what is done to those that do not sum to one is said."""
    if not text:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise MergeError(f"weights {text!r}: write numbers with commas, such as 0.3,0.7") from None
    if len(found) != count:
        raise MergeError(f"{len(found)} weights for {count} checkpoints: give one for each")
    total = math.fsum(found)
    if not are_final and total > 0 and not math.isclose(total, 1, rel_tol=1e-6):
        shares = ", ".join(f"{weight / total:.4g}" for weight in found)
        say(f"the weights {text} sum to {total:.6g}, not to 1: each is divided by that, which gives {shares}")
    return found


def _demand_sense(checkpoints: list[Path], method: str, base: Path | None) -> None:
    """Refuse what cannot work before anything is read.

    Raises:
        MergeError: saying what to give instead.
    """
    if len(checkpoints) + (base is not None) < 2:
        raise MergeError("a single checkpoint cannot be merged: give at least two, or one and --base")
    if base is not None and method not in REFERENCED:
        raise MergeError(f"--base: {method} does not align to a reference; choose {', '.join(REFERENCED)}")
