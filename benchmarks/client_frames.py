"""One permutation for a whole run against matching in every round: digits, Dirichlet 0.3, 20 rounds.

Every client starts from its own initialisation. With ``frame="client"`` each node's permutation is found in round 1 and
kept; the server sends each node the global model in that node's own coordinates. ``Frames(rematch_every=1)`` does the
same and matches again in every round: its fixed points say how much the permutations change.

    python benchmarks/client_frames.py [--rounds 20] [--seeds 2]
"""

from __future__ import annotations

import argparse
import logging
from statistics import fmean

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg

from fedrebasin import AlignTo, WeightMatching
from fedrebasin.simulations import Federation, InlineGrid, SimulationConfig, make_client_app
from fedrebasin.strategies import Aligned, Frames, to_state

CLIENTS = 5


def run(federation: Federation, frame: str | Frames) -> tuple[list[float], list[float], float]:
    """Accuracy and fixed points by round, and seconds of matching in all."""
    config = federation.config
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    matcher = WeightMatching(method="coordinate")
    strategy = Aligned(inner, spec=federation.spec, aligner=AlignTo(matcher), frame=frame)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = federation.server_model()
        model.load_state_dict(to_state(arrays))
        hits = federation.predict(model).argmax(1) == federation.dataset.test_labels
        return MetricRecord({"accuracy": float(hits.double().mean())})

    result = strategy.start(
        InlineGrid(make_client_app(), CLIENTS),
        ArrayRecord(federation.server_model().state_dict()),
        num_rounds=config.rounds,
        train_config=ConfigRecord(dict(config.to_flower())),
        evaluate_fn=evaluate,
    )
    rounds = range(1, config.rounds + 1)
    metrics = result.train_metrics_clientapp
    accuracies = [float(str(result.evaluate_metrics_serverapp[number]["accuracy"])) for number in rounds]
    fixed = [float(str(metrics[number].get("rebasin-fixed-points", 1.0))) for number in rounds]
    return accuracies, fixed, sum(float(str(metrics[number]["rebasin-seconds"])) for number in rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--width", type=float, default=64)
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    kinds: dict[str, str | Frames] = {
        "server frame, matched in every round": "server",
        'frame="client", matched once': "client",
        "client frame, matched again in every round": Frames(rematch_every=1),
    }
    print("| alignment | accuracy after round 1 / 5 / 10 / 20 | fixed points, least of all rounds | matching seconds |")
    print("| --- | --- | --- | --- |")
    for name, frame in kinds.items():
        found = []
        for seed in range(arguments.seeds):
            config = SimulationConfig(
                clients=CLIENTS,
                partition="dirichlet",
                alpha=0.3,
                rounds=arguments.rounds,
                local_epochs=5,
                width=arguments.width,
                seed=seed,
            )
            fresh = Frames(frame.rematch_every) if isinstance(frame, Frames) else frame
            found.append(run(Federation(config), fresh))
        shown = [min(number, arguments.rounds) - 1 for number in (1, 5, 10, 20)]
        accuracies = " / ".join(f"{100 * fmean(run[0][number] for run in found):.1f} %" for number in shown)
        fixed = min(min(run[1]) for run in found)
        print(f"| {name} | {accuracies} | {fixed:.3f} | {fmean(run[2] for run in found):.2f} |", flush=True)


if __name__ == "__main__":
    main()
