import io
import logging
import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrebasin import Identity, PermutationSpec
from fedrebasin.strategies import Aligned, FedRebasin, RecordError, Template
from tests.strategies.helpers import (
    ALIGNABLE,
    AXES,
    CLIENTS,
    COMMON,
    STRATEGIES,
    make_reply,
    make_state,
    run_round,
)

SPEC = PermutationSpec.from_axes(AXES)
START = make_state(seed=99)


def record(**changes):
    """A good record with some arrays replaced; None removes one."""
    arrays = ArrayRecord(dict(make_state(seed=0)))
    changed = dict(arrays.items())
    for name, array in changes.items():
        key = name.replace("_", ".", 1)
        if array is None:
            del changed[key]
        else:
            changed[key] = array if isinstance(array, Array) else Array(np.asarray(array))
    return ArrayRecord(changed)


def with_value(value, dtype="float32"):
    values = np.ones((6, 4), dtype=dtype)
    values[2, 1] = value
    return values


def forged(shape=(6, 4), dtype="float32", data=None, stype="numpy.ndarray"):
    buffer = io.BytesIO()
    np.save(buffer, np.ones((6, 4), dtype=np.float32), allow_pickle=False)
    return Array(dtype, shape, stype, buffer.getvalue() if data is None else data)


def npy(header: bytes, body: bytes = b"\0" * 96) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


def object_array():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}] * 12, dtype=object).reshape(6, 2), allow_pickle=True)
    return buffer.getvalue()


BAD_RECORDS = {
    "missing key": (record(**{"0_weight": None}), "misses '0.weight'"),
    "additional key": (record(**{"9_weight": np.ones(3)}), "adds '9.weight'"),
    "other shape": (record(**{"0_weight": np.ones((6, 5), dtype=np.float32)}), r"shape \(6, 5\) instead of \(6, 4\)"),
    "broadcastable shape": (record(**{"0_weight": np.ones((1, 4), dtype=np.float32)}), "shape"),
    "NaN": (record(**{"0_weight": with_value(math.nan)}), "not finite"),
    "infinity": (record(**{"0_weight": with_value(math.inf)}), "not finite"),
    "minus infinity": (record(**{"0_weight": with_value(-math.inf)}), "not finite"),
    "infinite after the cast": (record(**{"0_weight": with_value(1e300, "float64")}), "not finite"),
    "integers for floats": (record(**{"0_weight": with_value(1, "int64")}), "dtype int64 instead of float32"),
    "floats for integers": (record(**{"1_num_batches_tracked": np.float32(3)}), "dtype float32 instead of int64"),
    "complex": (record(**{"0_weight": with_value(1, "complex64")}), "dtype complex64"),
    "truncated": (record(**{"0_weight": forged(data=b"\x93NUMPY")}), "6 bytes for shape"),
    "garbage": (record(**{"0_weight": forged(data=b"x" * 200)}), "malformed bytes"),
    "other serialisation": (record(**{"0_weight": forged(stype="pickle")}), "serialised as 'pickle'"),
    "objects": (record(**{"0_weight": forged(data=object_array())}), "bytes"),
    "shape in the bytes": (
        record(**{"0_weight": forged(data=npy(b"{'descr':'<f4','fortran_order':False,'shape':(99999,99999),}\n"))}),
        r"the bytes hold \(99999, 99999\)",
    ),
    "dtype in the bytes": (
        record(**{"0_weight": forged(data=npy(b"{'descr':'<f8','fortran_order':False,'shape':(6,4),}\n"))}),
        "the bytes hold .* float64",
    ),
    "too few numbers": (
        record(**{"0_weight": forged(data=npy(b"{'descr':'<f4','fortran_order':False,'shape':(6,4),}\n", b"\0" * 90))}),
        "90 bytes of numbers instead of 96",
    ),
    "no header": (record(**{"0_weight": forged(data=npy(b"{[(" * 20))}), "malformed bytes"),
}

