"""Some arrays are sent, the others stay with the clients: what is aligned then, and that both still fit each other."""

import logging
import re

import pytest
import torch
from fedrebasin.strategies.replies import RecordError
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian
from torch import nn
from torch.func import functional_call

from fedrebasin import AlignTo, Identity, Permutation, PermutationSpec, RebasinError, SpecError
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import (
    Aligned,
    AlignmentProbe,
    AlignMod,
    BarrierProbe,
    BatchNormRecalibration,
    FedMergeMany,
    FedRebasin,
    HeadRegression,
    TemperatureCalibration,
)

CLIENTS = 4
KINDS = {
    "mlp": nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)).eval(),
    "batch norm": nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10), nn.BatchNorm1d(10), nn.Linear(10, 3)
    ).eval(),
}
INPUTS = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
SPECS = {name: PermutationSpec.trace(model, INPUTS) for name, model in KINDS.items()}
#: The keys that are sent.
PARTS = {
    "body": ("mlp", lambda key: key[0] != "4"),
    "head": ("mlp", lambda key: key[0] == "4"),
    "no norm": ("batch norm", lambda key: key[0] not in "14"),
    "no statistics": ("batch norm", lambda key: "running" not in key and "num" not in key),
}


def drawn(model, seed):
    """Numbers for a model, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(tensor.shape, generator=generator) + (0.2 if "running" in key else -0.4)
        if tensor.is_floating_point()
        else tensor
        for key, tensor in model.state_dict().items()
    }


class Local:
    """Clients with one function, each in an order of units of its own: they send a part, and keep the rest."""

    def __init__(self, name, spec=None, noise=0.0):
        kind, self.sent = PARTS[name]
        self.model, self.spec, self.noise = KINDS[kind], SPECS[kind], noise
        self.free = self.spec if spec is None else spec
        self.state = drawn(self.model, 3)
        self.errors, self.app = [], ClientApp()
        self.app.train()(self.train)

    def start(self, seed=9):
        return ArrayRecord(self.part(drawn(self.model, seed)))

    def part(self, state):
        return {key: tensor for key, tensor in state.items() if self.sent(key)}

    def outputs(self, state):
        return functional_call(self.model, state, (INPUTS,)).detach()

    def train(self, message, context):
        member = Permutation.random(self.free.bind(self.state), torch.Generator().manual_seed(context.node_id))
        own = member.apply(self.state)
        received = message.content["arrays"].to_torch_state_dict()
        if message.content["config"]["server-round"] > 1:
            self.errors.append(float((self.outputs({**own, **received}) - self.outputs(self.state)).abs().max()))
        noise = torch.Generator().manual_seed(context.node_id)
        content = {
            "arrays": ArrayRecord(
                {
                    key: tensor + self.noise * torch.randn(tensor.shape, generator=noise)
                    if tensor.is_floating_point()
                    else tensor
                    for key, tensor in self.part(own).items()
                }
            ),
            "metrics": MetricRecord({"num-examples": 10}),
        }
        return Message(RecordDict(content), reply_to=message)

    def run(self, strategy, rounds=2, start=None):
        return strategy.start(InlineGrid(self.app, CLIENTS), start or self.start(), num_rounds=rounds).arrays


@pytest.fixture
def lines(caplog):
    """What was logged about the part."""
    caplog.set_level(logging.INFO, logger="flwr")
    logging.getLogger("flwr").propagate = True

    def found():
        return [record for record in caplog.records if "stay with the clients" in record.getMessage()]

    return found


@pytest.mark.parametrize("name", ["body", "no norm", "no statistics"])
@pytest.mark.parametrize("make", [FedRebasin, FedMergeMany])
def test_in_the_nodes_own_frames_the_part_fits_what_stayed_at_home(name, make, lines):
    clients = Local(name)
    clients.run(make(FedAvg(), spec=clients.spec, frame="client"), rounds=3)
    assert len(clients.errors) == 2 * CLIENTS
    assert max(clients.errors) < 1e-5
    (line,) = lines()
    assert line.levelno == logging.INFO
    assert 'use frame="server"' in line.getMessage()
    assert max(_unaligned(name)) > 0.1


def _unaligned(name):
    clients = Local(name)
    clients.run(FedAvg())
    return clients.errors


def test_in_the_servers_frame_units_that_lie_in_what_is_sent_alone_move_and_the_others_stay(lines):
    """Copies whose last hidden units are in one order, as clients that have trained from the server's have them."""
    clients = Local("body", SPECS["mlp"].freeze(["2"]))
    strategy = FedRebasin(FedAvg(), spec=clients.spec)
    clients.run(strategy)
    assert max(clients.errors) < 1e-5
    assert {name: group.frozen for name, group in strategy.spec.groups.items()} == {"0": False, "2": True}
    (line,) = lines()
    assert line.levelno == logging.WARNING
    assert re.search(r"^2 of .* 6 arrays.* \(4.weight, 4.bias\).* are frozen: 2 \(with 4.weight\)", said(line))


