"""A spec that leaves much in place says so where it is used: models would be averaged out of step in silence."""

import logging
import warnings

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from safetensors.torch import save_file
from torch import nn

from fedrebasin import AlignTo, CoverageWarning, CycleConsistent, Identity, MergeMany, PermutationSpec
from fedrebasin.cli import main
from fedrebasin.models import MLP
from fedrebasin.simulations import InlineGrid
from fedrebasin.spec import coverage_gaps
from fedrebasin.strategies import Aligned


class Autoencoder(nn.Module):
    """As Lightning's first example: ``forward`` is the encoder, and training calls both parts."""

    def __init__(self, hidden=16):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(28, 16), nn.ReLU(), nn.Linear(16, 3))
        self.decoder = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 28))

    def forward(self, inputs):
        return self.encoder(inputs)


def autoencoder():
    return Autoencoder()


def linear():
    return nn.Linear(28, 3)


def mlp():
    return MLP(28, width=12, depth=2)


UNREAD = "decoder.0.weight and 3 more: the model does not read it"
MODELS = {
    "autoencoder": (autoencoder, UNREAD),
    "a small decoder": (lambda: Autoencoder(2), UNREAD),
    "no group": (linear, "the spec has no group to move, and all else is averaged in each model's own order: weight"),
    "mlp": (mlp, ""),
}


def traced(name):
    make, sentence = MODELS[name]
    model = make()
    return model, PermutationSpec.trace(model, torch.randn(2, 28)), sentence


@pytest.mark.parametrize("name", MODELS)
def test_what_is_left_in_place_is_said_with_its_reason(name):
    _, spec, sentence = traced(name)
    found = coverage_gaps(spec)
    assert sentence in found
    assert bool(found) == bool(sentence)
    assert "\n" not in found


def test_specs_by_hand_and_frozen_groups_count_as_well():
    axes = {
        "0.weight": ("P", None),
        "0.bias": ("P",),
        "2.weight": ("Q", "P"),
        "2.bias": ("Q",),
        "4.weight": (None, "Q"),
    }
    assert coverage_gaps(PermutationSpec.from_axes(axes)) == ""  # no sizes yet
    like = {key: torch.zeros(shape) for key, shape in zip(axes, [(9, 4), (9,), (9, 9), (9,), (2, 9)], strict=True)}
    spec = PermutationSpec.from_axes(axes, like)
    assert coverage_gaps(spec) == ""
    assert coverage_gaps(spec.freeze(["P"])) == ""
    assert "has no group to move" in coverage_gaps(spec.freeze(["P", "Q"]))
    half = {**axes, "2.weight": (None, "P"), "2.bias": (None,), "4.weight": (None, None)}
    wide = {**like, "4.weight": torch.zeros(99, 9)}
    assert coverage_gaps(PermutationSpec.from_axes(half, wide)).startswith("the spec's 1 group move 12% of")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("aligner", [AlignTo(), AlignTo(reference=0), MergeMany(), CycleConsistent(), Identity()])
def test_aligners_warn(name, aligner):
    model, spec, sentence = traced(name)
    states = [model.state_dict(), traced(name)[0].state_dict()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        aligner(spec, states)
    found = [str(one.message) for one in caught if issubclass(one.category, CoverageWarning)]
    assert len(found) == (bool(sentence) and not isinstance(aligner, Identity))
    assert all(sentence in one for one in found)


@pytest.mark.parametrize("name", MODELS)
def test_a_strategy_logs_it_once_a_run(name, caplog):
    model, spec, sentence = traced(name)
    logging.getLogger("flwr").propagate = True
    Aligned(spec=spec).start(InlineGrid(ClientApp(), 2), ArrayRecord(model.state_dict()), num_rounds=0)
    found = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    found = [one for one in found if one.startswith("Aligned: ")]
    assert len(found) == bool(sentence)
    assert all(sentence in one for one in found)


@pytest.mark.parametrize("method", ["weight-matching", "merge-many", "average"])
@pytest.mark.parametrize("name", ["autoencoder", "linear", "mlp"])
def test_the_command_says_it_and_merges(tmp_path, monkeypatch, capfd, name, method):
    monkeypatch.chdir(tmp_path)
    for file in "ab":
        save_file(globals()[name]().state_dict(), f"{file}.safetensors")
    model = ["--model", f"tests.test_coverage:{name}", "--input", "2,28", "--method", method]
    assert main(["merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors", *model]) == 0
    said = capfd.readouterr().err
    assert said.count("warning: ") == (name != "mlp" and method != "average")
    assert "CoverageWarning" not in said
