"""One forger among six clients: what its sums do to every calibrator and to a barrier, and what the defence costs.

    python benchmarks/forged_sums.py [--seeds 5] [--width 32] [--write]

Small networks on digits, each client with its own initialisation and its own part of the data. The forger sends an
honest model and forges its sums: those of other labels, of outputs turned round, of features in another order, times k.
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum, Strategy
from support.forgers import Clients, Forgery, Sums, make_model, run, train_clients
from support.section import stamp, write_section

from fedrebasin.simulations import load_dataset
from fedrebasin.strategies import (
    ActivationAlignment,
    BarrierProbe,
    BatchNormRecalibration,
    Calibrator,
    HeadRegression,
    RegMean,
    Repair,
    SequentialRegression,
    TemperatureCalibration,
)

CLIENTS, STEPS = 6, 100
SPLITS = {"iid": ("iid", 0.0), "Dirichlet 0.5": ("dirichlet", 0.5), "Dirichlet 0.1": ("dirichlet", 0.1)}
UNDEFENDED = "FedMedian that trusts sums"
BARRIER, TEMPERATURE = "barrier probe", "temperature"  # measured in nats, the others in points of accuracy


class Trusting(FedMedian):
    """FedMedian whose calibrators are not told that it expects attackers."""

    robust = False


NOTE = """
`python benchmarks/forged_sums.py --write`. Six clients of digits, 1,347 training examples among them, networks of two
hidden layers of 32, one with BatchNorm; one of the six forges its sums and sends an honest model. An entry is what is
lost on the test set, the mean over the seeds and in brackets the worst, in points of accuracy (temperature and barrier:
nats); below zero is gained. "Defence, honest": all six honest, against the same FedMedian whose calibrators trust all
sums; "honest left out": how many then are, all round trips together. "Forger's data missing": what the other five alone
give, against all six honest: what no defence can bring back, and what the columns after it are compared with. k: the
forged sums (of other labels, outputs turned round, features in another order) times k; hidden: times 1000, but for the
number of examples; adaptive: twice as large as they should be, which is what a client may have, and a quarter, a half
or three quarters of them false, whichever is worst in each seed. Others: the worse of k = 1 and 1000. FedAvg expects no
attackers: sums count for ten times the usual at most, and nothing is compared.
"""


def times(k: float) -> Forgery:
    """The forger's sums as if of so many clients."""
    return lambda own, lie: {key: k * tensor for key, tensor in lie.items()}


def hidden(k: float) -> Forgery:
    """The same, the number of examples left as it is."""
    return lambda own, lie: {key: tensor if key == "examples" else k * tensor for key, tensor in lie.items()}


def mixed(share: float) -> Forgery:
    """As large as a client's may be, and only a part of them false."""
    return lambda own, lie: {key: 2 * ((1 - share) * own[key] + share * lie[key]) for key in own}


def silent(own: Sums, lie: Sums) -> Sums:
    """No sums: what the honest ones alone give."""
    return {}


FORGERIES: dict[str, Forgery | None] = {
    "all honest": None,
    "the others alone": silent,
    "k = 1": times(1),
    "k = 10": times(10),
    "k = 1000": times(1000),
    "k = 1000, hidden": hidden(1000),
}
FEW = ("all honest",)
LESS = (*FEW, "the others alone", "k = 1", "k = 1000")
ADAPTIVE = {f"mixed {share}": mixed(share) for share in (0.25, 0.5, 0.75)}


def inners() -> dict[str, Callable[[], Strategy]]:
    """The strategies inside, which expect one attacker."""
    common = {"fraction_evaluate": 0.0, "min_train_nodes": CLIENTS, "min_available_nodes": CLIENTS}
    return {
        "FedMedian": lambda: FedMedian(**common),
        UNDEFENDED: lambda: Trusting(**common),
        "FedTrimmedAvg": lambda: FedTrimmedAvg(**common, beta=0.2),
        "Krum": lambda: Krum(**common, num_malicious_nodes=1),
        "FedAvg": lambda: FedAvg(**common),
    }


