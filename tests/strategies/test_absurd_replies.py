"""One reply that cannot be worked with, and the round goes on: kinds of replies x strategies, streaming and not."""

import random
from itertools import product
from statistics import median

import numpy as np
import pytest
import torch
from fedrebasin.strategies.replies import Proportions, RecordError, Reply
from fedrebasin.strategies.replies.norms import median_of_others
from fedrebasin.strategies.replies.records import sizes_of
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedAvgM,
    FedMedian,
    Krum,
)
from hypothesis import given
from hypothesis import strategies as st

from fedrebasin import CycleConsistent, Identity, PermutationSpec, RebasinError
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned, FedMergeMany, FedRebasin, FedRegMean
from tests.strategies.helpers import AXES, make_reply, make_state

CLIENTS, LAST = 5, 4
COMMON = {"fraction_evaluate": 0.0, "min_train_nodes": CLIENTS, "min_available_nodes": CLIENTS}
SPEC = PermutationSpec.from_axes(AXES)
START = make_state(seed=9)

INNER = {
    "FedAvg": lambda: FedAvg(**COMMON),
    "FedAvgM": lambda: FedAvgM(**COMMON, server_momentum=0.9),
    "FedMedian": lambda: FedMedian(**COMMON),
    "Krum": lambda: Krum(**COMMON, num_malicious_nodes=1),
}
OUTER = {
    "FedRebasin": lambda inner, **options: FedRebasin(inner, spec=SPEC, **options),
    "medoid": lambda inner, **options: FedRebasin(inner, spec=SPEC, reference="medoid", **options),
    "FedMergeMany": lambda inner, **options: FedMergeMany(inner, spec=SPEC, **options),
    "CycleConsistent": lambda inner, **options: Aligned(inner, spec=SPEC, aligner=CycleConsistent(), **options),
    "FedRegMean": lambda inner, **options: FedRegMean(inner, spec=SPEC, **options),
    "Identity": lambda inner, **options: Aligned(inner, aligner=Identity(), **options),
}


def filled(value, *keys):
    """A reply with a value everywhere, or in some tensors."""
    return lambda state: {
        key: np.full_like(values, value) if values.dtype.kind == "f" and (not keys or key in keys) else values
        for key, values in state.items()
    }


KINDS = {
    "3e38": filled(3e38),
    "minus 3e38": filled(-3e38),
    "one tensor of 3e38": filled(3e38, "3.weight"),
    "a variance of 3e38": filled(3e38, "1.running_var"),
    "1e20": filled(1e20),
}


