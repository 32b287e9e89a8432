"""Calibration and merging from sums: strategies of ``fedrebasin compare`` over three seeds, on skewed and even splits.

Clients are trained once and kept in the cache, as is every row once it was measured, so that the script can be stopped
at any time and goes on where it was. The clients answer the server's real requests for sums.

    python benchmarks/calibration.py --data-dir DATA --cache CACHE
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedrebasin.simulations import Federation, InlineGrid, SimulationConfig, run_strategy
from fedrebasin.strategies import register
from fedrebasin.sums import ensemble_log_probabilities, ensemble_logits

State = dict[str, Tensor]
SEEDS = (0, 1, 2)
TRAINING = {"optimizer": "adamw", "weight_decay": 1e-4}
FASHION = {**TRAINING, "dataset": "fashion-mnist", "local_epochs": 8, "batch_size": 128}
SPLITS: dict[str, dict[str, object]] = {
    "dirichlet": {**FASHION, "clients": 8, "partition": "dirichlet", "alpha": 0.5},
    "digits": {**TRAINING, "clients": 8, "partition": "dirichlet", "alpha": 0.3},
    "iid": {**FASHION, "clients": 4},
}
STRATEGIES = (
    "rebasin+seqreg+head+temperature",
    "merge-many+regmean",
    "rebasin+head+temperature",
    "merge-many",
    "rebasin",
    "rebasin+regmean",
    "fedavg",
    "rebasin+seqreg",
    "merge-many+regmean+head+temperature",
    "merge-many+seqreg+head+temperature",
    "fedavg+head+temperature",
    "rebasin+activations",
    "rebasin+activations+seqreg+head+temperature",
)
REFERENCES = ("mean client", "ensemble of logits", "ensemble of probabilities", "one model on all the data")


def federation_of(split: str, seed: int, data_dir: str) -> Federation:
    """One of ``SPLITS``."""
    options = dict(SPLITS[split])
    if "dataset" in options:
        options["data_dir"] = data_dir
    return Federation(SimulationConfig(seed=seed, **options))  # type: ignore[arg-type]


def trained(federation: Federation, folder: Path) -> Iterator[State]:
    """The clients' models, trained or from the cache."""
    folder.mkdir(parents=True, exist_ok=True)
    for partition in range(federation.config.clients):
        file = folder / f"client-{partition}.pt"
        if not file.exists():
            model = federation.client_model(partition, 1)
            loss, examples = federation.train_client(model, partition, 1)
            print(f"{folder.name}: client {partition}, {examples} examples, loss {loss:.3f}", flush=True)
            torch.save(model.state_dict(), file)
        yield torch.load(file, weights_only=True)


def clients_of(federation: Federation, folder: Path) -> ClientApp:
    """Clients that answer with the models in the cache, and with real sums over their parts."""
    app = ClientApp()
    states = list(trained(federation, folder))

    def place(context: Context) -> int:
        return int(context.node_config["partition-id"])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        examples = len(federation.parts[place(context)])
        records = {
            "arrays": ArrayRecord(states[place(context)]),
            "metrics": MetricRecord({"num-examples": examples}),
            "client": ConfigRecord({"partition-id": place(context)}),
        }
        return Message(RecordDict(records), reply_to=message)

    register(
        app,
        model=lambda context: federation.server_model(),
        batches=lambda context: federation.client_batches(place(context)),
        device=str(federation.device),
    )
    return app


def references(federation: Federation, folder: Path) -> dict[str, float]:
    """Accuracies of the clients' models, alone and together; of one model on everything where it is in the cache."""
    model, (_, reported) = federation.server_model(), federation.dataset.test_split()
    labels = federation.dataset.test_labels[reported]

    def accuracy(logits: Tensor) -> float:
        return float((logits[reported].argmax(1) == labels).double().mean())

    def predicted(state: State) -> Tensor:
        model.load_state_dict(state)
        return federation.predict(model).double()

    logits = [predicted(state) for state in trained(federation, folder)]
    found = dict(zip(REFERENCES, [mean(map(accuracy, logits)), 0.0, 0.0], strict=False))
    found[REFERENCES[1]] = accuracy(ensemble_logits(logits))
    found[REFERENCES[2]] = accuracy(ensemble_log_probabilities(logits))
    if (folder / "all.pt").exists():
        found[REFERENCES[3]] = accuracy(predicted(torch.load(folder / "all.pt", weights_only=True)))
    return found


def measure(split: str, seed: int, data_dir: str, cache: Path, strategies: list[str]) -> None:
    """Write the rows that are missing to ``cache/SPLIT-SEED/rows.json``."""
    federation, folder = federation_of(split, seed, data_dir), cache / f"{split}-{seed}"
    file = folder / "rows.json"
    rows = json.loads(file.read_text()) if file.exists() else {}
    missing = [name for name in strategies if name not in rows]
    rows.update(references(federation, folder))
    grid = InlineGrid(clients_of(federation, folder), federation.config.clients)
    for name in missing:
        row = run_strategy(name, federation, grid)[0][-1]
        rows[name] = row.figures.accuracy
        print(f"{folder.name}: {name} {100 * row.figures.accuracy:.2f} loss {row.figures.loss:.3f}", flush=True)
        file.write_text(json.dumps(rows, indent=1))
    file.write_text(json.dumps(rows, indent=1))


def table(cache: Path) -> str:
    """Mean and standard deviation over the seeds that were measured, in per cent."""
    lines = [f"| | {' | '.join(SPLITS)} |", f"| --- |{' ---: |' * len(SPLITS)}"]
    found = {split: [json.loads(file.read_text()) for file in cache.glob(f"{split}-*/rows.json")] for split in SPLITS}
    for name in (*STRATEGIES, *REFERENCES):
        cells = []
        for split in SPLITS:
            values = [100 * rows[name] for rows in found[split] if name in rows]
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.1f}{spread} ({len(values)})" if values else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Read the arguments, measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True, help="folder of Fashion-MNIST")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--splits", default=",".join(SPLITS))
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--all-data", action="store_true", help="also train one model on all the data")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for split in arguments.splits.split(","):
        for seed in map(int, arguments.seeds.split(",")):
            if arguments.all_data and not (place := arguments.cache / f"{split}-{seed}" / "all.pt").exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                torch.save(federation_of(split, seed, arguments.data_dir).train_on_all().state_dict(), place)
            measure(split, seed, arguments.data_dir, arguments.cache, arguments.strategies.split(","))
    print(table(arguments.cache))


if __name__ == "__main__":
    main()
