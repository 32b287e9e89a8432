"""The form of replies: what is raised in the first round, what goes on beside the model, and what is read at all."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from fedrebasin.strategies.replies import FormError, RecordError, Template, containing, model_in, names_along
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian

from fedrebasin import Identity, Permutation, PermutationSpec, RebasinError
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned, FedRebasin
from tests.flower.harness import heard
from tests.strategies.helpers import AXES, CLIENTS, COMMON, make_reply, make_state, run_round

SPEC = PermutationSpec.from_axes(AXES)
START = make_state(seed=99)


class Taking(FedAvg):
    """Averages what is called ``arrays``, whatever else comes, and keeps what it was given."""

    def __init__(self):
        super().__init__(**COMMON)
        self.got = []

    def aggregate_train(self, server_round, replies):
        self.got = [message for message in replies if not message.has_error()]
        if not self.got:
            return None, None
        name = next(name for name in self.got[0].content.array_records if name in ("arrays", "model"))
        found = [message.content[name].to_torch_state_dict() for message in self.got]
        return ArrayRecord({key: sum(state[key].double() for state in found) / len(found) for key in found[0]}), None


def replies_of(*records, count=CLIENTS, metrics=True):
    """Replies that hold records made of a model each, by name, and metrics."""
    made = []
    for at in range(count):
        reply = make_reply(make_state(seed=at), node_id=at + 1)
        content = {name: make(at) for name, make in dict(records).items()}
        if metrics:
            content["metrics"] = reply.content["metrics"]
        reply.content = RecordDict(content)
        made.append(reply)
    return made


def model(at):
    return ArrayRecord(dict(make_state(seed=at)))


def without_a_key(at):
    return ArrayRecord({key: tensor for key, tensor in make_state(seed=at).items() if key != "3.bias"})


def narrow(at):
    return ArrayRecord(dict(make_state(seed=at, width=4 + at % 2)))


def in_half(at):
    return ArrayRecord({key: Array(np.asarray(t.numpy().astype("int8"))) for key, t in make_state(seed=at).items()})


def not_finite(at):
    return ArrayRecord(
        {key: tensor * math.nan if tensor.is_floating_point() else tensor for key, tensor in make_state(at).items()}
    )


def rename(at):
    return ArrayRecord({f"net.{key}": tensor for key, tensor in make_state(seed=at).items()})


WRONG = {
    "a key is missing": ([("arrays", without_a_key)], "the record misses '3.bias': let clients send the arrays"),
    "other keys": ([("arrays", rename)], r"misses .* adds 'net\.0\.weight'.*'net\.' before them: let clients send"),
    "other shapes": ([("arrays", narrow)], r"0\.weight: shape \(4, 4\) instead of \(6, 4\): only a strategy that"),
    "other dtypes": ([("arrays", in_half)], r"0\.weight: dtype int8 instead of float32: let clients send the dtypes"),
    "no model": ([], "0 ArrayRecords instead of one"),
    "two models for FedAvg": ([("arrays", model), ("more", model)], "2 ArrayRecords instead of one: FedAvg takes one"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_one_wrong_form_of_all_replies_is_raised_in_the_first_round_only(name, streaming):
    records, reason = WRONG[name]
    strategy = FedRebasin(FedAvg(**COMMON), spec=SPEC, streaming=streaming)
    with pytest.raises(FormError, match=f"no reply of the first round can be used: .*{reason}") as raised:
        run_round(strategy, START, replies_of(*records))
    assert "\n" not in str(raised.value)
    with heard() as warnings:
        arrays, metrics = run_round(strategy, START, replies_of(*records), server_round=2)
    assert arrays is None
    assert metrics["rebasin-replies-set-aside"] == CLIENTS
    assert any("no usable reply in round 2" in warning for warning in warnings)


def test_all_without_num_examples_is_a_form_and_so_is_another_name():
    def strategy():
        return FedRebasin(FedAvg(**COMMON, weighted_by_key="rows"), spec=SPEC)

    with pytest.raises(FormError, match=r"metric 'rows' is not a number: .*weighted_by_key"):
        run_round(strategy(), START, replies_of(("arrays", model)))
    with pytest.raises(FormError, match="0 MetricRecords instead of one"):
        run_round(strategy(), START, replies_of(("arrays", model), metrics=False))


@pytest.mark.parametrize("good", [1, 3])
def test_one_good_reply_or_several_reasons_or_numbers_end_no_run(good):
    strategy = FedRebasin(FedAvg(**COMMON), spec=SPEC)
    mixed = [*replies_of(("arrays", model))[:good], *replies_of(("arrays", narrow))[good:]]
    arrays, metrics = run_round(strategy, START, mixed)
    assert arrays is not None
    assert metrics["rebasin-replies-set-aside"] == CLIENTS - good
    several = [*replies_of(("arrays", without_a_key))[:good], *replies_of(("arrays", narrow))[good:]]
    assert run_round(strategy, START, several)[0] is None
    numbers = [*replies_of(("arrays", not_finite))[:good], *replies_of(("arrays", narrow))[good:]]
    assert run_round(strategy, START, numbers)[0] is None
    assert run_round(strategy, START, replies_of(("arrays", not_finite)))[0] is None


def test_an_aggregate_of_another_form_is_raised_in_the_first_round():
    class Dropping(Taking):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            return ArrayRecord({key: arrays[key] for key in list(arrays)[1:]}), metrics

    strategy = FedRebasin(Dropping(), spec=SPEC)
    with pytest.raises(FormError, match=r"the aggregate misses '0\.weight'"):
        run_round(strategy, START, replies_of(("arrays", model)))
    assert run_round(strategy, START, replies_of(("arrays", model)), server_round=2)[0] is None


# -- what goes on beside the model --


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "part",
    [
        lambda state: state,
        lambda state: {key: state[key] for key in ("3.weight", "0.weight")},
        lambda state: {str(at): state[key] for at, key in enumerate(START)},
        lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
    ],
    ids=["all keys", "two keys", "positions", "wrapped"],
)
def test_a_record_of_the_models_keys_and_shapes_moves_as_the_model_does(part, seed):
    one, other = make_state(seed), make_state(seed + 50)
    spec = SPEC.bind(one)
    made = []
    for at in range(CLIENTS):
        order = Permutation.random(spec, torch.Generator().manual_seed(100 * seed + at))
        reply = make_reply(order.apply(one), node_id=at + 1)
        more = ArrayRecord(dict(part(order.apply(other))))
        reply.content = RecordDict({"control": more, **reply.content, "same": ArrayRecord({"x": torch.arange(3.0)})})
        made.append(reply)
    inner = Taking()
    run_round(FedRebasin(inner, spec=SPEC), START, made)
    assert len(inner.got) == CLIENTS
    first, *others = (message.content["control"].to_torch_state_dict() for message in inner.got)
    assert list(first) == list(part(other))
    for state in others:
        assert all(torch.equal(state[key], first[key]) for key in first)
    for message, came in zip(inner.got, made, strict=True):
        assert list(message.content) == list(came.content)
        assert torch.equal(message.content["same"].to_torch_state_dict()["x"], torch.arange(3.0))


def test_which_record_is_the_model():
    template = Template.of(ArrayRecord(dict(START)))
    records = {"a": model(0), "arrays": model(1), "z": narrow(0)}
    assert model_in(records, template, "arrays") == "arrays"
    assert model_in({"z": narrow(0), "b": model(0), "a": model(1)}, template, "arrays") == "b"
    assert model_in({"arrays": narrow(0), "b": model(0)}, template, "arrays") == "b"
    assert model_in({"arrays": narrow(0)}, template, "arrays") is None
    assert names_along(narrow(0), template) == {}
    assert names_along(ArrayRecord({"0.weight": START["0.weight"].T.contiguous()}), template) == {}
    assert names_along(ArrayRecord({"rng": torch.zeros(3)}), template) == {}
    assert names_along(ArrayRecord(), template) == {}


@pytest.mark.parametrize("aligner", [{"spec": SPEC}, {"aligner": Identity()}])
def test_records_under_other_names_and_more_of_them(aligner):
    def more(at):
        return ConfigRecord({"note": f"node {at}", "raw": b"\x00"})

    def own(at):
        return MetricRecord({"watts": float(at), "epsilon": math.inf})

    made = replies_of(("energy", own), ("config", more), ("model", model))
    inner = Taking()
    arrays, _ = run_round(Aligned(inner, **aligner), START, made)
    assert arrays is not None
    for at, message in enumerate(inner.got):
        assert list(message.content) == ["energy", "config", "model", "metrics"]
        assert message.content["config"] == more(at)
        assert dict(message.content["energy"]) == dict(own(at))


@pytest.mark.parametrize("metrics", [False, True])
def test_without_a_weight_all_count_the_same_and_that_is_said_once(metrics, caplog):
    logging.getLogger("flwr").propagate = True
    caplog.set_level("INFO", logger="flwr")
    inner = Taking()
    inner.weighted_by_key = "rows"  # which nobody sends
    strategy = FedRebasin(inner, spec=SPEC)
    for server_round in (1, 2):
        arrays, _ = run_round(strategy, START, replies_of(("arrays", model), metrics=metrics), server_round)
        assert arrays is not None
        assert len(inner.got) == CLIENTS
    assert caplog.text.count("replies say no 'rows'") == 1


@pytest.mark.parametrize("value", [math.nan, 0, -1, 1e30])
def test_a_weight_that_cannot_be_one_is_no_weight_where_models_are_aligned(value):
    made = replies_of(("arrays", model))
    made[2].content["metrics"]["num-examples"] = value
    inner = Taking()
    _, metrics = run_round(FedRebasin(inner, spec=SPEC), START, made)
    assert metrics["rebasin-replies-set-aside"] == 1
    run_round(Aligned(inner, aligner=Identity()), START, made)
    assert len(inner.got) == CLIENTS


def test_more_records_are_checked_as_the_model_is():
    def spoiled(array):
        return lambda at: ArrayRecord({"x": array if at == 3 else Array(np.ones(3))})

    for array in (Array(np.array([1, math.nan])), Array("float64", (3,), "numpy.ndarray", b"x" * 99)):
        inner = Taking()
        run_round(FedRebasin(inner, spec=SPEC), START, replies_of(("arrays", model), ("more", spoiled(array))))
        assert len(inner.got) == CLIENTS - 1

    def control(at):
        return not_finite(at) if at == 1 else model(at)

    inner = Taking()
    run_round(FedRebasin(inner, spec=SPEC), START, replies_of(("arrays", model), ("control", control)))
    assert len(inner.got) == CLIENTS - 1


# -- strategies of one's own that end a round --


@pytest.mark.parametrize("aligner", [{"spec": SPEC}, {"aligner": Identity()}])
def test_a_strategy_that_demands_one_form_gets_that_of_most(aligner):
    """One derived from Flower's own, which ends the run where names differ: one client may not do that."""

    class Derived(FedMedian):
        def aggregate_train(self, server_round, replies):
            return super().aggregate_train(server_round, replies)

    made = replies_of(("arrays", model))
    made[4].content["metrics"]["more"] = 1.0
    arrays, metrics = run_round(Aligned(Derived(**COMMON), **aligner), START, made)
    assert metrics["rebasin-replies-set-aside"] == 1
    others = replies_of(("arrays", model))  # FedMedian empties the records that it reads
    expected, _ = run_round(Derived(**COMMON), START, [*others[:4], *others[5:]])
    assert "spec" in aligner or all(
        np.array_equal(arrays[key].numpy(), expected[key].numpy()) for key in START if START[key].is_floating_point()
    )
    with pytest.raises(Exception, match="exactly one MetricRecord"):  # what all replies lack is the app's own mistake
        run_round(Aligned(Derived(**COMMON), **aligner), START, replies_of(("arrays", model), metrics=False))


