"""A planted permutation over the model zoos: is it found again by the defaults, and in how many seconds.

Of every family of torchvision, transformers and timm the smallest network (shrunk where a configuration allows, at most
30e6 parameters): one model as it is initialised and two with every tensor random are moved by a random member of their
spec, and matched to themselves; once more with noise of 1 % of each tensor's deviation. Found means that both
permutations together leave every tensor as it was. Three moved copies are merged by AlignTo, MergeMany (both again with
noise) and by ``fedrebasin merge`` on files.

    python benchmarks/planted.py [torchvision] [transformers] [timm] [--models NAME ...] [--rows DIR] [--write]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from support.networks import ZOOS, Case
from support.section import stamp, write_section
from torch import Tensor
from typer.testing import CliRunner

from fedrebasin import Aligner, AlignTo, MergeMany, Permutation, PermutationSpec, RebasinError, WeightMatching
from fedrebasin.cli.app import app
from fedrebasin.files.checkpoints import load_checkpoint, save_checkpoint

NOISE = 0.01
SEEDS = range(3)
MEANS = """\
`python benchmarks/planted.py torchvision transformers timm --rows DIR --write` writes this section. Found: how often
the planted permutation was undone, and after the comma with noise of 1 % of each tensor's deviation. WeightMatching:
three seeds, the first as initialised, the others with every tensor random. AlignTo and MergeMany: three copies, without
and with noise, all in one order afterwards. merge: three files, the result being the model itself. Depth: of groups in
the blocks of groups. Seconds: of the processor on one thread, beside other work on the machine: the median of one
matching, without and with noise, and two merges of three by AlignTo and MergeMany."""
COLUMNS = (
    "| model | parameters | groups | depth | WeightMatching | AlignTo | MergeMany | merge | seconds | with noise"
    " | AlignTo | MergeMany |"
)
State = Mapping[str, Tensor]


class Row(NamedTuple):
    """One line of the table; counts are (found, tried)."""

    name: str
    parameters: int
    groups: int
    depth: int
    exact: tuple[int, int]
    noisy: tuple[int, int]
    align_to: tuple[int, int]
    merge_many: tuple[int, int]
    command: tuple[int, int]
    seconds: float
    noisy_seconds: float
    align_seconds: float
    merge_seconds: float

    def __str__(self) -> str:
        exact, noisy, align, merge, command = (
            f"{found} of {tried}"
            for found, tried in (self.exact, self.noisy, self.align_to, self.merge_many, self.command)
        )
        times = " | ".join(f"{seconds:.2f}" for seconds in self[-4:])
        return (
            f"| {self.name} | {self.parameters / 1e6:.2f}e6 | {self.groups} | {self.depth} | {exact}, {noisy} | {align}"
            f" | {merge} | {command} | {times} |"
        )

    @property
    def all_found(self) -> bool:
        return all(
            found == tried for found, tried in (self.exact, self.noisy, self.align_to, self.merge_many, self.command)
        )


def randomised(state: State, seed: int) -> dict[str, Tensor]:
    """As it is for the first seed; otherwise with no constant tensor left."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: tensor.detach().clone()
        if seed == 0 or not tensor.is_floating_point()
        else tensor.detach() + 0.05 * torch.randn(tensor.shape, generator=generator)
        for key, tensor in state.items()
    }


def moved(spec: PermutationSpec, state: State, seed: int, noise: float) -> tuple[Permutation, dict[str, Tensor]]:
    """A random member, and the state that it moves, with noise."""
    generator = torch.Generator().manual_seed(100 + seed)
    member = Permutation.random(spec, generator)
    found = member.apply(state)
    for key in spec.voting(state) if noise else ():
        tensor = found[key]
        found[key] = tensor + noise * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator)
    return member, found


def same(a: State, b: State) -> bool:
    return all(torch.equal(tensor, b[key]) for key, tensor in a.items())


