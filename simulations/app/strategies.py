"""Strategies by name: a base, then what is done to its aggregate, each behind a +."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from flwr.serverapp.strategy import FedAvg, Strategy

from fedrebasin import Identity, PermutationSpec, RebasinError, WeightMatching
from fedrebasin.errors import choose
from fedrebasin.registry import ALIGNERS, MATCHERS, make, takes
from fedrebasin.strategies import Aligned, Calibrator, FedRebasin, Probe

from ..engines import ENGINES
from ..registries import BASES, CALIBRATORS, STRATEGIES
from ..training import Federation


def fedavg(strategy: Strategy, calibrators: Sequence[Calibrator], probes: Sequence[Probe]) -> Strategy:
    """Flower's own, alone; wrapped only where something is to follow."""
    if not calibrators:
        return strategy
    return Aligned(strategy, aligner=Identity(), calibrators=calibrators, probes=probes)


def frank_wolfe(strategy: Strategy, spec: PermutationSpec, **options: Any) -> Strategy:
    """FedRebasin with weight matching by Frank-Wolfe."""
    return FedRebasin(strategy, spec=spec, matcher=WeightMatching(method="frank-wolfe"), **options)


def parse_strategy(name: str) -> tuple[str, tuple[str, ...]]:
    """The base and the calibrators of a strategy's name, such as ``rebasin+seqreg+head``.

    Raises:
        RebasinError: for an unknown part, with the closest one, or parts that do not go together.
    """
    base, *calibrators = name.split("+")
    choose("strategy", base, BASES)
    if sum(base in registry for registry in BASES.maps) > 1:
        raise RebasinError(f"strategy {name}: {base} is the name of a matcher, an aligner or a strategy at a time")
    for calibrator in calibrators:
        choose(f"calibrator in {name}:", calibrator, CALIBRATORS)
        if getattr(CALIBRATORS[calibrator], "needs_all", False) and not _aligns(base):
            raise RebasinError(f"strategy {name}: {calibrator} needs aligned models, as in rebasin+{calibrator}")
    if len(set(calibrators)) != len(calibrators):
        raise RebasinError(f"strategy {name}: name each calibrator once")
    if "temperature" in calibrators[:-1]:
        raise RebasinError(f"strategy {name}: temperature must come last, what follows it changes the logits it fits")
    if calibrators and base in STRATEGIES and not takes(STRATEGIES[base], "calibrators"):
        raise RebasinError(f"strategy {name}: {base} takes no calibrators")
    return base, tuple(calibrators)


def demand_choices(strategies: Sequence[str], engine: str) -> None:
    """Refuse, before any work, what a comparison cannot be run with.

    Args:
        strategies: names, see :func:`parse_strategy`.
        engine: one of ``ENGINES``.

    Raises:
        RebasinError: for an unknown strategy or engine, a strategy named twice, or none.
    """
    for name in strategies:
        parse_strategy(name)
    choose("engine", engine, ENGINES)
    if not strategies or len(set(strategies)) != len(strategies):
        raise RebasinError("strategies: name at least one, each once")


def make_strategy(name: str, federation: Federation, probes: Sequence[Probe] = ()) -> Strategy:
    """A strategy by its name, over FedAvg, asking every client: ``BASE``, or ``BASE+CALIBRATOR+...``.

    What ``STRATEGIES``, ``MATCHERS``, ``ALIGNERS`` and ``CALIBRATORS`` hold is called with what it asks for: the
    permutation ``spec``, the ``model``, ``example_inputs``, ``batches`` of the server's data, or the ``federation``; a
    strategy also with ``strategy`` (FedAvg over all clients), ``calibrators`` and ``probes``. One that asks for a spec
    aligns: calibrators that need aligned models may follow it, and BatchNorm's running statistics, where there are
    some, are measured anew on its averaged weights (Git Re-Basin, A.4), also without ``+bn``.

    Raises:
        RebasinError: see :func:`parse_strategy`; or if a part asks for something else.
    """
    base, named = parse_strategy(name)
    supply: Mapping[str, Callable[[], Any]] = {
        "spec": lambda: federation.spec,
        "model": federation.server_model,
        "example_inputs": lambda: federation.example_inputs,
        "batches": federation.server_batches,
        "federation": lambda: federation,
    }
    if _aligns(base) and federation.has_batch_norm:
        named = _recalibrated(named)
    clients = federation.config.clients
    options: dict[str, Any] = {
        "strategy": FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients),
        "calibrators": [
            make(f"calibrator {one}", CALIBRATORS[one], supply, example_inputs=federation.example_inputs)
            for one in named
        ],
        "probes": probes,
    }
    if base in MATCHERS:
        return FedRebasin(spec=federation.spec, matcher=make(f"matcher {base}", MATCHERS[base], supply), **options)
    if base in ALIGNERS:
        return Aligned(spec=federation.spec, aligner=make(f"aligner {base}", ALIGNERS[base], supply), **options)
    return make(f"strategy {base}", STRATEGIES[base], supply, **options)


def _aligns(base: str) -> bool:
    return base not in STRATEGIES or "spec" in signature(STRATEGIES[base]).parameters


def _recalibrated(calibrators: Sequence[str]) -> tuple[str, ...]:
    """With a recalibration at the beginning and after each change of the features, where none was asked for."""
    result: list[str] = []
    for before, calibrator in zip(["", *calibrators], [*calibrators, ""], strict=True):
        if calibrator != "bn" and (not before or getattr(CALIBRATORS[before], "changes_features", False)):
            result.append("bn")
        if calibrator:
            result.append(calibrator)
    return tuple(result)