def calibrators(width: int) -> dict[str, Calibrator | None]:
    """All of them; None stands for the probe."""
    model, example = make_model(width).eval(), load_dataset("digits").test_inputs[:2]
    return {
        "head": HeadRegression(model, example),
        "sequential regression": SequentialRegression(model, example),
        "RegMean": RegMean(),
        "REPAIR": Repair(model, example),
        "BatchNorm": BatchNormRecalibration(),
        "activation alignment": ActivationAlignment(model, example),
        TEMPERATURE: TemperatureCalibration(),
        BARRIER: None,
    }


def measured(clients: Clients, name: str, part: Calibrator | None, inner: Strategy, forgery: Forgery | None) -> tuple:
    """How bad it is (points of accuracy that are missing, or nats), and how many clients were left out."""
    probes = () if part is not None else (BarrierProbe(points=3),)
    state, found = run(clients, inner, part, forgery, probes)
    left_out = sum(value for key, value in found.items() if key.endswith("left-out"))
    if name == BARRIER:
        return found["rebasin-barrier"], left_out
    accuracy, loss = clients.measure(state, found.get("beta", 1.0))
    return (loss if name == TEMPERATURE else 100 - accuracy), left_out


def take(split: str, seed: int, width: int, names: Sequence[str]) -> dict[tuple[str, str, str], tuple[float, float]]:
    """One seed's measurements by calibrator, inner strategy and forgery."""
    clients = train_clients(CLIENTS, *SPLITS[split], width, STEPS, seed)
    found = {}
    for name, part in ((name, part) for name, part in calibrators(width).items() if name in names):
        for inner, make in inners().items():
            forgeries = FORGERIES | ADAPTIVE if inner == "FedMedian" else FORGERIES
            for forgery, forge in forgeries.items():
                few = FEW if inner == UNDEFENDED else LESS
                if inner == "FedMedian" or forgery in few:
                    found[name, inner, forgery] = measured(clients, name, part, make(), forge)
    return found


def main() -> None:
    """Measure, print the tables, write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--calibrators", nargs="+", default=list(calibrators(32)), choices=list(calibrators(32)))
    parser.add_argument("--write", action="store_true", help="write the page in benchmarks/results/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    lines = [*NOTE.strip().splitlines(), stamp()]
    for split in SPLITS:
        rows: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
        for seed in range(arguments.seeds):
            for key, value in take(split, seed, arguments.width, arguments.calibrators).items():
                rows[key].append(value)
            print(f"{split}, seed {seed}", flush=True)
        lines += ["", f"### {split}, {arguments.seeds} seeds", "", *table(rows)]
    print("\n".join(lines))
    if arguments.write:
        write_section("## Forged sums", lines)


def table(rows: dict[tuple[str, str, str], list[tuple[float, float]]]) -> list[str]:
    """What is lost, mean and worst, by calibrator."""
    others = ("FedTrimmedAvg", "Krum", "FedAvg")
    head = ["calibrator", "defence, honest", "honest left out", "forger's data missing", "k = 1", "k = 10", "k = 1000"]
    head += ["hidden", "adaptive", *(f"{inner}, any k" for inner in others)]
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]

    def values(name: str, inner: str, forgery: str) -> list[float]:
        return [bad for bad, _ in rows[name, inner, forgery]]

    def lost(name: str, inner: str, than: str, *forgeries: str, before_in: str = "") -> str:
        digits = 2 if name in (TEMPERATURE, BARRIER) else 1
        worst = [max(each) for each in zip(*(values(name, inner, forgery) for forgery in forgeries), strict=True)]
        more = [bad - before for bad, before in zip(worst, values(name, before_in or inner, than), strict=True)]
        return f"{fmean(more):.{digits}f} ({max(more):.{digits}f})"

    for name in dict.fromkeys(name for name, _, _ in rows):
        alone, any_k = "the others alone", ("k = 1", "k = 1000")
        cells = [name, lost(name, "FedMedian", "all honest", "all honest", before_in=UNDEFENDED)]
        cells.append(f"{fmean(out for _, out in rows[name, 'FedMedian', 'all honest']):.1f}")
        cells.append(lost(name, "FedMedian", "all honest", alone))
        cells += [lost(name, "FedMedian", alone, each) for each in ("k = 1", "k = 10", "k = 1000", "k = 1000, hidden")]
        cells.append(lost(name, "FedMedian", alone, *ADAPTIVE))
        cells += [lost(name, inner, alone, *any_k) for inner in others]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
