"""What an alignment has to know of the strategy inside: a table of Flower's own, and what others say of themselves.

The one place that knows Flower's classes. Whatever wraps a strategy has the traits of both.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from logging import INFO
from typing import Any

from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)

from .flower import FedOpt, is_legacy, log


@dataclass(frozen=True)
class Traits:
    """What a strategy is like: any strategy may have attributes of these names, which count more than the table.

    The defaults are for strategies that nothing is known of, on the safe side.

    Args:
        private: it promises differential privacy: nothing that depends on several replies may come before it, nothing
            that its noise does not cover after it.
        clips_on_clients: its clients clip their updates, so that the server may not permute them any more.
        keeps_state: it keeps momenta or a copy of the global model, and would undo what is done to its aggregate.
        robust: it expects attackers: replies that stand out are set aside before it sees them.
        needs_all: its aggregate depends on the single replies, and not only on their weighted mean.
        is_the_mean: its aggregate is the weighted mean of the replies and nothing else.
        floats_only: it cannot take arrays of integers.
        aligns: it aligns its replies itself.
        takes_models: each reply has to be one model of the global one's keys and shapes, in one ArrayRecord, with one
            MetricRecord: others are set aside before it sees them, and updates would be taken for models. False: it may
            understand whatever comes.
        steps_statistics: it moves running statistics by steps of its own, as if they were weights: once replies are
            aligned, these are averaged instead.
    """

    private: bool = False
    clips_on_clients: bool = False
    keeps_state: bool = True
    robust: bool = False
    needs_all: bool = True
    is_the_mean: bool = False
    floats_only: bool = False
    aligns: bool = False
    takes_models: bool = False
    steps_statistics: bool = False


_MEAN = Traits(keeps_state=False, needs_all=False, is_the_mean=True, takes_models=True)
_OPTIMIZER = Traits(needs_all=False, takes_models=True, steps_statistics=True)
_ROBUST = Traits(keeps_state=False, robust=True, takes_models=True)
_PRIVATE = Traits(keeps_state=False, private=True, takes_models=True)
_CLIPPING = replace(_PRIVATE, clips_on_clients=True)

#: A class derived from one of these has its traits too, but may look at the single replies, and, where it aggregates
#: them itself, take any; so does an object of one that was given another method.
FLOWER: Mapping[type, Traits] = {
    FedAvg: _MEAN,
    FedProx: _MEAN,
    FedAvgM: _OPTIMIZER,
    FedOpt: _OPTIMIZER,
    FedAdam: _OPTIMIZER,
    FedAdagrad: _OPTIMIZER,
    FedYogi: _OPTIMIZER,
    FedMedian: _ROBUST,
    FedTrimmedAvg: _ROBUST,
    MultiKrum: _ROBUST,
    Krum: _ROBUST,
    Bulyan: _ROBUST,
    QFedAvg: Traits(keeps_state=False, floats_only=True, takes_models=True),  # scales its copies in place
    DifferentialPrivacyServerSideFixedClipping: _PRIVATE,
    DifferentialPrivacyServerSideAdaptiveClipping: _PRIVATE,
    DifferentialPrivacyClientSideFixedClipping: _CLIPPING,
    DifferentialPrivacyClientSideAdaptiveClipping: _CLIPPING,
}


def traits_of(strategy: Strategy) -> Traits:
    """The traits of a strategy together with those that it wraps."""
    layers = [asdict(_own(layer)) for layer in unwrap(strategy)]
    joined = {name: any(layer[name] for layer in layers) for name in layers[0]}
    joined["is_the_mean"] = all(layer["is_the_mean"] for layer in layers)
    joined["takes_models"] = layers[0]["takes_models"]  # the outermost sees the replies first
    return Traits(**joined)


def _own(strategy: object) -> Traits:
    nearest = next((kind for kind in type(strategy).__mro__ if kind in FLOWER), None)
    known = Traits() if nearest is None else FLOWER[nearest]
    own = {"start", "aggregate_train"} & getattr(strategy, "__dict__", {}).keys()
    if type(strategy) is not nearest or own:
        inherits = getattr(type(strategy), "aggregate_train", None) is getattr(nearest, "aggregate_train", None)
        takes_models = inherits and "aggregate_train" not in own
        known = replace(known, needs_all=True, is_the_mean=False, takes_models=takes_models)
    said = {field.name: bool(getattr(strategy, field.name, getattr(known, field.name))) for field in fields(Traits)}
    return Traits(**said)


def unwrap(strategy: object) -> Iterator[object]:
    """A strategy, then the one that it wraps, under whatever name, and so on inwards."""
    found: object = strategy
    seen: list[object] = []
    while found is not None and not any(found is each for each in seen):
        yield found
        seen.append(found)
        found = _inside(found)


def _inside(strategy: object) -> object:
    """The strategy that another one keeps as ``strategy`` or, without that, as another attribute; None without any."""
    own = getattr(strategy, "__dict__", {})
    called = getattr(strategy, "strategy", None) if "strategy" in own or hasattr(type(strategy), "strategy") else None
    if hasattr(type(called), "aggregate_train") or is_legacy(called):
        return called
    return next((each for each in own.values() if isinstance(each, Strategy)), None)


def find_attribute(strategy: object, name: str, default: Any) -> Any:
    """The attribute of the outermost strategy that has it."""
    return next((getattr(layer, name) for layer in unwrap(strategy) if hasattr(layer, name)), default)


def weighted_by(strategy: object) -> str:
    """The metric by which replies are weighed."""
    name: str = find_attribute(strategy, "weighted_by_key", "num-examples")
    return name


@contextmanager
def expecting_fewer(strategy: Strategy, set_aside: int, left: int) -> Iterator[None]:
    """Bulyan gives up a round of fewer than 4 f + 3 replies; attackers that were set aside are not to be expected.

    Args:
        strategy: the inner strategy.
        set_aside: replies that were, each one attacker less, if that lets the round go on.
        left: replies that were not.
    """
    bulyan = next((layer for layer in unwrap(strategy) if isinstance(layer, Bulyan)), None)
    if bulyan is None or left >= 4 * bulyan.num_malicious_nodes + 3:
        yield
        return
    before = bulyan.num_malicious_nodes
    bulyan.num_malicious_nodes = max(before - set_aside, min(before, (left - 3) // 4), 0)
    log(INFO, "aggregate_train: Bulyan expects %d attackers among %d replies", bulyan.num_malicious_nodes, left)
    try:
        yield
    finally:
        bulyan.num_malicious_nodes = before
