"""LEWC, Figures 2b and 19 and Table 1: without any permutation, the calibrated loss barrier and beta against width.

Two MLPs, each from its own initialisation and on its own half of digits, are averaged as they are. Beta is fitted on a
fifth of the test set, losses are taken on the rest.

    python benchmarks/calibration_by_width.py --widths 64,256,1024,4096 --seeds 3
"""

from __future__ import annotations

import argparse
from statistics import mean

import torch

from fedrebasin import loss_barrier
from fedrebasin.simulations import Federation, SimulationConfig


def measure(width: int, seed: int, epochs: int) -> tuple[float, float, float, float]:
    """Barrier, calibrated barrier, beta halfway, and by how much the average is less accurate than the end points."""
    federation = Federation(SimulationConfig(clients=2, width=width, seed=seed, local_epochs=epochs))
    states = []
    for partition in range(2):
        model = federation.client_model(partition, 1)
        federation.train_client(model, partition, 1)
        states.append({key: tensor.detach() for key, tensor in model.state_dict().items()})
    dataset = federation.dataset
    held_out, reported = dataset.test_split()
    judged, kept = ([(dataset.test_inputs[part], dataset.test_labels[part])] for part in (reported, held_out))
    plain = loss_barrier(model, *states, judged, points=3)
    calibrated = loss_barrier(model, *states, judged, points=3, calibrate=kept)
    lost = (plain.accuracies[0] + plain.accuracies[2]) / 2 - plain.accuracies[1]
    return plain.value, calibrated.value, calibrated.betas[1], lost


def main() -> None:
    """Print a table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", default="64,256,1024,4096")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| width | barrier | calibrated barrier | beta | accuracy lost |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for width in map(int, arguments.widths.split(",")):
        found = [measure(width, seed, arguments.epochs) for seed in range(arguments.seeds)]
        barrier, calibrated, beta, lost = (mean(column) for column in zip(*found, strict=True))
        print(f"| {width} | {barrier:.3f} | {calibrated:.3f} | {beta:.1f} | {100 * lost:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
