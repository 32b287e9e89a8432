"""An aligned server for the simulations' clients: it writes a checkpoint after each round and goes on from the last."""

import json
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedrebasin.simulations import Federation, SimulationConfig
from fedrebasin.strategies import FedRebasin, to_state

app = ServerApp()
SECONDS_FOR_NODES = 60


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for as many rounds as the run config says, with the nodes that are there."""
    settings = context.run_config
    config = SimulationConfig.from_flower(settings)
    federation, folder = Federation(config), Path(str(settings["folder"]))
    deadline = time.monotonic() + SECONDS_FOR_NODES
    while len(list(grid.get_node_ids())) < config.clients and time.monotonic() < deadline:
        time.sleep(1)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = federation.server_model()
        model.load_state_dict(to_state(arrays))
        hits = federation.predict(model).argmax(1) == federation.dataset.test_labels
        return MetricRecord({"accuracy": float(hits.double().mean())})

    strategy = FedRebasin(
        FedAvg(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2),
        spec=federation.spec,
        checkpoint=folder / "checkpoints",
        resume=True,
    )
    with torch.no_grad():
        initial = ArrayRecord(federation.server_model().state_dict())
    result = strategy.start(
        grid,
        initial,
        num_rounds=config.rounds,
        timeout=float(str(settings["round-timeout"])),
        train_config=ConfigRecord(dict(config.to_flower())),
        evaluate_fn=evaluate,
    )
    rounds = {number: dict(metrics) for number, metrics in sorted(result.train_metrics_clientapp.items())}
    accuracies = {number: metrics["accuracy"] for number, metrics in sorted(result.evaluate_metrics_serverapp.items())}
    (folder / "results.json").write_text(json.dumps({"rounds": rounds, "accuracies": accuracies}, indent=2))
