"""The architectures: shapes, widths, and initialisations that depend on their seed alone."""

import pytest
import torch

from fedrebasin import RebasinError
from fedrebasin.models import MLP, MODELS, make_model


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_reads_every_image_size(name, shape):
    model = make_model(name, shape, classes=7, width=None if name == "mlp" else 0.125, seed=0)
    assert model(torch.zeros(2, *shape)).shape == (2, 7)


def test_a_seed_decides_the_initialisation_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, second, other = (make_model("mlp", (1, 8, 8), 10, width=16, seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_width_scales_every_hidden_size():
    assert [layer.out_features for layer in MLP(64, width=32, depth=3).layers] == [32, 32, 32, 10]
    convolution = make_model("resnet20", (3, 32, 32), 10, width=2.0).state_dict()["conv.weight"]
    assert convolution.shape == (32, 3, 3, 3)


@pytest.mark.parametrize(
    ("name", "width", "message"), [("mpl", None, "did you mean mlp"), ("mlp", -1, "must be positive")]
)
def test_wrong_names_and_widths_get_one_line(name, width, message):
    with pytest.raises(RebasinError, match=message) as caught:
        make_model(name, (1, 8, 8), 10, width=width)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_width_refuses_one(monkeypatch):
    monkeypatch.setitem(MODELS, "flat", lambda sample_shape, classes: torch.nn.Flatten())
    assert isinstance(make_model("flat", (1, 8, 8), 10), torch.nn.Flatten)
    with pytest.raises(RebasinError, match="width 2 of flat: this model has none"):
        make_model("flat", (1, 8, 8), 10, width=2)