BAD_METRICS = {
    "no num-examples": {"num-examples": None},
    "zero num-examples": {"num-examples": 0},
    "negative num-examples": {"num-examples": -3},
    "absurd num-examples": {"num-examples": 1e30},
    "huge integer num-examples": {"num-examples": 10**18},
    "NaN num-examples": {"num-examples": math.nan},
    "list num-examples": {"num-examples": [3.0]},
    "other metric": {"accuracy": 0.5},
    "list for a number": {"train-loss": [0.5, 0.5]},
}


def good_replies(count=CLIENTS):
    return [make_reply(make_state(seed=i), node_id=i + 1) for i in range(count)]


def bad_metrics(changes, node_id):
    reply = make_reply(make_state(seed=0), node_id=node_id)
    metrics = {k: v for k, v in ({"num-examples": 10, "train-loss": 0.5} | changes).items() if v is not None}
    reply.content = RecordDict({"arrays": reply.content["arrays"], "metrics": MetricRecord(metrics)})
    return reply


def run(strategy, replies):
    arrays, metrics = run_round(strategy, START, replies)
    assert arrays is not None
    for key, tensor in START.items():
        values = arrays[key].numpy()
        assert values.shape == tuple(tensor.shape)
        assert np.isfinite(values).all()
    return arrays, metrics


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_is_refused_by_name(name):
    bad, reason = BAD_RECORDS[name]
    with pytest.raises(RecordError, match=reason):
        Template.of(ArrayRecord(dict(START))).decode(bad)


@pytest.mark.parametrize("inner", STRATEGIES)
@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_is_set_aside_and_the_round_goes_on(name, inner):
    replies = good_replies()
    spoiled = [*replies[:7], make_reply(BAD_RECORDS[name][0], node_id=8)]
    arrays, metrics = run(Aligned(STRATEGIES[inner](), aligner=Identity()), spoiled)
    assert metrics["rebasin-replies-set-aside"] == 1.0
    clean, _ = run(Aligned(STRATEGIES[inner](), aligner=Identity()), replies[:7])
    for key in START:
        assert np.array_equal(arrays[key].numpy(), clean[key].numpy())


@pytest.mark.parametrize("inner", STRATEGIES)
@pytest.mark.parametrize("name", BAD_METRICS)
def test_bad_metrics_are_set_aside_and_the_round_goes_on(name, inner):
    replies = [*good_replies(7), bad_metrics(BAD_METRICS[name], node_id=8)]
    _, metrics = run(Aligned(STRATEGIES[inner](), aligner=Identity()), replies)
    assert metrics["rebasin-replies-set-aside"] == 1.0


@pytest.mark.parametrize("inner", STRATEGIES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["train-loss", "auc"])
def test_a_metric_that_is_not_finite_costs_a_warning_and_the_model_only_where_it_is_read(key, value, inner, caplog):
    logging.getLogger("flwr").propagate = True
    metrics = {"auc": 0.5}
    replies = [make_reply(make_state(seed=i), node_id=i + 1, **metrics) for i in range(CLIENTS)]
    spoiled = [*replies[:7], bad_metrics(metrics | {key: value}, node_id=8)]
    expected, _ = run(Aligned(STRATEGIES[inner](), aligner=Identity()), [*replies[:7], bad_metrics(metrics, node_id=8)])
    arrays, found = run(Aligned(STRATEGIES[inner](), aligner=Identity()), spoiled)
    if (inner, key) == ("QFedAvg", "train-loss"):  # weighs replies by their losses
        assert found["rebasin-replies-set-aside"] == 1.0
        return
    assert "rebasin-replies-set-aside" not in found
    assert all(np.array_equal(arrays[key].numpy(), expected[key].numpy()) for key in START)
    assert f"not finite go on as they came: '{key}' of 1 replies" in caplog.text


def test_the_reason_and_the_node_are_logged(caplog):
    caplog.set_level("WARNING", logger="flwr")
    logging.getLogger("flwr").propagate = True
    run(FedRebasin(FedAvg(**COMMON), spec=SPEC), [*good_replies(7), make_reply(BAD_RECORDS["NaN"][0], node_id=8)])
    assert "set aside the reply of node 8: 0.weight: not finite" in caplog.text