def measure(name: str, make: Case) -> Row | str:
    torch.manual_seed(0)
    try:
        model, inputs = make()
        spec = PermutationSpec.trace(model, inputs, check=False)
    except Exception as error:  # whatever keeps a model of another package from being built and traced is the reason
        return f"{type(error).__name__}: {(str(error).strip() or ' ').splitlines()[0][:160]}"
    fresh = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    spec = spec.bind(fresh)
    free = [group for group in spec.groups.values() if not group.frozen]
    found = {0.0: 0, NOISE: 0}
    seconds: dict[float, list[float]] = {0.0: [], NOISE: []}
    for seed in SEEDS:
        state = randomised(fresh, seed)
        for noise in found:
            member, other = moved(spec, state, seed, noise)
            started = time.process_time()
            alignment = WeightMatching()(spec, reference=state, candidate=other)
            seconds[noise].append(time.process_time() - started)
            found[noise] += same(alignment.permutation.compose(member).apply(state), state)
    state = randomised(fresh, 1)
    merges = {}
    for aligner in (AlignTo(), MergeMany()):
        outcomes = [merged_in_one_order(aligner, spec, state, noise) for noise in found]
        merges[type(aligner)] = (sum(good for good, _ in outcomes), 2), outcomes[0][1] + outcomes[1][1]
    return Row(
        name,
        sum(parameter.numel() for parameter in model.parameters()),
        len(free),
        max((len(spec.shape(group.name)) for group in free), default=0),
        (found[0.0], len(SEEDS)),
        (found[NOISE], len(SEEDS)),
        merges[AlignTo][0],
        merges[MergeMany][0],
        (int(merged_by_the_command(spec, state)), 1),
        statistics.median(seconds[0.0]),
        statistics.median(seconds[NOISE]),
        merges[AlignTo][1],
        merges[MergeMany][1],
    )


def merged_in_one_order(aligner: Aligner, spec: PermutationSpec, state: State, noise: float) -> tuple[bool, float]:
    """Whether three moved copies come to lie in one order, and processor seconds."""
    copies = [moved(spec, state, seed, noise) for seed in SEEDS]
    started = time.process_time()
    merge = aligner(spec, [other for _, other in copies])
    seconds = time.process_time() - started
    orders = [
        alignment.permutation.compose(member).apply(state)
        for alignment, (member, _) in zip(merge.alignments, copies, strict=True)
    ]
    return all(same(order, orders[0]) for order in orders), seconds


def merged_by_the_command(spec: PermutationSpec, state: State) -> bool:
    """Whether the command makes one model, the first file's, out of three moved copies of it."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{seed}.safetensors" for seed in SEEDS]
        copies = [moved(spec, state, seed, 0.0)[1] for seed in SEEDS]
        for path, copy in zip(paths, copies, strict=True):
            save_checkpoint(path, {key: tensor.clone() for key, tensor in copy.items()})
        spec.save(Path(folder) / "spec.json")
        out = Path(folder) / "merged.safetensors"
        arguments = ["merge", *map(str, paths), "--spec", str(Path(folder) / "spec.json"), "--out", str(out)]
        result = CliRunner().invoke(app, arguments)
        if result.exit_code:
            raise RebasinError(f"the command: {result.output.strip().splitlines()[-1]}")
        merged = load_checkpoint(out).state
        return all(torch.allclose(merged[key], copies[0][key], rtol=1e-5, atol=1e-6) for key in spec.voting(state))


def kept_or_measured(folder: Path | None, zoo: str, name: str, make: Case) -> Row | str:
    """The row, or why there is none, from the folder if it is there; otherwise it is measured and put there."""
    path = None if folder is None else folder / f"{zoo}-{''.join(c if c.isalnum() else '-' for c in name)}.json"
    if path is not None and path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
    else:
        kept = measure(name, make)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(kept), encoding="utf-8")
    return kept if isinstance(kept, str) else Row(*(tuple(x) if isinstance(x, list) else x for x in kept))


def section(zoo: str, cases: Iterator[tuple[str, Case]], only: list[str] | None, folder: Path | None) -> list[str]:
    lines = [f"### {zoo}", "", COLUMNS, "| --- " * 12 + "|"]
    print("\n".join(lines), flush=True)
    rows, failed = [], []
    for name, make in cases:
        if only and name not in only:
            continue
        row = kept_or_measured(folder, zoo, name, make)
        if isinstance(row, str):
            failed.append(f"- {name}: {row}")
            print(failed[-1], flush=True)
        else:
            rows.append(row)
            lines.append(str(row))
            print(row, flush=True)
    missed = [row.name for row in rows if not row.all_found]
    lines += ["", f"{len(rows)} models, all found in {len(rows) - len(missed)}; not in: {', '.join(missed) or 'none'}."]
    if failed:
        lines += ["", "Not tried, there being no spec:", "", *failed]
    print("\n".join(lines[-len(failed) - 4 :]), flush=True)
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoos", nargs="*", default=["torchvision"], help=f"of {', '.join(ZOOS)}")
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--rows", type=Path, help="a folder that keeps the rows, to go on from after a break")
    parser.add_argument("--write", action="store_true", help="write the page in benchmarks/results/")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines: list[str] = []
    for zoo in options.zoos:
        if importlib.util.find_spec(zoo) is None:
            print(f"{zoo} is not installed")
            continue
        lines += section(zoo, ZOOS[zoo](), options.models, options.rows)
    if options.write:
        write_section("## Planted permutations", [MEANS, stamp(), "", *lines])


if __name__ == "__main__":
    main()