@pytest.mark.parametrize("aligner", [{"spec": SPEC}, {"aligner": Identity()}])
@pytest.mark.parametrize("spoil", ["a list", "no such record", "another shape"])
def test_one_reply_of_another_form_ends_no_round_of_a_strategy_that_falls_over_it(aligner, spoil):
    class Derived(FedAvg):
        def aggregate_train(self, server_round, replies):
            control = sum(m.content["control"]["c"].numpy() for m in replies if not m.has_error())
            assert control.shape == (3,)
            names = ("arrays", "metrics")
            replies = [containing(m, RecordDict({name: m.content[name] for name in names})) for m in replies]
            return super().aggregate_train(server_round, replies)

    def control(at):
        return ArrayRecord({"c": Array(np.ones(4 if spoil == "another shape" and at == 3 else 3))})

    made = replies_of(("arrays", model), ("control", control))
    if spoil == "a list":
        made[3].content["metrics"]["train-loss"] = [0.5]
    if spoil == "no such record":
        del made[3].content["control"]
    arrays, metrics = run_round(Aligned(Derived(**COMMON), **aligner), START, made)
    assert arrays is not None
    assert metrics["rebasin-replies-set-aside"] == 1


@pytest.mark.parametrize("inner", [FedAvg, Taking])
def test_a_strategy_gets_what_was_looked_at_under_the_name_that_it_reads(inner):
    """A client that sends a model under another name, and something else under the usual one."""

    class Derived(inner):
        def aggregate_train(self, server_round, replies):
            self.got = [message.content["arrays"] for message in replies]
            return None, None

    def absurd(at):
        return ArrayRecord({key: Array(np.full(2, 1e30)) for key in make_state(0)}) if at == 3 else model(at)

    made = replies_of(("arrays", absurd), count=CLIENTS)
    made[3].content = RecordDict({**made[3].content, "more": model(3)})
    strategy = Derived(**COMMON) if inner is FedAvg else Derived()
    run_round(FedRebasin(strategy, spec=SPEC), START, made)
    assert len(strategy.got) == CLIENTS - 1
    assert all(np.abs(record["0.weight"].numpy()).max() < 100 for record in strategy.got)


