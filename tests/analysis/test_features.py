"""Recording layers and activations: names, order, and no trace left behind."""

import pytest
import torch
from torch import nn

from fedrebasin import CalibrationError
from fedrebasin.analysis import (
    activation_spectra,
    feature_connectivity,
    layer_features,
    layers_of,
    record_activations,
    record_layers,
    unit_activity,
    weight_spectra,
)
from fedrebasin.models import MLP

from .nets import Positioned, Twice, make_batches, make_cnn, make_mlp, make_spec, random_state


def test_layers_come_in_order_of_execution_with_what_they_read_and_make():
    model = make_mlp()
    state = random_state(model, 0)
    (batch,) = make_batches(count=1)
    record = record_layers(model, state, batch, layers_of(model))
    assert list(record) == ["0", "2", "4"]
    torch.testing.assert_close(record["0"].inputs, batch[0])
    torch.testing.assert_close(record["2"].inputs, torch.relu(record["0"].outputs))
    after, before = layer_features(record), layer_features(record, "before")
    torch.testing.assert_close(after["0"], torch.relu(before["0"]))
    torch.testing.assert_close(after["4"], before["4"])


def test_an_activation_in_place_does_not_change_what_was_recorded():
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)).double()
    (batch,) = make_batches(count=1)
    record = record_layers(model, model.state_dict(), batch, layers_of(model))
    assert (record["0"].outputs < 0).any()


def test_hooks_are_gone_even_after_an_error():
    model = make_mlp()
    state = random_state(model, 0)
    with pytest.raises(CalibrationError, match="cannot be run on inputs of shape"):
        record_layers(model, state, torch.zeros(2, 99, dtype=torch.float64), layers_of(model))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_that_runs_twice_is_recorded_twice():
    model = Twice().double()
    record = record_layers(model, model.state_dict(), make_batches(count=1)[0], layers_of(model))
    assert list(record) == ["inner", "inner#2", "head"]
    torch.testing.assert_close(record["inner#2"].inputs, torch.relu(record["inner"].outputs))


def test_a_module_that_holds_layers_is_none_whatever_it_owns():
    model = Positioned().double().eval()
    layers = layers_of(model)
    assert layers == ("embed", "block.self_attn", "block.self_attn.out_proj", "block.linear1", "block.linear2", "head")
    batch = torch.ones(2, 5, 3, dtype=torch.float64)
    record = record_layers(model, model.state_dict(), batch, layers)
    assert list(record) == ["embed", "block.self_attn", "block.linear1", "block.linear2", "head"]
    with torch.no_grad():
        torch.testing.assert_close(layer_features(record)["head"], model(batch))
    assert "positions" not in weight_spectra(model, model.state_dict())


@pytest.mark.parametrize(
    ("function", "module"),
    [
        (nn.functional.hardswish, nn.Hardswish()),
        (nn.functional.mish, nn.Mish(inplace=True)),
        (nn.functional.leaky_relu, nn.LeakyReLU(0.3)),
        (torch.selu, nn.SELU(inplace=True)),
        (torch.Tensor.tanh_, nn.Hardtanh()),
    ],
)
def test_activations_of_many_kinds_are_found(function, module):
    class Net(nn.Sequential):
        def forward(self, x):
            return self[2](self[1](function(self[0](x))))

    model = Net(nn.Linear(5, 4), module, nn.Linear(4, 3)).double()
    (batch,) = make_batches(count=1)
    found = record_activations(model, model.state_dict(), batch)
    assert list(found) == ["activation1", "activation2"]
    first, second = found.values()
    torch.testing.assert_close(first.function(first.inputs.clone()), second.inputs)
    torch.testing.assert_close(second.function(second.inputs.clone()), module(second.inputs.clone()))


class LastChannels(nn.Module):
    """A convolution, and a Linear on images whose channels come last."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.dense = nn.Linear(3, 4)

    def forward(self, x):
        return torch.relu(self.dense(torch.relu(self.conv(x)).movedim(1, -1)))


@pytest.mark.parametrize(
    ("model", "shape", "units", "read"),
    [
        (nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU()), (2, 6), [3], [2]),
        (nn.Sequential(nn.Conv3d(2, 3, 1), nn.ReLU()), (2, 4, 5, 6), [3], [2]),
        (nn.Sequential(nn.Linear(6, 3), nn.ReLU()), (5, 6), [3], [6]),
        (LastChannels(), (2, 5, 6), [3, 4], [2, 3]),
    ],
)
def test_units_are_channels_wherever_they_stand(model, shape, units, read):
    model = model.double()
    state = model.state_dict()
    batch = torch.randn(7, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert [len(found.active) for found in unit_activity(model, state, [batch])] == units
    spectra = activation_spectra(model, state, [batch])
    assert [len(found.values) for found in spectra.values()] == read
    rows = batch if isinstance(model[0] if len(units) == 1 else model.conv, nn.Linear) else batch.movedim(1, -1)
    torch.testing.assert_close(next(iter(spectra.values())).values, torch.linalg.svdvals(rows.reshape(-1, read[0])))


def test_activations_are_found_where_they_are_called():
    functions = MLP(5, width=6, depth=2, classes=3).double()
    modules = make_cnn().double()
    assert len(record_activations(functions, functions.state_dict(), make_batches(count=1)[0])) == 2
    found = record_activations(modules.eval(), modules.state_dict(), make_batches(shape=(1, 4, 4), count=1)[0])
    assert [tuple(activation.by_unit.shape) for activation in found.values()] == [(7 * 16, 4), (7 * 16, 4)]


def test_a_spec_chooses_the_layers():
    model = make_mlp()
    spec = make_spec(model.state_dict())
    assert layers_of(model, spec) == ("0", "2", "4")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers_of(nn.ReLU()), "no module with a weight"),
        (lambda: record_layers(make_mlp(), {}, torch.zeros(1, 5), ["nowhere"]), "no module 'nowhere'"),
        (lambda: layer_features({}, "during"), "neither 'after' nor 'before'"),
    ],
)
def test_errors_are_one_line(call, message):
    with pytest.raises(CalibrationError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_mode_is_restored_while_an_error_is_still_held():
    model = make_mlp().train()
    with pytest.raises(CalibrationError) as caught:
        feature_connectivity(model, *[random_state(model, 0)] * 2, [torch.zeros(2, 99, dtype=torch.float64)])
    assert caught.value is not None
    assert all(module.training for module in model.modules())
