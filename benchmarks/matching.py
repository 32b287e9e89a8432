"""Weight matching beside a plain Algorithm 1: time, objective, barrier, growth.

    python benchmarks/matching.py --data-dir DIR --cache DIR [--only NAME ...] [--repeats 5] [--growth] [--out FILE]

DIR is a torchvision root or a folder with Fashion-MNIST's four IDX files. The first run trains the pairs (minutes) and
keeps them in the cache. Everything runs in one process on one thread. Seconds are processor seconds, so that a machine
that does other things too does not disturb them; on an idle one they are the wall clock's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from support.pairs import RECIPES, State, fashion_mnist, inputs_of, new_model, trained
from support.plain import plain_weight_matching

from fedrebasin import MergeMany, Permutation, PermutationSpec, WeightMatching, average, loss_barrier
from fedrebasin.models import make_model
from fedrebasin.simulations import Dataset

T = TypeVar("T")
BARRIER_IMAGES = {"mlp": 2000, "resnet20": 200, "vgg11": 200}  # convolutions cost much on a processor
ORDERS = (0, 1, 2)
CUDA_ROWS = ("ResNet-20 x32", "ResNet-50", "MLP-512")


class Row(NamedTuple):
    """One line of the table."""

    network: str
    method: str
    seconds: float
    objective: float
    barrier: float | None
    ratio: float | None
    runs: int

    def __str__(self) -> str:
        barrier = "-" if self.barrier is None else f"{self.barrier:.4f}"
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}"
        return (
            f"| {self.network} | {self.method} | {self.seconds:.2f} | {self.objective:.2f} | {barrier} | {ratio} "
            f"| {self.runs} |"
        )


HEADER = (
    "| network | method | seconds | objective | barrier | times faster than plain, same order | runs |\n"
    "|---|---|---|---|---|---|---|"
)


def timed(function: Callable[[], T], runs: int) -> tuple[float, T]:
    """Median processor seconds, and the result."""
    seconds = []
    for _ in range(runs):
        started = time.process_time()
        result = function()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds), result


def inner_product(spec: PermutationSpec, a: State, b: State) -> float:
    return sum(float((a[key].double() * b[key].double()).sum()) for key in spec.shapes if key not in spec.statistics)


def pair_rows(network: str, data: Dataset, cache: Path, repeats: int) -> list[Row]:
    recipe = RECIPES[network]
    a, b = (trained(recipe, data, seed, cache) for seed in (0, 1))
    model = new_model(recipe, data, 0)
    model.load_state_dict(a)
    images = inputs_of(recipe, data.test_inputs[: BARRIER_IMAGES[recipe.model]])
    spec = PermutationSpec.trace(model, images[:2])
    batches = list(zip(images.split(500), data.test_labels[: BARRIER_IMAGES[recipe.model]].split(500), strict=True))

    def barrier(aligned: State) -> float:
        return loss_barrier(model, a, aligned, batches).value

    rows = [Row(network, "naive averaging", 0.0, inner_product(spec, a, b), barrier(b), None, 1)]
    print(rows[-1], flush=True)
    for seed in ORDERS:
        # The slow ones run once for each order; one order of each is repeated.
        runs = repeats if seed == ORDERS[0] and network in ("MLP-512", "ResNet-20 x4") else 1

        def plain(seed: int = seed) -> Permutation:
            return plain_weight_matching(spec, a, b, seed)

        def ours(seed: int = seed) -> Permutation:
            return WeightMatching(method="coordinate", seed=seed)(spec, a, b).permutation

        seconds: dict[str, float] = {}
        for name, function in ((f"plain Algorithm 1, order {seed}", plain), (f"coordinate, order {seed}", ours)):
            seconds[name], found = timed(function, runs)
            aligned = found.apply(b)
            ratio = None if function is plain else next(iter(seconds.values())) / seconds[name]
            value = barrier(aligned) if seed == ORDERS[0] else None
            rows.append(Row(network, name, seconds[name], inner_product(spec, a, aligned), value, ratio, runs))
            print(rows[-1], flush=True)
    plain_seconds = statistics.median(row.seconds for row in rows if row.method.startswith("plain"))
    for method in ("frank-wolfe", "auto"):
        runs = repeats if network in ("MLP-512", "ResNet-20 x4") else 1
        taken, alignment = timed(lambda method=method: WeightMatching(method=method)(spec, a, b), runs)
        aligned = alignment.apply(b)
        value = inner_product(spec, a, aligned)
        rows.append(Row(network, f'"{method}"', taken, value, barrier(aligned), plain_seconds / taken, runs))
        print(rows[-1], flush=True)
    return rows


def merge_many_rows(data: Dataset, cache: Path) -> list[Row]:
    """Five MLPs into one; the objective column is the mean squared distance to the mean."""
    recipe = RECIPES["MLP-512"]
    states = [trained(recipe, data, seed, cache) for seed in range(5)]
    model = new_model(recipe, data, 0)
    spec = PermutationSpec.trace(model, data.test_inputs[:2])
    rows = []
    taken, current = timed(lambda: plain_merge_many(spec, states), 1)
    rows.append(Row("5 x MLP-512", "plain MergeMany", taken, spread(spec, current), None, None, 1))
    for name, aligner in (
        ("MergeMany", MergeMany()),
        ("MergeMany, coordinate", MergeMany(WeightMatching(method="coordinate"))),
    ):
        seconds, merge = timed(lambda aligner=aligner: aligner(spec, states), 1)
        rows.append(Row("5 x MLP-512", name, seconds, spread(spec, list(merge.states)), None, taken / seconds, 1))
    for row in rows:
        print(row, flush=True)
    return rows


def plain_merge_many(spec: PermutationSpec, states: list[State]) -> list[State]:
    """Git Re-Basin's Algorithm 3 on the plain Algorithm 1."""
    generator = torch.Generator().manual_seed(0)
    current = list(states)
    progress = True
    while progress:
        progress = False
        for k in torch.randperm(len(current), generator=generator).tolist():
            mean = average([state for j, state in enumerate(current) if j != k])
            aligned = plain_weight_matching(spec, mean, current[k], 0).apply(current[k])
            if inner_product(spec, mean, aligned) > inner_product(spec, mean, current[k]) + 1e-4:
                current[k], progress = aligned, True
    return current


