from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg

from fedrebasin import AlignTo, Identity, Permutation, PermutationSpec, RebasinError
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned, AlignMod
from tests.strategies.helpers import AXES, CLIENTS, COMMON, make_state

SPEC = PermutationSpec.from_axes(AXES)


def make_app(mods=(), keys=None):
    """Clients that add a little noise to the global model and permute their units."""
    app = ClientApp()

    @app.train(mods=list(mods))
    def train(message, context):
        node = context.node_config["partition-id"]
        generator = torch.Generator().manual_seed(node)
        state = message.content["arrays"].to_torch_state_dict()
        names = dict(zip(state, AXES_KEYS, strict=True)) if keys == "positions" else {key: key for key in state}
        named = {names[key]: tensor for key, tensor in state.items()}
        noisy = {
            key: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            if tensor.is_floating_point()
            else tensor
            for key, tensor in named.items()
        }
        moved = Permutation.random(SPEC.bind(noisy), generator).apply(noisy)
        back = {key: moved[names[key]] for key in state}
        metrics = MetricRecord({"num-examples": 5 + node})
        return Message(RecordDict({"arrays": ArrayRecord(back), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "x": 1.0})}), reply_to=message)

    return app


AXES_KEYS = list(make_state(0, integers=False))


def run(strategy, app, start):
    return strategy.start(InlineGrid(app, CLIENTS), ArrayRecord(dict(start)), num_rounds=1)


def test_client_side_and_server_side_alignment_give_the_same_aggregate():
    start = make_state(0, width=24)
    server = Aligned(FedAvg(**COMMON), spec=SPEC, aligner=AlignTo(reference=start))
    on_server = run(server, make_app(), start)
    on_clients = run(FedAvg(**COMMON), make_app([AlignMod(SPEC)]), start)
    for key, tensor in start.items():
        if tensor.is_floating_point():
            expected, actual = (result.arrays[key].numpy() for result in (on_server, on_clients))
            assert np.allclose(expected, actual, atol=1e-6), key
            assert np.allclose(actual, tensor.numpy(), atol=0.2), key


def test_inside_client_side_clipping_the_clipped_update_is_the_aligned_one():
    start = make_state(0, width=24, integers=False)
    strategy = DifferentialPrivacyClientSideFixedClipping(FedAvg(**COMMON), 0.0, 100.0, CLIENTS)
    result = run(strategy, make_app([fixedclipping_mod, AlignMod(SPEC)]), start)
    plain = run(FedAvg(**COMMON), make_app([AlignMod(SPEC)]), start)
    for key in start:
        assert np.allclose(result.arrays[key].numpy(), plain.arrays[key].numpy(), atol=1e-5)


def test_without_names_positions_tell_which_is_which():
    named = make_state(0, width=24, integers=False)
    numbered = {str(position): tensor for position, tensor in enumerate(named.values())}
    expected = run(FedAvg(**COMMON), make_app([AlignMod(SPEC)]), named)
    actual = run(FedAvg(**COMMON), make_app([AlignMod(SPEC)], keys="positions"), numbered)
    for a, b in zip(expected.arrays.values(), actual.arrays.values(), strict=True):
        assert np.allclose(a.numpy(), b.numpy(), atol=1e-6)
    assert list(actual.arrays) == list(numbered)


def trained(mods):
    """What the client's function is sent with a clipping norm, and what it answers through these mods."""
    InlineGrid(ClientApp(), 1)
    start, app, seen = make_state(0, width=24, integers=False), ClientApp(), []

    @app.train(mods=mods)
    def train(message, context):
        seen.append(message.content)
        arrays = ArrayRecord({key: tensor + 0.01 for key, tensor in start.items()})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    config = ConfigRecord({"clipping_norm": 1.0, "lr": 0.1})
    message = Message(RecordDict({"arrays": ArrayRecord(dict(start)), "config": config}), 1, "train")
    answer = app(message, None)
    assert dict(message.content["config"]) == {"clipping_norm": 1.0, "lr": 0.1}
    return seen, answer


def test_nothing_inside_can_clip():
    norms = []

    def clip(message, context, call_next):
        """A mod of somebody else's, by another name."""
        norms.append(message.content["config"]["clipping_norm"])
        return call_next(message, context)

    (inside,), answer = trained([clip, AlignMod(SPEC)])
    assert norms == [1.0]
    assert dict(inside["config"]) == {"lr": 0.1}
    assert not answer.has_error()
    with pytest.raises(KeyError):
        trained([AlignMod(SPEC), clip])


@pytest.mark.parametrize("clipping", [fixedclipping_mod, adaptiveclipping_mod, partial(fixedclipping_mod)])
def test_flowers_clipping_inside_is_refused_before_the_client_trains(clipping):
    with pytest.raises(RebasinError, match=r"would be permuted afterwards.*mods=\[CLIPPING_MOD, AlignMod\(spec\)\]"):
        trained([AlignMod(SPEC), clipping])
    assert trained([clipping, AlignMod(SPEC)])[0]


@pytest.mark.parametrize("kind", ["evaluate", "query.other"])
def test_other_messages_pass(kind):
    InlineGrid(ClientApp(), 1)
    message = Message(RecordDict({"config": ConfigRecord({"a": 1})}), 1, kind)
    answer = Message(RecordDict(), reply_to=message)
    assert AlignMod(SPEC)(message, None, lambda *_: answer) is answer


def test_a_server_that_leaves_everything_alone_sees_aligned_models_only():
    start = make_state(0, width=24)
    aligned = run(Aligned(FedAvg(**COMMON), aligner=Identity()), make_app([AlignMod(SPEC)]), start)
    assert np.allclose(aligned.arrays["0.weight"].numpy(), start["0.weight"].numpy(), atol=0.2)
    assert isinstance(aligned.arrays["0.weight"], Array)


@pytest.mark.parametrize("sends", ["model", "update"])
@pytest.mark.parametrize("seed", range(3))
def test_what_lies_along_the_models_units_moves_with_it_and_updates_are_updates_again(sends, seed):
    """One model and one control variate in an order of units that each client draws: all replies say the same."""
    start, trained, change = (make_state(seed + at, width=12, integers=False) for at in (0, 20, 40))
    got = []

    class Keeping(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            for message in super().configure_train(server_round, arrays, config, grid):
                content = RecordDict({"control": arrays, **message.content})
                yield Message(content, message.metadata.dst_node_id, "train")

        def aggregate_train(self, server_round, replies):
            got.extend(dict(reply.content.array_records) for reply in replies)
            return None, None

    app = ClientApp()

    @app.train(mods=[AlignMod(SPEC, sends=sends)])
    def train(message, context):
        order = Permutation.random(SPEC.bind(start), torch.Generator().manual_seed(context.node_id))
        model = order.apply(trained)
        model = {key: tensor - start[key] for key, tensor in model.items()} if sends == "update" else model
        content = {"control": ArrayRecord(order.apply(change)), "arrays": ArrayRecord(model)}
        return Message(RecordDict(content), reply_to=message)

    run(Keeping(**COMMON), app, start)
    assert len(got) == CLIENTS
    for name in ("arrays", "control"):
        first, *others = (records[name].to_torch_state_dict() for records in got)
        for other in others:
            assert all(torch.allclose(first[key], other[key], atol=1e-5) for key in start), name
    model = got[0]["arrays"].to_torch_state_dict()
    whole = {key: tensor + (start[key] if sends == "update" else 0) for key, tensor in model.items()}
    for key in ("0.weight", "3.weight"):
        assert torch.allclose(whole[key].flatten().sort()[0], trained[key].flatten().sort()[0], atol=1e-5)
