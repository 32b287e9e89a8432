"""With Identity the wrapper is the wrapped strategy, for strategies that nobody has seen: what they get, give, keep."""

import math
import random
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
import torch
from fedrebasin.strategies.replies import RecordError, demand_sane
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from numpy.lib import format as npy

from fedrebasin import Identity
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned
from tests.flower.harness import heard
from tests.strategies.helpers import CLIENTS, COMMON, FromNothing, make_reply, run_round

NODES, ROUNDS = 4, 3
START = {"a.weight": torch.arange(24.0).reshape(6, 4), "a.bias": torch.ones(6)}


class Own(FromNothing):
    """A strategy from nothing: asks all nodes, and keeps what it was given to aggregate."""

    def __init__(self):
        self.got = []

    def configure_train(self, server_round, arrays, config, grid):
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"round": server_round})})
        return [Message(content, node, "train") for node in grid.get_node_ids()]

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        self.got.append([None if reply.has_error() else seen(reply.content) for reply in replies])
        good = [reply for reply in replies if not reply.has_error()]
        return self.made(server_round, good)

    def made(self, server_round, replies):
        raise NotImplementedError


def seen(content):
    """Everything in a reply, to be compared."""
    return {
        name: {key: (a.dtype, a.shape, a.stype, a.data) for key, a in record.items()}
        if isinstance(record, ArrayRecord)
        else repr(dict(record))
        for name, record in content.items()
    }


def numbers(message, name="arrays"):
    return {key: array.numpy() for key, array in message.content[name].items()}


def pack(values):
    """In single precision where it is the model: the global dtypes are restored, which would differ otherwise."""
    single = {key: each.astype(np.float32) if key in START else each for key, each in values.items()}
    return ArrayRecord({key: Array(np.asarray(each)) for key, each in single.items()})


def noisy(message, context, name="arrays"):
    rng = np.random.default_rng([context.node_id, message.content["config"]["round"]])
    return {key: values + rng.normal(size=values.shape) for key, values in numbers(message, name).items()}


class SubModels(Own):
    """HeteroFL: a node trains the first rows only, as many as it can; each entry is the mean of those that have it."""

    def made(self, server_round, replies):
        total, count = np.zeros((6, 4)), np.zeros((6, 4))
        for reply in replies:
            values = numbers(reply)["a.weight"]
            total[: len(values)] += values
            count[: len(values)] += 1
        return pack({**{key: t.numpy() for key, t in START.items()}, "a.weight": total / count}), None

    @staticmethod
    def reply(message, context):
        rows = 6 if context.node_id == 1 else context.node_id
        return {"arrays": pack({"a.weight": noisy(message, context)["a.weight"][:rows]})}


class WithoutMetrics(Own):
    """Takes the elementwise largest, and asks for no weight."""

    def made(self, server_round, replies):
        found = [numbers(reply) for reply in replies]
        return pack({key: np.max([each[key] for each in found], axis=0) for key in START}), None

    @staticmethod
    def reply(message, context):
        return {"arrays": pack(noisy(message, context))}


class ReadsConfig(Own):
    """Takes the model of the node whose ConfigRecord bids most; a second MetricRecord goes to its own metrics."""

    def made(self, server_round, replies):
        best = max(replies, key=lambda reply: reply.content["bid"]["price"])
        return best.content["arrays"], MetricRecord({"watts": best.content["energy"]["watts"]})

    @staticmethod
    def reply(message, context):
        price = (context.node_id * 7 + message.content["config"]["round"]) % 5
        return {
            "bid": ConfigRecord({"price": price, "note": "high", "raw": b"\x00\xff", "kinds": ["x", "y"]}),
            "energy": MetricRecord({"watts": 3.0 * context.node_id}),
            "metrics": MetricRecord({"num-examples": 1, "epsilon": math.inf, "auc": math.nan}),
            "arrays": pack(noisy(message, context)),
        }


class AnotherWeight(Own):
    """Weighs by a metric of its own, and a zero weight is one."""

    def made(self, server_round, replies):
        weights = [reply.content["m"]["loss-inverse"] for reply in replies]
        found = [numbers(reply, "model") for reply in replies]
        mean = {key: np.average([each[key] for each in found], axis=0, weights=weights) for key in START}
        return pack(mean), MetricRecord({"total": float(sum(weights))})

    @staticmethod
    def reply(message, context):
        metrics = MetricRecord({"loss-inverse": float(context.node_id - 1), "num-examples": 0})
        return {"model": pack(noisy(message, context)), "m": metrics}


