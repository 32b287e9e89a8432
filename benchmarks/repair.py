"""Git Re-Basin, A.4, and REPAIR, Figure 1: a matched BatchNorm network before and after its statistics are corrected.

Two networks are trained, each from its own initialisation and on its own half of the training set, matched and
averaged; the average is judged as it is, with BatchNorm recalibrated, and with REPAIR.

    python benchmarks/repair.py --data-dir CIFAR10_FOLDER --cache CACHE
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

import torch

from fedrebasin import AlignTo, average, evaluate, recalibrate_batch_norm, repair
from fedrebasin.simulations import Federation, SimulationConfig


def main() -> None:
    """Read the arguments, train what is not in the cache, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True, help="a folder with train and test, a folder a class in each")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--model", default="vgg11-bn")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    federation = Federation(
        SimulationConfig(
            dataset="image-folder",
            data_dir=arguments.data_dir,
            model=arguments.model,
            width=arguments.width,
            clients=2,
            local_epochs=arguments.epochs,
            batch_size=64,
            weight_decay=0,
            seed=arguments.seed,
        )
    )
    arguments.cache.mkdir(parents=True, exist_ok=True)
    states = []
    for partition in range(2):
        file = arguments.cache / f"{arguments.model}-{arguments.width:g}-{arguments.epochs}-{partition}.pt"
        model = federation.client_model(partition, 1)
        if not file.exists():
            federation.train_client(model, partition, 1)
            torch.save(model.state_dict(), file)
        states.append(torch.load(file, weights_only=True))
    data = federation.client_batches(0) + federation.client_batches(1)
    dataset = federation.dataset
    test = list(zip(torch.split(dataset.test_inputs, 256), torch.split(dataset.test_labels, 256), strict=True))
    merge = AlignTo(reference=0)(federation.spec, states)
    rows = {
        "mean of the two": [evaluate(model, state, test) for state in states],
        "averaged without matching, recalibrated": [
            evaluate(model, recalibrate_batch_norm(model, average(states), data), test)
        ],
        "matched": [evaluate(model, merge.merged, test)],
        "matched, recalibrated": [evaluate(model, recalibrate_batch_norm(model, merge.merged, data), test)],
        "matched, REPAIR": [evaluate(model, repair(model, merge.merged, merge.states, data, federation.spec), test)],
    }
    print("| | accuracy | loss |\n| --- | ---: | ---: |")
    for name, scores in rows.items():
        accuracy, loss = mean(score.accuracy for score in scores), mean(score.loss for score in scores)
        print(f"| {name} | {100 * accuracy:.1f} % | {loss:.3f} |")


if __name__ == "__main__":
    main()
