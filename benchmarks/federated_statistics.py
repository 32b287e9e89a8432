"""What a client pays for each federated statistic: seconds and bytes, for MLP-512, VGG-11 and ResNet-20 x4.

    python benchmarks/federated_statistics.py [--examples 256] [--batch-size 64] [--models mlp vgg11 resnet20x4]

Seconds are those of one client with that many examples on this machine, with random data and weights: they grow with
the examples, bytes do not. Sums travel in float64.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from fedrebasin.affine import affine_weights, head_weight
from torch import Tensor, nn

from fedrebasin import PermutationSpec, Statistic, collect_sums
from fedrebasin.analysis import HalfwayConnectivity, PathEvaluation
from fedrebasin.calibration import Reliability
from fedrebasin.models import MLP, VGG11, ResNet20
from fedrebasin.sums import (
    ActivationCorrelation,
    BatchNormMoments,
    Evaluation,
    GramMatrices,
    HeadSums,
    LayerRegression,
    PreActivationMoments,
    TemperatureCurve,
)
from fedrebasin.watching import unit_places

Batches = list[tuple[Tensor, Tensor]]
MODELS = {
    "mlp": ("MLP 3 x 512", lambda: MLP(784), (1, 28, 28)),
    "vgg11": ("VGG-11, BatchNorm", lambda: VGG11(norm="batch"), (3, 32, 32)),
    "resnet20x4": ("ResNet-20 x4, BatchNorm", lambda: ResNet20(width=4, norm="batch"), (3, 32, 32)),
}


def statistics_of(model: nn.Module, state: dict[str, Tensor], batches: Batches) -> Iterator[tuple[str, Any]]:
    weights = affine_weights(model, state, batches[0])
    head = head_weight(model, state, batches[0])
    yield "loss and accuracy", [Evaluation()]
    yield "reliability bins", [Reliability()]
    yield "barrier between two models, 5 points", [PathEvaluation(state)]
    yield "LLFC and LEWC halfway between two models", [HalfwayConnectivity(state)]
    yield "temperature", [TemperatureCurve()]
    if any("running_mean" in key for key in state):
        yield "BatchNorm moments, a pass", [BatchNormMoments()]
    yield "REPAIR moments, a pass", [PreActivationMoments(weights[:-1])]
    yield "ridge head", [HeadSums(head)]
    places = unit_places(model, state, batches[0], PermutationSpec.trace(model, batches[0][0][:2], check=False))
    yield "activation correlations", [ActivationCorrelation(places, state)]
    yield "Gram matrices, up to 1200 features", [GramMatrices(max_features=1200)]
    yield "Gram matrices", [GramMatrices()]
    yield "Gram matrices, single precision", [GramMatrices(single_precision=True)]
    yield "sequential regression, all layers", [LayerRegression(weight, state) for weight in weights]


def measure(statistics: list[Statistic[object]], model: nn.Module, state: dict[str, Tensor], batches: Batches) -> str:
    size, start, busy = 0, time.perf_counter(), time.process_time()
    for statistic in statistics:
        sums = collect_sums(statistic, model, state, batches)
        size += sum(tensor.numel() * tensor.element_size() for tensor in sums.values())
    return f"{time.perf_counter() - start:.2f} | {time.process_time() - busy:.2f} | {size:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--only", default="", help="statistics whose name has this in it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    print(f"{options.examples} examples, batches of {options.batch_size}, {options.device}\n")
    print("| model | statistic | seconds | CPU seconds | bytes |\n| --- | --- | ---: | ---: | ---: |")
    for name in options.models:
        title, make, shape = MODELS[name]
        torch.manual_seed(0)
        model = make().to(options.device).eval()
        state = {key: tensor.detach() for key, tensor in model.state_dict().items()}
        inputs = torch.randn(options.examples, *shape, device=options.device)
        labels = torch.randint(10, (options.examples,), device=options.device)
        parts = [part.split(options.batch_size) for part in (inputs, labels)]
        batches = list(zip(*parts, strict=True))
        weights = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        print(f"| {title} | (the weights themselves) | | | {weights:,} |")
        for label, statistics in statistics_of(model, state, batches):
            if options.only not in label:
                continue
            print(f"| {title} | {label} | {measure(statistics, model, state, batches)} |", flush=True)


if __name__ == "__main__":
    main()