class Keeping(Own):
    """As asynchronous ones: gives nothing in the first rounds, then makes a model of all replies that it has kept."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def made(self, server_round, replies):
        self.kept += replies
        if len(self.kept) < 2 * NODES:
            return None, None
        found = [numbers(reply) for reply in self.kept]
        return pack({key: np.mean([each[key] for each in found], axis=0) for key in START}), None

    reply = WithoutMetrics.reply


class TwoMessages(Own):
    """Asks every node twice in a round, for two things."""

    def configure_train(self, server_round, arrays, config, grid):
        for task in ("first", "second"):
            content = RecordDict({"arrays": arrays, "config": ConfigRecord({"round": server_round, "task": task})})
            for node in grid.get_node_ids():
                yield Message(content, node, "train")

    def made(self, server_round, replies):
        counted = Counter(reply.metadata.src_node_id for reply in replies)
        assert set(counted.values()) == {2}
        found = [numbers(reply) for reply in replies]
        return pack({key: np.mean([each[key] for each in found], axis=0) for key in START}), None

    @staticmethod
    def reply(message, context):
        scale = 1.0 if message.content["config"]["task"] == "first" else -0.5
        return {"arrays": pack({key: scale * values for key, values in noisy(message, context).items()})}


class OtherForms(Own):
    """Complex numbers, text and bytes of its own; the model that it makes has other keys each round."""

    def made(self, server_round, replies):
        total = sum(reply.content["arrays"]["spectrum"].numpy() for reply in replies)
        return pack({f"spectrum-{server_round}": total, "names": np.array(["é", "bc"])}), None

    @staticmethod
    def reply(message, context):
        own = Array("any", (2,), "my.format", b"\x80\x04whatever")
        record = ArrayRecord({"spectrum": Array(np.array([1j, 2.0]) * context.node_id), "own": own})
        return {"arrays": record}


class Failing(WithoutMetrics):
    """Is told of errors too, where they are."""

    @staticmethod
    def reply(message, context):
        if context.node_id == 2:
            raise RuntimeError("planted")
        return WithoutMetrics.reply(message, context)


class Derived(FedAvg):
    """FedAvg with a record more, which it takes out before FedAvg sees it."""

    def __init__(self):
        super().__init__(fraction_evaluate=0.0, min_train_nodes=NODES, min_available_nodes=NODES)
        self.got = []

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        self.got.append([seen(reply.content) for reply in replies])
        for reply in replies:
            del reply.content["control"]
        return super().aggregate_train(server_round, replies)

    @staticmethod
    def reply(message, context):
        values = {key: array.numpy() for key, array in message.content["arrays"].items()}
        moved = pack({key: each + context.node_id for key, each in values.items()})
        return {"control": moved, "arrays": moved, "metrics": MetricRecord({"num-examples": 2})}


class Trained(FedAvg):
    """Flower's own, where clients send what they have trained only, as adapters: its mean is the next model."""

    def __init__(self):
        super().__init__(fraction_evaluate=0.0, min_train_nodes=NODES, min_available_nodes=NODES)
        self.got = []

    @staticmethod
    def reply(message, context):
        head = {"a.bias": message.content["arrays"]["a.bias"].numpy() + context.node_id}
        return {"arrays": pack(head), "metrics": MetricRecord({"num-examples": context.node_id})}


STRATEGIES = [
    *(SubModels, WithoutMetrics, ReadsConfig, AnotherWeight, Keeping, TwoMessages, OtherForms, Failing),
    *(Derived, Trained),
]


def run(kind, wrap):
    app = ClientApp()

    @app.train()
    def train(message, context):
        return Message(RecordDict(kind.reply(message, context)), reply_to=message)

    inner = kind()
    random.seed(0)
    with heard() as warnings:
        result = wrap(inner).start(InlineGrid(app, NODES), ArrayRecord(dict(START)), num_rounds=ROUNDS)
    arrays = {key: (array.dtype, array.shape, array.data) for key, array in result.arrays.items()}
    return arrays, repr(result.train_metrics_clientapp), inner.got, warnings


def wrapped(inner, **options):
    return Aligned(inner, aligner=Identity(), **options)


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: kind.__name__)
def test_it_gets_and_gives_what_it_does_alone(kind):
    alone = run(kind, lambda inner: inner)
    assert run(kind, wrapped) == alone
    arrays, _, got, warnings = run(kind, lambda inner: wrapped(inner, probes=(lambda round_: {"one": 1.0},)))
    assert (arrays, got) == (alone[0], alone[2])
    assert [warning for warning in warnings if "that are not finite go on" not in warning] == alone[3]