def said(line):
    return line.getMessage()


def test_the_norm_stays_with_the_clients_and_the_servers_frame_moves_nothing(lines):
    clients = Local("no norm")
    strategy = FedRebasin(FedAvg(), spec=clients.spec)
    aligned = clients.run(strategy)
    (line,) = lines()
    assert "none is left to align: 0 (with 1.weight), 3 (with 4.weight)" in said(line)
    assert 'frame="client" aligns the groups as well' in said(line)
    plain = Local("no norm").run(FedAvg())
    assert all(torch.allclose(*map(torch.from_numpy, (aligned[key].numpy(), plain[key].numpy()))) for key in plain)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("inner", [FedAvg, FedMedian])
def test_with_identity_a_part_goes_through_as_it_is(name, inner, lines):
    plain = Local(name, noise=0.1).run(inner())
    for strategy in (Aligned(inner(), aligner=Identity()), Aligned(inner(), spec=Local(name).spec, aligner=Identity())):
        wrapped = Local(name, noise=0.1).run(strategy)
        assert list(wrapped) == list(plain)
        assert all((wrapped[key].numpy() == plain[key].numpy().astype(wrapped[key].dtype)).all() for key in plain)
    assert lines() == []


def test_a_part_under_other_names_is_the_same_part(lines):
    clients = Local("body")
    names = {key: f"module._orig_mod.{key}" for key in clients.start()}
    spec = clients.spec
    strategy = FedRebasin(FedAvg(), spec=spec)
    renamed = ArrayRecord({names[key]: array for key, array in clients.start().items()})
    grid = InlineGrid(ClientApp(), CLIENTS)
    list(strategy.configure_train(1, renamed, ConfigRecord(), grid))
    assert set(strategy.spec.shapes) == set(names.values())
    assert [name for name, group in strategy.spec.groups.items() if group.frozen] == ["2"]
    assert len(lines()) == 1


START = Local("body").start().to_torch_state_dict()
NO_PARTS = {
    "with 'net.' before them": {f"net.{key}": tensor for key, tensor in START.items()},
    r"new.weight: shape \(12, 6\) is not in the spec": {**START, "new.weight": START["0.weight"]},
    r"2.weight: shape \(10, 11\) where the spec has \(10, 12\)": {**START, "2.weight": torch.zeros(10, 11)},
}


@pytest.mark.parametrize("error", NO_PARTS)
def test_what_the_spec_does_not_know_is_no_part_of_it(error):
    strategy = FedRebasin(FedAvg(), spec=SPECS["mlp"])
    with pytest.raises(SpecError, match=error):
        Local("body").run(strategy, start=ArrayRecord(NO_PARTS[error]))


def test_of_positions_it_cannot_be_told_which_part_they_are():
    clients = Local("body")
    numbered = ArrayRecord([array.numpy() for array in clients.start().values()])
    with pytest.raises(SpecError, match=r"4 arrays with positions.* 6 keys.* give spec.restrict\(keys\)"):
        clients.run(FedRebasin(FedAvg(), spec=clients.spec), start=numbered)
    positions = clients.spec.rename({key: str(at) for at, key in enumerate(clients.spec.shapes)})
    with pytest.raises(SpecError, match="cannot be told"):
        clients.run(FedRebasin(FedAvg(), spec=positions), start=numbered)
    strategy = FedRebasin(FedAvg(), spec=clients.spec.restrict(clients.start()))
    list(strategy.configure_train(1, numbered, ConfigRecord(), InlineGrid(ClientApp(), CLIENTS)))
    assert list(strategy.spec.shapes) == ["0", "1", "2", "3"]


def test_a_reply_restricts_nothing():
    clients, app = Local("body", noise=0.01), ClientApp()

    @app.train()
    def train(message, context):
        clients.sent = PARTS["body"][1] if context.node_id == 1 else clients.state.__contains__
        return clients.train(message, context)

    strategy = FedRebasin(FedAvg(), spec=clients.spec)
    result = strategy.start(InlineGrid(app, CLIENTS), ArrayRecord(clients.state), num_rounds=2)
    assert set(result.arrays) == set(strategy.spec.shapes) == set(clients.spec.shapes)
    assert not any(group.frozen for group in strategy.spec.groups.values())
    assert [result.train_metrics_clientapp[number]["rebasin-replies-set-aside"] for number in (1, 2)] == [1, 1]


def test_a_later_model_of_fewer_arrays_is_refused():
    """What the inner strategy makes of replies is no part that the app has chosen."""
    clients, grid = Local("body"), InlineGrid(ClientApp(), CLIENTS)
    strategy = FedRebasin(FedAvg(), spec=clients.spec)
    list(strategy.configure_train(1, ArrayRecord(clients.state), ConfigRecord(), grid))
    with pytest.raises(SpecError, match=r"4\.weight: missing from the state dict"):
        list(strategy.configure_train(2, clients.start(), ConfigRecord(), grid))


