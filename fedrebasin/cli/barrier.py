"""``fedrebasin barrier``: the loss between two checkpoints, before and after their units are matched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fedrebasin.cli import options as opt
from fedrebasin.cli.bars import Bars
from fedrebasin.cli.options import DATA_HELP
from fedrebasin.cli.show import AsJson, leaving, print_json, print_table, say
from fedrebasin.errors import MergeError, choose
from fedrebasin.writing import json_text, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from fedrebasin.analysis import Barrier, Definition
    from fedrebasin.files import CheckpointSet, Data
    from fedrebasin.matching import MethodName

METHODS: dict[str, MethodName] = {"weight-matching": "auto", "frank-wolfe": "frank-wolfe", "greedy": "greedy"}
LABELS = {"before": "as they are", "after": "matched"}


def barrier(
    a: opt.A,
    b: opt.B,
    data: Annotated[str, typer.Option(help=DATA_HELP, autocompletion=opt.complete_dataset)],
    model: opt.Model = "",
    inputs: opt.Inputs = None,
    data_dir: opt.DataDir = "",
    image_size: Annotated[int, typer.Option(help="Images of a folder become squares of this size.")] = 224,
    examples: Annotated[int, typer.Option(help="Use at most this many test examples.")] = 2000,
    points: Annotated[int, typer.Option(help="Positions on the line, both ends included.")] = 25,
    method: Annotated[
        str,
        typer.Option(help=f"How B's units are matched: {', '.join(METHODS)}.", autocompletion=opt.completing(METHODS)),
    ] = "weight-matching",
    recalibrate: Annotated[
        bool, typer.Option(help="Take BatchNorm's statistics anew at every position (Git Re-Basin, A.4).")
    ] = True,
    spec: opt.SpecFile = None,
    key: opt.Key = "",
    prefix: opt.Prefix = "",
    seed: opt.MatchingSeed = 0,
    device: opt.Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for barrier.json, barrier.svg and barrier.png.")] = None,
    json: Annotated[bool, AsJson] = False,
) -> None:
    """Evaluate the models on the line between two checkpoints, as they are and with B's units matched to A's.

    Example: fedrebasin barrier a.safetensors b.pt --model torchvision:resnet18 --data cifar10 --out between
    """
    from fedrebasin.analysis import loss_barrier
    from fedrebasin.calibration import batch_norms
    from fedrebasin.cli.data import open_data
    from fedrebasin.cli.inputs import open_inputs
    from fedrebasin.devices import move, pick_device
    from fedrebasin.matching import WeightMatching
    from fedrebasin.simulations import draw_paths
    from fedrebasin.state import runnable

    choose("method", method, METHODS)
    if points < 2:
        raise MergeError(f"points {points}: a line has at least its two ends")
    place = pick_device(device)
    given = open_inputs([a, b], model, None, spec, key=key, prefix=prefix, run=True)
    opened = given.opened
    if opened.model is None:
        raise MergeError("--model is needed: it says what model the checkpoints are of")
    for note in opened.notes:
        say(note)
    found = open_data(data, data_dir, image_size, examples, place)
    groups = given.bound_spec(inputs or [], found.shape)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # fails now rather than after the work
    first, second = (runnable(move(one.state, place)) for one in opened.checkpoints)
    network = opened.model.eval().to(place)
    training = found.training if recalibrate and batch_norms(network) else None
    curves: dict[str, Barrier] = {}

    def finished() -> str:
        if out is None or not curves:
            return "no curve was finished" if not curves else "nothing is kept without --out"
        return f"the curve before matching is in {_write(out, _content(opened, found, curves, 0.0))}"

    with leaving(finished), Bars() as bars:
        alignment = WeightMatching(
            method=METHODS[method], seed=seed, progress=lambda sweep, _: bars("matching, sweep", sweep, None)
        )(groups, reference=first, candidate=second)
        for name, end in (("before", second), ("after", alignment.apply(second))):
            watched = _Watched(found.reported, bars, f"loss {LABELS[name]}", points)
            curves[name] = loss_barrier(network, first, end, watched, points, recalibrate=training)
    content = _content(opened, found, curves, alignment.similarity)
    written = []
    if out is not None:
        written = [_write(out, content), *draw_paths(curves, out, (a.name, b.name))]
    if json:
        print_json(content)
        return
    print_table(table_of(content), [f"written: {path}" for path in written])


def table_of(content: dict[str, Any]) -> Table:
    """Both ends, the worst place between them, and the barrier by both definitions: a column for each curve."""
    names = f"{Path(content['a']).name} (A) to {Path(content['b']).name} (B)"
    table = Table(title=f"{names}, {content['examples']} examples of {content['data']}", caption="losses in nats")
    table.add_column("")
    curves = list(content["curves"].values())
    for name in content["curves"]:
        table.add_column(LABELS[name], justify="right")

    def row(name: str, values: list[float], form: str) -> None:
        table.add_row(name, *(form.format(value) for value in values))

    row("loss at A", [curve["losses"][0] for curve in curves], "{:.3f}")
    row("loss at B", [curve["losses"][-1] for curve in curves], "{:.3f}")
    row("highest loss between", [max(curve["losses"]) for curve in curves], "{:.3f}")
    table.add_section()
    for name, above in (("Git Re-Basin", "mean"), ("simultaneous", "line")):
        barriers = [curve["barriers"][name.lower().replace(" ", "-")] for curve in curves]
        row(f"barrier ({name}: above the ends' {above})", barriers, "{:.3f}")
    table.add_section()
    for name, place in (("at A", 0), ("in the middle", content["points"] // 2), ("at B", -1)):
        row(f"accuracy {name}", [100 * curve["accuracies"][place] for curve in curves], "{:.1f} %")
    return table


@dataclass
class _Watched:
    """Batches that tell a progress bar when they are read once more."""

    batches: list[tuple[Tensor, Tensor]]
    bars: Bars
    who: str
    total: int
    read: int = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.bars(self.who, self.read, self.total)
        yield from self.batches
        self.read += 1
        self.bars(self.who, self.read, self.total)


def _content(opened: CheckpointSet, data: Data, curves: dict[str, Barrier], similarity: float) -> dict[str, Any]:
    from fedrebasin.analysis import barrier_value

    definitions: tuple[Definition, ...] = ("git-re-basin", "simultaneous")
    return {
        "a": str(opened.checkpoints[0].path),
        "b": str(opened.checkpoints[1].path),
        "model": opened.name,
        "data": data.name,
        "examples": data.counts()["reported"],
        "points": len(next(iter(curves.values())).lams),
        "similarity": similarity,
        "curves": {
            name: {
                **{key: value for key, value in asdict(curve).items() if key != "value"},
                "barriers": {definition: barrier_value(curve.losses, definition) for definition in definitions},
            }
            for name, curve in curves.items()
        },
    }


def _write(folder: Path, content: dict[str, Any]) -> Path:
    file = folder / "barrier.json"
    write_text(file, json_text(content))
    return file
