"""What parts say of themselves, what is taken for granted where they say nothing, and what is refused for it."""

import ast
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import MagicMock

import flwr.serverapp.strategy as flower
import pytest
import torch
from fedrebasin.strategies.traits import FLOWER, Traits, traits_of, unwrap, weighted_by
from flwr.app import ArrayRecord, ConfigRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    Krum,
    Strategy,
)
from torch import nn

from fedrebasin import AlignTo, CycleConsistent, Identity, MergeMany, PermutationSpec, RebasinError
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import (
    ActivationAlignment,
    Aligned,
    BatchNormRecalibration,
    Calibrated,
    FedMergeMany,
    FedRebasin,
    FedRegMean,
    RegMean,
    Repair,
    TemperatureCalibration,
)
from tests.strategies.helpers import AXES, CLIENTS, COMMON, STRATEGIES, make_reply, make_state, run_round

SPEC = PermutationSpec.from_axes(AXES)
MODEL, EXAMPLE = nn.Linear(4, 3), torch.zeros(1, 4)
BATCHES = [(torch.zeros(2, 4), torch.zeros(2).long())]


def private():
    return DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, CLIENTS)


class Wrapping(Strategy):
    """A strategy that nobody knows, around another one, every method handed on."""

    def __init__(self, strategy):
        self.strategy = strategy

    def configure_train(self, *args):
        return self.strategy.configure_train(*args)

    def aggregate_train(self, *args):
        return self.strategy.aggregate_train(*args)

    def configure_evaluate(self, *args):
        return self.strategy.configure_evaluate(*args)

    def aggregate_evaluate(self, *args):
        return self.strategy.aggregate_evaluate(*args)

    def summary(self):
        self.strategy.summary()


class Stateless(Wrapping):
    keeps_state = False


class Plain:
    """A calibrator that says nothing of itself."""

    def __call__(self, round_):
        return Calibrated(round_.state)


# -- the table --


def test_every_strategy_of_flowers_that_aggregates_arrays_is_in_the_table():
    kinds = {getattr(flower, name) for name in flower.__all__} - {flower.Strategy, flower.Result}
    strategies = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Strategy)}
    assert {kind.__name__ for kind in strategies - FLOWER.keys()} <= {"FedXgbBagging", "FedXgbCyclic"}


def test_nowhere_else_are_flowers_strategies_told_apart():
    root = Path(__file__).resolve().parents[2] / "strategies"
    for path in root.rglob("*.py"):
        names = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flwr.serverapp.strategy")
            for alias in node.names
        }
        assert path.name in ("traits.py", "flower.py") or names <= {"Strategy", "Result", "FedAvg"}, path


def test_a_derived_class_has_the_traits_but_may_look_at_single_replies():
    class Mine(FedAdam):
        pass

    assert traits_of(FedAdam()) == Traits(keeps_state=True, needs_all=False, takes_models=True, steps_statistics=True)
    assert traits_of(Mine()) == Traits(keeps_state=True, needs_all=True, takes_models=True, steps_statistics=True)
    assert traits_of(type("Mine", (FedMedian,), {})()).robust


def test_what_a_strategy_says_of_itself_counts():
    class Mine(FedAvg):
        robust = True
        needs_all = False

    assert traits_of(Mine()) == Traits(keeps_state=False, robust=True, needs_all=False, takes_models=True)
    assert not traits_of(Stateless(FedAvg())).keeps_state


def test_wrapped_strategies_join_their_traits():
    joined = traits_of(DifferentialPrivacyServerSideFixedClipping(FedAdam(), 0.1, 1.0, CLIENTS))
    assert joined == Traits(private=True, keeps_state=True, needs_all=True, takes_models=True, steps_statistics=True)
    assert traits_of(Wrapping(FedMedian())).robust
    assert traits_of(Wrapping(private())).private
    assert traits_of(Stateless(FedAdam())).keeps_state