@pytest.mark.parametrize("aligner", [{"spec": SPEC}, {"aligner": Identity()}])
@pytest.mark.parametrize("inner", [FedAvg, Taking])
def test_two_messages_to_a_node_have_two_answers_and_no_third(aligner, inner):
    class Twice(inner):
        def configure_train(self, server_round, arrays, config, grid):
            once = list(super().configure_train(server_round, arrays, config, grid))
            return [Message(m.content, m.metadata.dst_node_id, "train") for m in once for _ in range(2)]

    app = ClientApp()

    @app.train()
    def train(message, context):
        return Message(make_reply(make_state(context.node_id)).content, reply_to=message)

    strategy = Aligned(Twice() if inner is Taking else Twice(**COMMON), **aligner)
    grid = InlineGrid(app, CLIENTS)
    messages = strategy.configure_train(1, ArrayRecord(dict(START)), ConfigRecord(), grid)
    found = grid.send_and_receive(messages)
    assert len(found) == 2 * CLIENTS
    arrays, metrics = strategy.aggregate_train(1, found)
    assert arrays is not None
    assert not (metrics or {}).get("rebasin-replies-set-aside")
    if "spec" in aligner or inner is FedAvg:  # it is refused where replies are looked at
        nameless = make_reply(make_state(1), node_id=found[0].metadata.src_node_id)  # it answers no message
        for more in ([*found, found[0]], [found[0], found[0], *found[2:]], [*found, nameless]):
            _, metrics = strategy.aggregate_train(1, more)
            assert metrics["rebasin-replies-set-aside"] == 1