@pytest.mark.parametrize("kind", [kind for kind in STRATEGIES if kind is not Trained], ids=lambda kind: kind.__name__)
def test_while_streaming_it_gets_them_as_they_arrive(kind):
    """Flower's own strategies alone are streamed by the form of the global model."""
    alone, streamed = run(kind, lambda inner: inner), run(kind, lambda inner: wrapped(inner, streaming=True))
    assert sorted(map(repr, streamed[2][0])) == sorted(map(repr, alone[2][0]))
    for key, (_, shape, _) in alone[0].items():
        assert streamed[0][key][1] == shape
    assert streamed[3] == alone[3]


def planted(value, dtype):
    values = np.ones(3, dtype=dtype)
    values[1] = value
    return Array(values)


BAD = {
    "NaN": planted(math.nan, "float64"),
    "infinity": planted(math.inf, "float16"),
    "complex NaN": planted(complex(0, math.nan), "complex64"),
    "no header": Array("int64", (3,), "numpy.ndarray", b"\x00" * 24),
    "a shape that is not there": Array("int64", (9999, 9999), "numpy.ndarray", Array(np.ones(3, np.int64)).data),
    "pickled objects": Array(
        "object", (1,), "numpy.ndarray", b"\x93NUMPY\x01\x00\x2c\x00{'descr':'|O','fortran_order':False,'shape':(1,),}"
    ),
    "a shape in the bytes": Array(
        "uint8",
        (3,),
        "numpy.ndarray",
        b"\x93NUMPY\x01\x00\x40\x00{'descr':'|u1','fortran_order':False,'shape':(9999999,9999999),}\n   ",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_finite_or_not_what_it_says_is_all_that_is_set_aside(name):
    class Bad(WithoutMetrics):
        @staticmethod
        def reply(message, context):
            records = WithoutMetrics.reply(message, context)
            return records if context.node_id != 3 else {**records, "more": ArrayRecord({"x": BAD[name]})}

    inner = Bad()
    app = ClientApp()

    @app.train()
    def train(message, context):
        return Message(RecordDict(Bad.reply(message, context)), reply_to=message)

    result = Aligned(inner, aligner=Identity()).start(InlineGrid(app, NODES), ArrayRecord(dict(START)), num_rounds=1)
    assert len(inner.got[0]) == NODES - 1
    assert result.train_metrics_clientapp[1]["rebasin-replies-set-aside"] == 1.0


NOTHING_KNOWN = {
    "no arrays at first": ArrayRecord(),
    "complex": ArrayRecord({"w": Array(np.ones(3, dtype="complex64"))}),
    "of a dtype that numpy has not": ArrayRecord({"w": Array("bfloat16", (1,), "mine", b"\x00\x00")}),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("start", NOTHING_KNOWN.values(), ids=NOTHING_KNOWN)
@pytest.mark.parametrize("bad", ["a dtype", "other keys"])
def test_where_no_form_is_known_flowers_own_get_what_they_would_and_no_reply_says_what_is_one(start, streaming, bad):
    """One that comes first, or falls out of the others' form, is one reply, whatever it says."""
    replies = [make_reply(ArrayRecord({"w": Array(np.full(3, at * 1j))}), at) for at in range(2, CLIENTS + 1)]
    expected, _ = run_round(FedAvg(**COMMON), start, replies)
    odd = {"w": Array("nonsense", (3,), "numpy.ndarray", b"1")} if bad == "a dtype" else {"x": Array(np.ones(3))}
    strategy = Aligned(FedAvg(**COMMON), aligner=Identity(), streaming=streaming)
    found, metrics = run_round(strategy, start, [make_reply(ArrayRecord(odd), 1), *replies])
    assert np.array_equal(found["w"].numpy(), expected["w"].numpy())
    assert metrics["rebasin-replies-set-aside"] == 1


IMPOSSIBLE = {
    "entries of no bytes": ("|S0", (10**12,)),
    "a dimension beyond all": ("<i4", (0, 10**30)),
    "too many dimensions": ("<i4", (1,) * 33),
}


@pytest.mark.parametrize(("descr", "shape"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_shapes_that_no_array_has_are_refused_though_they_hold_nothing(descr, shape):
    buffer = BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    data = buffer.getvalue() + bytes(4) * (len(shape) == 33)
    with pytest.raises(RecordError, match="x: "):
        demand_sane(ArrayRecord({"x": Array(descr, shape, "numpy.ndarray", data)}))


def test_an_aggregate_that_is_not_finite_is_not_kept():
    class Broken(SubModels):
        def made(self, server_round, replies):
            return pack({"other": np.array([1.0, math.nan])}), None

    result = run(Broken, lambda inner: Aligned(inner, aligner=Identity()))
    assert result[0] == {}
