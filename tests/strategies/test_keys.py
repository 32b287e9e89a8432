"""Apps whose arrays are called otherwise than the spec's: positions, prefixes, wrappers."""

import pytest
import torch
from fedrebasin.strategies.replies import RecordError, Template
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedrebasin import Permutation, PermutationSpec, SpecError
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned, AlignMod
from tests.strategies.helpers import AXES, make_state

CLIENTS = 4
START = make_state(0, width=12, integers=False)
SPEC = PermutationSpec.from_axes(AXES)
KEYS = {
    "positions": {key: str(index) for index, key in enumerate(START)},
    "compiled": {key: f"module._orig_mod.{key}" for key in START},
    "lightning": {key: f"model.{key}" for key in START},
}


def app(names, mods=()):
    """Clients that send a permuted copy of the start."""
    clients = ClientApp(mods=list(mods))

    @clients.train()
    def train(message, context):
        generator = torch.Generator().manual_seed(context.node_id)
        moved = Permutation.random(SPEC.bind(START), generator).apply(START)
        content = {
            "arrays": ArrayRecord({names[key]: tensor for key, tensor in moved.items()}),
            "metrics": MetricRecord({"num-examples": 1}),
        }
        return Message(RecordDict(content), reply_to=message)

    return clients


def mean(strategy, names, mods=()):
    start = ArrayRecord({names[key]: tensor for key, tensor in START.items()})
    found = strategy.start(InlineGrid(app(names, mods), CLIENTS), start, num_rounds=1).arrays.to_torch_state_dict()
    return {key: found[names[key]] for key in START}


def is_copy(state):
    """Whether it is the start, in whichever order of its units."""
    return all(torch.allclose(state[key].flatten().sort()[0], START[key].flatten().sort()[0]) for key in START)


@pytest.mark.parametrize("names", KEYS.values(), ids=KEYS)
def test_copies_are_aligned_under_any_names(names):
    assert is_copy(mean(Aligned(FedAvg(), spec=SPEC), names))
    assert is_copy(mean(FedAvg(), names, [AlignMod(SPEC)]))
    assert not is_copy(mean(FedAvg(), names))


def test_names_of_another_model_are_refused_with_the_likely_rename():
    with pytest.raises(SpecError, match=r"with 'net.' before them"):
        mean(Aligned(FedAvg(), spec=SPEC), {key: f"net.{key}" for key in START})


def test_a_reply_under_other_names_says_which():
    template = Template.of(ArrayRecord(dict(START)))
    with pytest.raises(RecordError, match=r"is likely '.*' under another name"):
        template.decode(ArrayRecord({KEYS["compiled"][key]: tensor for key, tensor in START.items()}))