def test_updates_of_two_models_cannot_be_told_apart():
    class Two(FedAvg):
        takes_models = False

        def configure_train(self, server_round, arrays, config, grid):
            once = list(super().configure_train(server_round, arrays, config, grid))
            return [*once, *(Message(RecordDict({"arrays": self.more}), m.metadata.dst_node_id, "train") for m in once)]

    strategy = FedRebasin(Two(**COMMON), spec=SPEC, sends="update")
    strategy.more = model(1)
    with pytest.raises(RebasinError, match=r"node 1 was sent two models"):
        run_round(strategy, START, replies_of(("arrays", model)))
    strategy.more = ArrayRecord(dict(START))  # an equal one is no other
    arrays, _ = run_round(strategy, START, replies_of(("arrays", model)))
    assert arrays is not None


def test_without_ids_a_node_has_as_many_answers_as_it_was_asked():
    class Twice(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            once = list(super().configure_train(server_round, arrays, config, grid))
            return [*once, *once]

    def reply(at):
        return make_reply(make_state(seed=at), node_id=at % CLIENTS + 1)

    for count, refused in ((2 * CLIENTS, 0), (2 * CLIENTS + 1, 1)):
        strategy = FedRebasin(Twice(**COMMON), spec=SPEC)
        _, metrics = run_round(strategy, START, [reply(at) for at in range(count)])
        assert metrics["rebasin-replies-set-aside"] == refused


def test_a_checkpoint_with_a_metric_that_is_not_finite_is_resumed(tmp_path):
    app = ClientApp()

    @app.train()
    def train(message, context):
        state = message.content["arrays"].to_torch_state_dict()
        metrics = MetricRecord({"num-examples": 1, "auc": math.nan, "epsilon": math.inf})
        return Message(RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=message)

    def run(rounds, resume):
        strategy = FedRebasin(FedAvg(**COMMON), spec=SPEC, checkpoint=tmp_path, resume=resume)
        return strategy.start(InlineGrid(app, CLIENTS), ArrayRecord(dict(START)), num_rounds=rounds)

    run(1, resume=False)
    resumed = run(2, resume=True).train_metrics_clientapp
    assert sorted(resumed) == [1, 2]
    assert math.isnan(resumed[1]["auc"])
    assert resumed[1]["epsilon"] == math.inf


def test_errors_of_form_are_errors_of_records():
    assert issubclass(FormError, RecordError)
    with pytest.raises(FormError):
        Template.of(ArrayRecord(dict(START))).decode(narrow(0))
    with pytest.raises(RecordError) as raised:
        Template.of(ArrayRecord(dict(START))).decode(not_finite(0))
    assert not isinstance(raised.value, FormError)
    assert json.dumps(str(raised.value))
