"""Integer arrays along a group, in a round: they move, they are never averaged, and who differs is set aside."""

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg

from fedrebasin import AlignTo, Identity, MergeMany, Permutation, PermutationSpec
from fedrebasin.strategies import Aligned
from tests.strategies.helpers import AXES, COMMON, STRATEGIES, make_reply, make_state, run_round

SPEC = PermutationSpec.from_axes(
    {**AXES, "mask": ("P",), "codes": (None, "P")},
    statistics=["1.running_mean", "1.running_var", "mask", "codes"],
)


def masked(seed, width=6):
    generator = torch.Generator().manual_seed(seed)
    return {
        **make_state(seed, width),
        "mask": torch.rand(width, generator=generator) < 0.5,
        "codes": torch.randint(2**60, (2, width), generator=generator),  # more than a float64 holds
    }


def permuted(state, seed):
    spec = SPEC.bind(state)
    return Permutation.random(spec, torch.Generator().manual_seed(seed)).apply(state)


def arrays_of(record):
    return {key: torch.from_numpy(np.array(array.numpy())) for key, array in record.items()}


KINDS = {
    "reference": {"aligner": AlignTo()},
    "no reference": {"aligner": MergeMany()},
    "streaming": {"streaming": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["FedAvg", "FedAvgM", "FedAdam", "FedMedian", "MultiKrum", "QFedAvg"])
def test_what_all_replies_agree_on_is_kept_to_the_bit(name, kind):
    start = masked(0)
    pruned = {**start, "mask": ~start["mask"]}
    # Where replies come one by one it is the reference that they are held against, else it is each other.
    sent = start if kind == "streaming" else pruned
    replies = [make_reply(permuted(sent, node), node_id=node, train_loss=0.5) for node in range(1, 9)]
    strategy = Aligned(STRATEGIES[name](), spec=SPEC, **KINDS[kind])
    record, metrics = run_round(strategy, start, replies)
    found = arrays_of(record)
    assert "rebasin-replies-set-aside" not in metrics or metrics["rebasin-replies-set-aside"] == 0
    assert found["mask"].dtype == torch.bool
    # In whatever order: each unit still has its own.
    units = torch.cat([found["0.weight"], found["mask"][:, None], found["codes"].T.double()], 1)
    own = torch.cat([start["0.weight"], sent["mask"][:, None], start["codes"].T.double()], 1)
    if name in ("FedAvg", "FedMedian", "MultiKrum"):
        assert torch.allclose(units[units[:, 0].argsort()], own[own[:, 0].argsort()].to(units.dtype))
    assert torch.equal(found["codes"].sort().values, start["codes"].sort().values)


@pytest.mark.parametrize("kind", KINDS)
def test_who_differs_is_set_aside_and_the_rest_is_averaged(kind, caplog):
    start = masked(1)
    replies = [make_reply(permuted(start, node), node_id=node) for node in range(1, 5)]
    other = {**start, "mask": ~start["mask"], "0.bias": start["0.bias"] + 100}
    replies.insert(2, make_reply(permuted(other, 9), node_id=9))
    record, metrics = run_round(Aligned(FedAvg(**COMMON), spec=SPEC, **KINDS[kind]), start, replies)
    found = arrays_of(record)
    assert metrics["rebasin-replies-set-aside"] == 1
    assert torch.allclose(found["0.bias"].sort().values, start["0.bias"].sort().values, atol=1e-5)
    assert int(found["mask"].sum()) == int(start["mask"].sum())


def test_without_a_majority_the_global_models_integers_count():
    start = masked(2)
    others = [{**start, "mask": torch.arange(6) == node} for node in range(3)]
    replies = [make_reply(state, node_id=node) for node, state in enumerate([start, *others], 1)]
    record, metrics = run_round(Aligned(FedAvg(**COMMON), spec=SPEC), start, replies)
    assert metrics["rebasin-replies-set-aside"] == 3
    assert torch.equal(arrays_of(record)["mask"], start["mask"])
    record, _ = run_round(Aligned(FedAvg(**COMMON), spec=SPEC), start, replies[1:])
    assert record is None


def test_where_clients_are_private_the_global_models_integers_count():
    start = masked(3)
    pruned = {**start, "mask": ~start["mask"]}
    same = {**start, "0.bias": start["0.bias"] + 0.1}
    replies = [make_reply(state, node_id=node) for node, state in enumerate([pruned, pruned, same], 1)]
    record, metrics = run_round(Aligned(STRATEGIES["DP-server"](), spec=SPEC), start, replies)
    assert metrics["rebasin-replies-set-aside"] == 2
    assert torch.equal(arrays_of(record)["mask"], start["mask"])


def test_where_nothing_is_aligned_the_strategy_does_as_it_always_does():
    start = masked(4)
    replies = [make_reply({**start, "codes": torch.full((2, 6), node)}, node_id=node) for node in (1, 3)]
    record, _ = run_round(Aligned(FedAvg(**COMMON), aligner=Identity()), start, replies)
    assert torch.equal(arrays_of(record)["codes"], torch.full((2, 6), 2))