def spread(spec: PermutationSpec, states: list[State]) -> float:
    mean = average([{key: tensor.double() for key, tensor in state.items()} for state in states])
    own = statistics.fmean(inner_product(spec, state, state) for state in states)
    return own - inner_product(spec, mean, mean)


def growth(largest_width: int, most_clients: int, plot: Path) -> list[str]:
    """Time against width and against clients, on networks at their initialisation, as exponents and a plot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8))
    lines = []
    sizes = {"width": [128 * 2**k for k in range(6)], "clients": [2, 4, 8, 16, 32, 64]}
    limits = {"width": largest_width, "clients": most_clients}
    for panel, (what, values) in zip(panels, sizes.items(), strict=True):
        values = [value for value in values if value <= limits[what]]
        seconds = []
        for value in values:
            width, clients = (value, 2) if what == "width" else (64, value)
            models = [make_model("mlp", (1, 28, 28), 10, width, seed) for seed in range(clients)]
            states = [model.state_dict() for model in models]
            spec = PermutationSpec.trace(models[0], torch.zeros(2, 1, 28, 28), check=False)
            if what == "width":
                matcher = WeightMatching(method="coordinate", max_sweeps=3)
                taken, _ = timed(lambda: matcher(spec, states[0], states[1]), 1)  # noqa: B023
            else:
                taken, _ = timed(lambda: MergeMany(max_rounds=3)(spec, states), 1)  # noqa: B023
            seconds.append(taken)
            print(f"{what} {value}: {taken:.2f} s", flush=True)
        logs = [torch.tensor([float(x) for x in column]).log() for column in (values, seconds)]
        centred = [column - column.mean() for column in logs]
        exponent = float((centred[0] * centred[1]).sum() / centred[0].square().sum())
        last = float((logs[1][-1] - logs[1][-2]) / (logs[0][-1] - logs[0][-2]))
        found = "three sweeps of coordinate ascent" if what == "width" else "three rounds of MergeMany, width 64"
        table = ", ".join(f"{value}: {taken:.2f} s" for value, taken in zip(values, seconds, strict=True))
        lines.append(f"- {what} ({found}): {table}; exponent {exponent:.2f}, {last:.2f} at the end")
        panel.loglog(values, seconds, "o-")
        panel.set(xlabel=what, ylabel="seconds", title=f"{found}: exponent {exponent:.2f}")
        panel.set_xticks(values, [str(value) for value in values])
        panel.minorticks_off()
    figure.tight_layout()
    figure.savefig(plot)
    return lines


def cuda_lines() -> list[str]:
    if not torch.cuda.is_available():
        return [f"- {name} on a CUDA device: not run, there is none" for name in CUDA_ROWS]
    lines = []
    for name in CUDA_ROWS:
        from torchvision.models import resnet50

        builds = {
            "ResNet-20 x32": lambda: make_model("resnet20", (3, 32, 32), 10, 32),
            "ResNet-50": resnet50,
            "MLP-512": lambda: make_model("mlp", (1, 28, 28), 10, 512),
        }
        models = [builds[name]().eval() for _ in range(2)]
        shape = (2, 1, 28, 28) if name == "MLP-512" else (2, 3, 32, 32)
        spec = PermutationSpec.trace(models[0], torch.zeros(shape), check=False)
        states = [{key: tensor.cuda() for key, tensor in model.state_dict().items()} for model in models]
        matcher = WeightMatching(method="coordinate")
        matcher(spec, states[0], states[1])
        started = time.perf_counter()
        matcher(spec, states[0], states[1])
        taken = time.perf_counter() - started
        lines.append(f"- {name} on {torch.cuda.get_device_name()}: {taken:.2f} s (wall clock, second run)")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="", help="where Fashion-MNIST lies")
    parser.add_argument("--cache", type=Path, default=Path("out/matching"), help="where trained networks are kept")
    parser.add_argument("--only", nargs="*", default=[*RECIPES, "merge-many"], help="which rows")
    parser.add_argument("--repeats", type=int, default=5, help="runs of the fast ones; their median is shown")
    parser.add_argument("--growth", action="store_true", help="also time against width and clients")
    parser.add_argument("--largest-width", type=int, default=4096)
    parser.add_argument("--most-clients", type=int, default=64)
    parser.add_argument("--plot", type=Path, default=Path("out/matching-growth.svg"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.data_dir:
        data = fashion_mnist(arguments.data_dir)
        print(HEADER)
        for network in arguments.only:
            if network == "merge-many":
                merge_many_rows(data, arguments.cache)
            else:
                pair_rows(network, data, arguments.cache, arguments.repeats)
    else:
        print("pairs: not run, --data-dir says where Fashion-MNIST lies")
    if arguments.growth:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        print("\n".join(growth(arguments.largest_width, arguments.most_clients, arguments.plot)))
    print("\n".join(cuda_lines()))


if __name__ == "__main__":
    main()