def test_a_strategy_that_aggregates_itself_may_take_any_replies():
    class Inherits(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            return super().configure_train(server_round, arrays, config, grid)

    class Aggregates(Krum):
        def aggregate_train(self, server_round, replies):
            return super().aggregate_train(server_round, replies)

    assert traits_of(Inherits()).takes_models
    assert not traits_of(Aggregates()).takes_models
    assert not traits_of(Wrapping(FedAvg())).takes_models  # the outermost sees the replies first
    assert traits_of(DifferentialPrivacyServerSideFixedClipping(Aggregates(), 0.1, 1.0, CLIENTS)).takes_models
    assert traits_of(type("Says", (Aggregates,), {"takes_models": True})()).takes_models


class OtherName(Wrapping):
    """Keeps what it wraps under a name of its own, and calls another thing ``strategy``."""

    def __init__(self, base, strategy="round-robin"):
        self.strategy = strategy
        self.base = base


@pytest.mark.parametrize("called", ["round-robin", None, FedMedian, {"name": "median"}])
def test_what_is_wrapped_under_another_name_counts_too(called):
    assert traits_of(OtherName(private(), called)).private
    assert not traits_of(OtherName(FedAvg(), called)).robust
    assert weighted_by(OtherName(FedAvg(weighted_by_key="rows"), called)) == "rows"
    with pytest.raises(RebasinError, match="Repair"):
        FedRebasin(OtherName(private(), called), spec=SPEC, calibrators=[Repair(MODEL, BATCHES)])


def test_what_is_called_strategy_need_not_be_one():
    strategy = FedAvg(**COMMON)
    strategy.strategy = "round-robin"
    arrays, _ = run_round(FedRebasin(strategy, spec=SPEC), make_state(0), [make_reply(make_state(0))])
    assert set(arrays) == set(make_state(0))


def test_strategies_that_know_one_another_end_somewhere():
    inner, outer = FedMedian(), Wrapping(None)
    outer.strategy, inner.outer = inner, outer
    assert traits_of(outer).robust
    assert len(list(unwrap(MagicMock()))) == 1


def test_a_mean_of_ones_own_is_taken_of_one_reply():
    """``needs_all = False``: the strategy gets one message that stands for all."""
    seen = []

    class Halving(FedAvg):
        needs_all = False

        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            seen.append(len(replies))
            arrays, metrics = super().aggregate_train(server_round, replies)
            return ArrayRecord({key: t / 2 for key, t in arrays.to_torch_state_dict().items()}), metrics

    states = [make_state(seed, integers=False) for seed in range(4)]
    replies = [make_reply(state, node_id=node + 1) for node, state in enumerate(states)]
    arrays, _ = run_round(Aligned(Halving(**COMMON), aligner=Identity()), states[0], replies)
    expected = sum(state["0.weight"] for state in states) / 8
    assert seen == [1]
    assert torch.allclose(arrays.to_torch_state_dict()["0.weight"], expected, atol=1e-6)


# -- refused when it is made --


@dataclass(frozen=True)
class Passed:
    """An aligner that says nothing of itself."""

    inner: AlignTo = field(default_factory=AlignTo)

    def __call__(self, spec, states, weights=None):
        return self.inner(spec, states, weights)


NEED_ALL = {
    "MergeMany": MergeMany(),
    "CycleConsistent": CycleConsistent(),
    "AlignTo": AlignTo(reference=1),
    "Passed": Passed(),
}


@pytest.mark.parametrize("name", NEED_ALL)
def test_streaming_refuses_an_aligner_that_needs_all_models(name):
    with pytest.raises(RebasinError, match=rf"^{name} needs all models at once: .*streaming=False$"):
        Aligned(spec=SPEC, aligner=NEED_ALL[name], streaming=True)
    Aligned(FedMedian(), spec=SPEC, aligner=NEED_ALL[name], streaming=True)  # which gets all replies anyway


def test_named_strategies_refuse_what_they_cannot_stream():
    for make in (FedMergeMany, FedRegMean):
        with pytest.raises(RebasinError, match="MergeMany needs all models at once"):
            make(spec=SPEC, streaming=True)
    with pytest.raises(RebasinError, match="RegMean needs the clients' models, which streaming lets go of"):
        FedRegMean(spec=SPEC, aligner=AlignTo(), streaming=True)
    for reference in ("auto", "medoid"):
        FedRebasin(spec=SPEC, reference=reference, streaming=True)


@pytest.mark.parametrize("make", [lambda: RegMean(), lambda: Repair(MODEL, batches=BATCHES)])
def test_what_needs_aligned_models_refuses_an_aligner_that_aligns_none(make):
    with pytest.raises(RebasinError, match="needs aligned models: use an aligner other than Identity"):
        Aligned(aligner=Identity(), calibrators=[make()])


def test_a_strategy_that_nobody_knows_may_keep_state_until_it_says_that_it_does_not():
    with pytest.raises(RebasinError, match=r"RegMean rewrites weights after Wrapping .*keeps_state = False"):
        FedRegMean(Wrapping(FedAvg()), spec=SPEC)
    FedRegMean(Stateless(FedAvg()), spec=SPEC)
    with pytest.raises(RebasinError, match="Plain rewrites weights after FedAdam"):
        Aligned(FedAdam(), spec=SPEC, calibrators=[Plain()])


def test_behind_noise_only_what_says_that_it_is_private_is_let_through():
    class Own(Plain):
        private = True

    allowed = [Own(), TemperatureCalibration(MODEL, BATCHES), BatchNormRecalibration(MODEL, BATCHES)]
    Aligned(private(), spec=SPEC, calibrators=allowed)
    asking = [Plain(), TemperatureCalibration(), BatchNormRecalibration(), ActivationAlignment(MODEL, EXAMPLE)]
    for calibrator in [*asking, Repair(MODEL, batches=BATCHES)]:
        with pytest.raises(RebasinError, match="what it takes from the clients carries no noise"):
            Aligned(private(), spec=SPEC, calibrators=[calibrator])
    with pytest.raises(RebasinError, match="depends on the others"):
        Aligned(private(), spec=SPEC, aligner=Passed())


# -- inside of another strategy --


@pytest.mark.parametrize("make", [FedRebasin, FedMergeMany])
def test_inside_of_any_strategy_it_refuses_before_anything_is_sent(make):
    inner = make(FedAvg(**COMMON), spec=SPEC)
    with pytest.raises(RebasinError, match="would see replies that are not aligned yet"):
        Wrapping(inner).start(InlineGrid(ClientApp(), CLIENTS), ArrayRecord(make_state(0)), num_rounds=1)


def test_once_refused_it_still_starts_on_its_own_and_by_hand():
    grid, start = InlineGrid(ClientApp(), CLIENTS), ArrayRecord(make_state(0))
    strategy = FedRebasin(FedAvg(**COMMON), spec=SPEC)
    with pytest.raises(RebasinError, match="not aligned yet"):
        Wrapping(strategy).start(grid, start, num_rounds=1)
    strategy.start(grid, start, num_rounds=1)
    replies = [make_reply(make_state(seed), node_id=seed + 1) for seed in range(CLIENTS)]
    arrays, _ = run_round(strategy, make_state(0), replies)
    assert arrays is not None


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_round_by_hand_needs_no_start(name):
    strategy = Aligned(STRATEGIES[name](), aligner=Identity())
    messages = list(strategy.configure_train(1, ArrayRecord(make_state(0)), ConfigRecord(), InlineGrid(ClientApp(), 8)))
    assert len(messages) == CLIENTS
