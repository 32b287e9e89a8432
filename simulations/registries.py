"""What a comparison knows by name: data sets, strategies and what may follow them. Names alone load nothing."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fedrebasin.registry import ALIGNERS, MATCHERS, Registry
from fedrebasin.registry import CALIBRATORS as CALIBRATORS

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

#: What loads a data set: its parameters may be ``data_dir``, ``image_size`` and ``most``, see :func:`load_dataset`.
LOADERS: Registry[Callable[..., Any]] = Registry(
    "dataset",
    "fedrebasin.datasets",
    {
        "digits": "fedrebasin.simulations.data:digits",
        "mnist": "fedrebasin.simulations.data:mnist",
        "fashion-mnist": "fedrebasin.simulations.data:fashion_mnist",
        "cifar10": "fedrebasin.simulations.data:cifar10",
        "cifar100": "fedrebasin.simulations.data:cifar100",
        "svhn": "fedrebasin.simulations.data:svhn",
        "image-folder": "fedrebasin.simulations.data:image_folder",
    },
)

#: What makes a strategy around ``strategy``, Flower's; see :func:`make_strategy` for what else it may ask for.
STRATEGIES: Registry[Callable[..., Strategy]] = Registry(
    "strategy",
    "fedrebasin.strategies",
    {
        "fedavg": "fedrebasin.simulations.app.strategies:fedavg",
        "rebasin": "fedrebasin.strategies:FedRebasin",
        "merge-many": "fedrebasin.strategies:FedMergeMany",
        "wide-avg": "fedrebasin.strategies:FedWideAvg",
        "regmean": "fedrebasin.strategies:FedRegMean",
        "ridge-head": "fedrebasin.strategies:FedRidgeHead",
        "frank-wolfe": "fedrebasin.simulations.app.strategies:frank_wolfe",
    },
)

#: What a strategy's name begins with; a matcher stands for FedRebasin with it, an aligner for Aligned with it.
BASES: ChainMap[str, Callable[..., Any]] = ChainMap(ALIGNERS, MATCHERS, STRATEGIES)