def test_records_of_another_number_or_name_are_set_aside():
    replies = good_replies()
    two = replies[0].content
    replies[0].content = RecordDict({**two, "more": ArrayRecord(dict(START))})
    replies[1].content = RecordDict({"other": replies[1].content["arrays"], "metrics": replies[1].content["metrics"]})
    replies[2].content = RecordDict({"metrics": replies[2].content["metrics"]})
    replies[3].content = RecordDict({**replies[3].content, "note": ConfigRecord({"text": "allowed"})})
    _, metrics = run(FedRebasin(FedAvg(**COMMON), spec=SPEC), replies)
    assert metrics["rebasin-replies-set-aside"] == 3.0


def test_a_second_reply_and_a_stranger_are_set_aside():
    replies = [*good_replies(7), make_reply(make_state(seed=3), node_id=3), make_reply(make_state(seed=4), node_id=77)]
    _, metrics = run(FedRebasin(FedAvg(**COMMON), spec=SPEC), replies)
    assert metrics["rebasin-replies-set-aside"] == 2.0


@pytest.mark.parametrize("inner", ALIGNABLE)
def test_without_a_usable_reply_the_global_model_is_kept(inner):
    replies = [make_reply(BAD_RECORDS["NaN"][0], node_id=i + 1) for i in range(CLIENTS)]
    asked = Message(RecordDict(), 1, "train")
    replies[0] = Message(Error(0, "died"), reply_to=asked)
    strategy = FedRebasin(STRATEGIES[inner](), spec=SPEC)
    arrays, metrics = run_round(strategy, START, replies)
    assert arrays is None
    assert metrics["rebasin-replies-set-aside"] == CLIENTS - 1


def test_keys_in_another_order_are_put_into_the_global_order():
    replies = good_replies()
    reordered = ArrayRecord(dict(reversed(list(replies[0].content["arrays"].items()))))
    shuffled = [replies[0].__class__(RecordDict({**replies[0].content, "arrays": reordered}), reply_to=_ask(1))]
    for inner in STRATEGIES:
        expected, _ = run(Aligned(STRATEGIES[inner](), aligner=Identity()), good_replies())
        actual, _ = run(Aligned(STRATEGIES[inner](), aligner=Identity()), [*shuffled, *good_replies()[1:]])
        for key in START:
            assert np.array_equal(expected[key].numpy(), actual[key].numpy()), inner


def _ask(node_id):
    return Message(RecordDict(), node_id, "train")


def test_floats_of_another_precision_are_cast():
    template = Template.of(ArrayRecord(dict(START)))
    state = template.decode(record(**{"0_weight": with_value(0.5, "float64"), "0_bias": np.ones(6, np.float16)}))
    assert state["0.weight"].dtype == torch.float32
    assert state["0.weight"][2, 1] == 0.5


def test_fortran_order_is_understood():
    values = np.asfortranarray(np.arange(24, dtype=np.float32).reshape(6, 4))
    state = Template.of(ArrayRecord(dict(START))).decode(record(**{"0_weight": values}))
    assert np.array_equal(state["0.weight"].numpy(), values)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_break_the_decoder(data):
    good = bytearray(forged().data)
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(good) - 1))
        good[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    damaged = bytes(good[: len(good) - cut]) if data.draw(st.booleans()) else bytes(good)
    template = Template.of(ArrayRecord(dict(START)))
    try:
        state = template.decode(record(**{"0_weight": forged(data=damaged)}))
    except RecordError:
        return
    assert state["0.weight"].shape == (6, 4)
    assert torch.isfinite(state["0.weight"]).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 9))
def test_encoding_is_the_inverse_of_decoding(seed, width):
    state = make_state(seed, width)
    template = Template.of(ArrayRecord(dict(state)))
    back = template.decode(template.encode(state))
    assert list(back) == list(state)
    for key, tensor in state.items():
        assert back[key].dtype == tensor.dtype
        assert torch.equal(back[key], tensor)