@pytest.mark.parametrize(
    "parts",
    [
        {"calibrators": [BatchNormRecalibration()]},
        {"calibrators": [TemperatureCalibration()]},
        {"calibrators": [HeadRegression(KINDS["mlp"], INPUTS)]},
        {"probes": [AlignmentProbe(), BarrierProbe()]},
    ],
)
def test_what_runs_the_whole_model_is_refused_before_the_first_round(parts):
    clients = Local("body")
    name = type(next(iter(parts.values()))[-1]).__name__
    with pytest.raises(RebasinError, match=rf"{name} runs the whole model, and 4.weight and 1 more .* leave it out"):
        clients.run(Aligned(FedAvg(), spec=clients.spec, **parts))
    assert clients.run(Aligned(FedAvg(), spec=clients.spec, probes=[AlignmentProbe()]))


def test_counters_that_are_not_sent_keep_nobody_from_running_the_model():
    model = KINDS["batch norm"]
    clients = Local("no norm")
    start = ArrayRecord({key: tensor for key, tensor in clients.state.items() if "num" not in key})
    clients.sent = start.__contains__
    data = [(INPUTS, torch.zeros(20, dtype=torch.int64))]
    calibrators = [BatchNormRecalibration(model, data)]
    strategy = Aligned(FedAvg(), spec=clients.spec, calibrators=calibrators)
    assert set(clients.run(strategy, start=start)) == set(start)


def test_a_run_of_a_part_goes_on_from_its_checkpoint(tmp_path):
    def strategy(folder, resume=False):
        spec = SPECS["mlp"]
        return Aligned(FedAvg(), spec=spec, frame="client", checkpoint=tmp_path / folder, resume=resume)

    clients = Local("body", noise=0.01)
    expected = clients.run(strategy("whole"), rounds=3)
    clients.run(strategy("broken"), rounds=1)
    errors = len(clients.errors)
    actual = clients.run(strategy("broken", resume=True), rounds=3)
    assert max(clients.errors[errors:]) < 0.1
    assert all((actual[key].numpy() == expected[key].numpy()).all() for key in expected)


def test_streaming_aligns_a_part_too():
    clients = Local("body")
    clients.run(Aligned(FedAvg(), spec=clients.spec, aligner=AlignTo(reference="auto"), frame="client", streaming=True))
    assert max(clients.errors) < 1e-5


def test_on_the_client_the_part_is_said_by_the_spec():
    clients = Local("body", SPECS["mlp"].freeze(["2"]))
    received = clients.part(clients.state)
    moved = Permutation.random(clients.free, torch.Generator().manual_seed(1)).apply(clients.state)
    InlineGrid(ClientApp(), 1)
    message = Message(RecordDict({"arrays": ArrayRecord(received)}), 1, "train")

    def call_next(message, context):
        return Message(RecordDict({"arrays": ArrayRecord(clients.part(moved))}), reply_to=message)

    answer = AlignMod(clients.spec.restrict(received))(message, None, call_next)
    assert all((answer.content["arrays"][key].numpy() == received[key].numpy()).all() for key in received)
    with pytest.raises(RecordError, match=r"AlignMod\(spec.restrict\(keys\)\)"):
        AlignMod(clients.spec)(message, None, call_next)


def test_a_part_under_keys_of_its_own_is_renamed_by_hand():
    """As in FedPer's ``model.body.state_dict()``: what is missing cannot be told from what has another name."""
    model = nn.Sequential()
    model.body, model.head = KINDS["mlp"][:4], KINDS["mlp"][4]
    whole = PermutationSpec.trace(model, INPUTS)
    body = model.body.state_dict()
    keys = [key for key in whole.shapes if key.startswith("body.")]
    with pytest.raises(SpecError, match=r"without 'body\.' before them \(spec\.rename"):
        whole.bind(body)
    spec = whole.restrict(keys).rename({key: key.removeprefix("body.") for key in keys}).bind(body)
    assert set(spec.shapes) == set(body)
    moved = Permutation.random(spec, torch.Generator().manual_seed(1)).apply(body)
    assert not torch.equal(moved["0.weight"], body["0.weight"])
    assert torch.allclose(functional_call(model.body, moved, (INPUTS,)), model.body(INPUTS), atol=1e-6)
    grid = InlineGrid(answering([body, moved]), 2)
    options = {"min_train_nodes": 2, "min_available_nodes": 2, "fraction_evaluate": 0.0}
    found = FedRebasin(FedAvg(**options), spec=spec).start(grid, ArrayRecord(body), num_rounds=1)
    mean = found.arrays.to_torch_state_dict()
    assert torch.allclose(functional_call(model.body, mean, (INPUTS,)), model.body(INPUTS), atol=1e-6)


def answering(states):
    app = ClientApp()

    @app.train()
    def train(message, context):
        content = {
            "arrays": ArrayRecord(states[context.node_config["partition-id"]]),
            "metrics": MetricRecord({"num-examples": 1}),
        }
        return Message(RecordDict(content), reply_to=message)

    return app
