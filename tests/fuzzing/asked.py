"""A small network with data, and everything that clients may be asked for, with it."""

from __future__ import annotations

import torch
from torch import nn

from fedrebasin import PermutationSpec
from fedrebasin.analysis.midpoint import HalfwayConnectivity
from fedrebasin.analysis.path import PathEvaluation
from fedrebasin.registry import STATISTICS
from fedrebasin.sums import (
    ActivationCorrelation,
    BatchNormMoments,
    GramMatrices,
    HeadSums,
    LayerRegression,
    Moments,
    PreActivationMoments,
    TemperatureCurve,
)
from fedrebasin.watching import unit_places

FEATURES, HIDDEN, CLASSES = 3, 4, 3
EXAMPLE = torch.zeros(2, FEATURES)


def make_model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Linear(FEATURES, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU()),
            *(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)),
        ).eval()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(24, FEATURES, generator=generator), torch.arange(24) % CLASSES)]


SPEC = PermutationSpec.trace(make_model(), EXAMPLE)
OTHER = dict(make_model(7).state_dict())
TARGETS = {"0.weight": Moments(24.0, torch.zeros(HIDDEN), torch.ones(HIDDEN))}

ASKED = {
    "activation_correlation": ActivationCorrelation(
        unit_places(make_model(), make_model().state_dict(), EXAMPLE, SPEC), OTHER
    ),
    "batch_norm": BatchNormMoments(),
    "gram": GramMatrices(max_features=100),
    "halfway_connectivity": HalfwayConnectivity(OTHER),
    "head": HeadSums("5.weight", (CLASSES, HIDDEN)),
    "layer_regression": LayerRegression("3.weight", OTHER),
    "path_evaluation": PathEvaluation(OTHER, 3),
    "pre_activations": PreActivationMoments(("0.weight", "3.weight"), TARGETS),
    "temperature": TemperatureCurve((0.5, 1.0, 2.0)),
}
assert ASKED.keys() == {name for name, kind in STATISTICS.items() if kind.__module__.startswith("fedrebasin")}
