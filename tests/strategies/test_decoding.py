"""Bytes are read once and written once on a reply's way."""

from collections import Counter

import pytest
from fedrebasin.strategies.replies import records
from flwr.app import Array
from flwr.serverapp.strategy import FedAvg, FedAvgM, FedMedian

from fedrebasin import PermutationSpec
from fedrebasin.strategies import Calibrated, FedRebasin
from tests.strategies.helpers import AXES, CLIENTS, COMMON, make_reply, make_state, run_round


def keep(round_):
    return Calibrated(round_.state, {})


def look(round_):
    return {"seen": float(len(round_.state))}


class Own(FedAvg):
    """It may look at the single replies, for all that is known of it."""


@pytest.mark.parametrize("parts", [{}, {"calibrators": (keep,)}, {"probes": (look,)}])
@pytest.mark.parametrize("inner", [FedAvg, FedAvgM, FedMedian, Own])
@pytest.mark.parametrize("streaming", [False, True])
def test_no_array_is_decoded_twice_and_the_aggregate_is_encoded_once(inner, parts, streaming, monkeypatch):
    keep.rewrites_weights = False
    start = make_state(seed=0)
    replies = [make_reply(make_state(seed=seed), seed) for seed in range(1, CLIENTS + 1)]
    decoded, encoded, held = Counter(), [], []

    def counting(decode, position):
        def decode_and_count(*args):
            held.append(args[position])  # so that no other array comes to lie where it lay
            decoded[id(args[position])] += 1
            return decode(*args)

        return decode_and_count

    def encode(values, make=Array):
        encoded.append(values)
        return make(values)

    monkeypatch.setattr(Array, "numpy", counting(Array.numpy, 0))
    monkeypatch.setattr(records, "_numbers", counting(records._numbers, 1))
    monkeypatch.setattr(records, "Array", encode)
    strategy = FedRebasin(inner(**COMMON), spec=PermutationSpec.from_axes(AXES), streaming=streaming, **parts)
    run_round(strategy, start, replies)
    assert max(decoded.values()) == 1
    if inner is FedAvg:  # the global model and the replies; nothing else has ever been bytes
        assert len(decoded) == len(start) * (1 + CLIENTS)
        assert len(encoded) == len(start)