def federation(absurd, who=LAST, examples=10):
    """Honest clients add a little noise to what they get; one sends something else."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        node = context.node_config["partition-id"]
        rng = np.random.default_rng([node])
        state = {key: array.numpy() for key, array in message.content["arrays"].items()}
        state = {
            key: (values + 0.1 * rng.normal(size=values.shape)).astype(values.dtype)
            if values.dtype.kind == "f"
            else values
            for key, values in state.items()
        }
        claimed = examples if node == who else 10
        if node == who and absurd is not None:
            state = absurd(state)
        arrays = ArrayRecord({key: Array(np.asarray(values)) for key, values in state.items()})
        metrics = MetricRecord({"num-examples": claimed, "train-loss": 0.5})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def final(strategy, app, rounds=2, start=START):
    random.seed(0)
    return strategy.start(InlineGrid(app, CLIENTS), ArrayRecord(dict(start)), num_rounds=rounds)


def made(outer, inner, streaming=False, **options):
    return OUTER[outer](INNER[inner](), streaming=streaming, **options)


def can_be_made(outer, inner, streaming):
    """Some parts are refused together, and have nothing to show here."""
    try:
        made(outer, inner, streaming)
    except RebasinError:
        assert outer == "FedRegMean" or (streaming and outer in ("FedMergeMany", "CycleConsistent"))
        return False
    return True


TABLE = [case for case in product(OUTER, INNER, (False, True)) if can_be_made(*case)]


@pytest.mark.parametrize(("outer", "inner", "streaming"), [case for case in TABLE if case[0] != "Identity"])
@pytest.mark.parametrize("kind", KINDS)
def test_absurd_numbers_are_set_aside_and_the_run_goes_on(kind, outer, inner, streaming):
    result = final(made(outer, inner, streaming), federation(KINDS[kind]))
    for number in (1, 2):
        assert result.train_metrics_clientapp[number]["rebasin-replies-set-aside"] == 1.0
    assert float(np.abs(result.arrays["0.weight"].numpy()).max()) < 100


def same(one, other):
    return all(np.array_equal(one.arrays[key].numpy(), other.arrays[key].numpy()) for key in START)


@pytest.mark.parametrize(
    ("outer", "inner", "streaming"),
    [
        case
        for case in TABLE
        if case[0] in ("FedRebasin", "medoid", "FedMergeMany") and case[1] in ("FedAvg", "FedAvgM")
    ],
)
@pytest.mark.parametrize("who", [0, LAST])
def test_nobody_owns_the_mean_by_claiming_examples(who, outer, inner, streaming):
    def result(examples, **options):
        return final(made(outer, inner, streaming, **options), federation(None, who, examples), rounds=1)

    for claimed in (10**12, 10**12 - 0.5):  # an integer, as clients count, and a float
        capped, as_much = result(claimed), result(10_000)
        assert same(capped, as_much)
        assert capped.train_metrics_clientapp[1]["rebasin-weights-capped"] == 1.0
        assert "rebasin-weights-capped" not in as_much.train_metrics_clientapp[1]
    assert same(result(10**12, max_weight_ratio=2), result(20))
    assert not same(result(10**12, max_weight_ratio=None), as_much)


def test_a_ratio_below_one_is_refused():
    for ratio in (0.5, 0, -1, float("nan")):
        with pytest.raises(RebasinError, match="max_weight_ratio"):
            OUTER["FedRebasin"](FedAvg(), max_weight_ratio=ratio)


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("inner", INNER)
def test_where_nothing_is_aligned_nothing_is_judged(inner, kind):
    app = federation(None if kind is None else KINDS[kind], examples=10**12)
    start = {key: tensor for key, tensor in START.items() if tensor.is_floating_point()}
    with np.errstate(all="ignore"):
        bare, wrapped = final(INNER[inner](), app, 1, start), final(made("Identity", inner), app, 1, start)
    for key in start:
        expected = bare.arrays[key].numpy()
        if not np.isfinite(expected).all():
            return  # the strategy itself has broken: its aggregate is refused
    assert all(np.array_equal(bare.arrays[key].numpy(), wrapped.arrays[key].numpy()) for key in start)
    assert bare.train_metrics_clientapp == wrapped.train_metrics_clientapp


def proportions(start, private=False):
    return Proportions(start, "num-examples", 1000.0, private)


def judged(found, states):
    replies = [Reply(make_reply(state, at), at, state, 10.0, sizes_of(state)) for at, state in enumerate(states)]
    for reply in replies:
        found.see(reply)
    refused = []
    for reply in replies:
        try:
            found.judge(reply)
        except RecordError:
            refused.append(reply.node_id)
    return refused


def one(value, shape=(3, 2)):
    return {"b": torch.full(shape, float(value))}


@pytest.mark.parametrize(
    ("start", "sent", "private", "refused"),
    [
        (1, [1, 1, 1, 9e5], False, []),  # a million times the usual is the bound
        (1, [1, 1, 1, 2e6], False, [3]),
        (1, [3e9, 2e9, 4e9], False, []),  # what all have is usual, whatever was sent out
        (0, [0.1, 0.2, 0.1, 1e4], False, []),  # LoRA's B begins at zero: the others are the measure
        (0, [0.1, 0.2, 0.1, 2e5], False, [3]),
        (0, [0, 0, 0, 0.5], False, []),  # a layer that one client alone trains
        (0, [1e-30, 1e-30, 1e-30, 0.5], False, []),  # the others have barely begun
        (0, [5.0], False, []),
        (0, [1e16], False, [0]),
        (1, [3e9, 2e9, 4e9], True, [0, 1, 2]),  # with privacy the global model is the measure,
        (1, [1, 1, 1, 9e5], True, []),
        (0, [0.1, 0.2, 0.1, 1e14], True, []),  # and where it is zero a fixed bound
        (0, [0.1, 0.2, 0.1, 1e16], True, [3]),
    ],
)
def test_what_is_absurd(start, sent, private, refused):
    assert judged(proportions(one(start), private), [one(value) for value in sent]) == refused


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("attackers", range(1, 5))
def test_a_minority_of_absurd_replies_is_set_aside_and_no_other(attackers, seed):
    generator = torch.Generator().manual_seed(seed)
    states = [{"b": torch.randn(4, 3, generator=generator)} for _ in range(9)]
    chosen = sorted(torch.randperm(9, generator=generator)[:attackers].tolist())
    for at in chosen:
        states[at] = {"b": states[at]["b"] * 1e30}
    for start in ({"b": torch.zeros(4, 3)}, {"b": torch.ones(4, 3)}):
        assert judged(proportions(start), states) == chosen


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=12), st.data())
def test_the_median_of_the_others_is_that_of_the_list_without_one(numbers, data):
    at = data.draw(st.integers(0, len(numbers) - 1))
    others = numbers[:at] + numbers[at + 1 :]
    found = median_of_others(sorted(numbers), numbers[at])
    assert found == pytest.approx(median(others) if others else 0.0)


def test_privacy_caps_no_weight_and_judges_by_the_global_model():
    def result(absurd, examples):
        inner = DifferentialPrivacyServerSideFixedClipping(FedAvg(**COMMON), 0.0, 1.0, CLIENTS)
        start = {key: tensor for key, tensor in START.items() if tensor.is_floating_point()}
        return final(OUTER["FedRebasin"](inner), federation(absurd, examples=examples), 1, start)

    claims = result(None, 10**12).train_metrics_clientapp[1]
    assert "rebasin-weights-capped" not in claims
    assert claims["rebasin-replies-set-aside"] == 0.0
    assert result(KINDS["3e38"], 10).train_metrics_clientapp[1]["rebasin-replies-set-aside"] == 1.0


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("inner", INNER)
def test_a_tensor_that_begins_at_zero_is_free_to_grow(inner, streaming):
    start = {**START, "3.weight": torch.zeros_like(START["3.weight"])}
    honest = final(made("FedRebasin", inner, streaming), federation(None), 2, start)
    assert honest.train_metrics_clientapp[1]["rebasin-replies-set-aside"] == 0.0
    spoiled = final(made("FedRebasin", inner, streaming), federation(filled(1e7, "3.weight")), 2, start)
    assert spoiled.train_metrics_clientapp[1]["rebasin-replies-set-aside"] == 1.0
