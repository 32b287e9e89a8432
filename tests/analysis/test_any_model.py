"""The measures on the papers' architectures, on attention, and on a GPU where there is one."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fedrebasin import Permutation, PermutationSpec, WeightMatching, evaluate
from fedrebasin.analysis import (
    activation_spectra,
    active_overlap,
    apply_mask,
    commutativity,
    commutativity_objective,
    dense_mask,
    feature_connectivity,
    layers_of,
    partial_permutations,
    prune_smallest,
    reciprocal_orthogonality,
    stitching,
    transport_mask,
    unit_activity,
    weak_additivity,
    weight_spectra,
)
from fedrebasin.models import make_model

from .nets import Positioned, Twice


class Recurrent(nn.Module):
    """Its layer gives a tuple of a tensor and a tuple."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 6, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        steps, (last, _) = self.lstm(x)
        return self.head(torch.tanh(steps.mean(1) + last[-1]))


def normed(*modules):
    return nn.Sequential(*(weight_norm(module) if isinstance(module, nn.Linear) else module for module in modules))


MODELS = {
    "mlp": (lambda: make_model("mlp", (1, 8, 8), 4, 8, seed=0), (1, 8, 8)),
    "vgg11-bn": (lambda: make_model("vgg11-bn", (1, 8, 8), 4, 0.05, seed=0), (1, 8, 8)),
    "resnet20": (lambda: make_model("resnet20", (1, 8, 8), 4, 0.125, seed=0), (1, 8, 8)),
    "resnet20-bn": (lambda: make_model("resnet20-bn", (1, 8, 8), 4, 0.125, seed=0), (1, 8, 8)),
    "attention": (Positioned, (5, 3)),
    "recurrent": (Recurrent, (5, 3)),
    "a layer that runs twice": (Twice, (5,)),
    "weight norm": (lambda: normed(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)), (5,)),
}


def setting(name, device="cpu"):
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build().to(device)
    generator = torch.Generator().manual_seed(1)
    a = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    b = {
        key: tensor + 0.1 * torch.randn(tensor.shape, generator=generator).abs().to(tensor)
        if tensor.is_floating_point()
        else tensor
        for key, tensor in a.items()
    }
    batches = [(torch.randn(6, *shape, generator=generator), torch.arange(6) % 3) for _ in range(2)]
    return model, a, b, batches


def measures(model, a, b, batches):
    return [
        feature_connectivity(model, a, b, batches, [0.3]),
        feature_connectivity(model, a, b, batches, law="exponential", where="before"),
        commutativity(model, a, b, batches),
        reciprocal_orthogonality(model, a, b, batches),
        weak_additivity(model, a, b, batches),
        active_overlap(model, a, b, batches),
        unit_activity(model, a, batches),
        tuple(weight_spectra(model, a).items()),
        tuple(activation_spectra(model, a, batches).items()),
        tuple(stitching(model, a, b, batches).items()),
    ]


class Failing(nn.Module):
    """Goes well a few times, and then raises in the midst of the model."""

    def __init__(self, inner, runs):
        super().__init__()
        self.inner, self.runs = inner, runs
        self.inner.head.register_forward_pre_hook(self.fail)

    def fail(self, *_):
        self.runs -= 1
        if self.runs < 0:
            raise ValueError("no more")

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("name", MODELS)
def test_every_measure_runs_and_leaves_no_trace(name):
    model, a, b, batches = setting(name)
    model.train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    found = measures(model, a, b, batches)
    assert all(found)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())
    for layer in found[0]:
        assert -1 <= layer.cosine.mean <= 1
        assert layer.norm.mean > 0


@pytest.mark.parametrize("runs", range(1, 56, 3))
def test_an_error_in_the_midst_leaves_no_trace(runs):
    inner, _, _, batches = setting("a layer that runs twice")
    model = Failing(inner, runs).train()
    a, b = ({key: tensor + shift for key, tensor in model.state_dict().items()} for shift in (0.0, 0.1))
    with pytest.raises(ValueError, match="no more"):
        measures(model, a, b, batches)
    assert not any(module._forward_hooks for module in model.modules())
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == 1  # the model's own
    assert all(module.training for module in model.modules())
    inputs = batches[0][0]
    model.runs = 1
    torch.testing.assert_close(model(inputs), torch.func.functional_call(Twice(), inner.state_dict(), (inputs,)))


@pytest.mark.parametrize("name", ["mlp", "vgg11-bn", "resnet20"])
def test_an_aligned_copy_agrees_in_every_layer(name):
    model, a, _, batches = setting(name)
    shape = batches[0][0].shape[1:]
    spec = PermutationSpec.trace(model.eval(), torch.zeros(2, *shape))
    assert layers_of(model, spec)
    copy = Permutation.random(spec, torch.Generator().manual_seed(3)).apply(a)
    aligned = WeightMatching()(spec, reference=a, candidate=copy).apply(copy)
    own, after = (feature_connectivity(model, a, state, batches) for state in (copy, aligned))
    assert min(layer.baseline.mean for layer in after) == pytest.approx(1, abs=1e-5)
    assert min(layer.baseline.mean for layer in own) < 0.99


@pytest.mark.parametrize("name", MODELS)
def test_stitching_onto_oneself_changes_nothing(name):
    model, a, b, batches = setting(name)
    own, other = evaluate(model, a, batches), evaluate(model, b, batches)
    found = stitching(model, a, a, batches)
    assert all(score.loss == pytest.approx(own.loss, rel=1e-4) for score in found.values())
    last = list(stitching(model, b, a, batches).values())[-1]
    assert last.loss == pytest.approx(other.loss, rel=1e-4)


def test_each_run_of_a_layer_is_stitched_by_itself():
    model, a, b, batches = setting("a layer that runs twice")
    found = stitching(model, a, b, batches)
    assert list(found) == ["inner", "inner#2", "head"]
    inputs, labels = (torch.cat(part) for part in zip(*batches, strict=True))

    def layer(state, name, z):
        return z @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    first = torch.relu(layer(a, "inner", inputs))
    for name, second in {"inner": torch.relu(layer(b, "inner", first)), "inner#2": layer(a, "inner", first)}.items():
        logits = layer(b, "head", torch.relu(second))
        assert found[name].loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)


def test_a_norm_that_is_named_lies_below_the_cut():
    model, a, b, batches = setting("vgg11-bn")
    norm = {**a, **{key: tensor for key, tensor in b.items() if key.startswith("features.1.")}}
    # all but the norm is A's: the score is B's norm's below the cut behind it, and A's below that before it
    assert stitching(model, a, norm, batches, ["features.1"])["features.1"].loss == pytest.approx(
        evaluate(model, a, batches).loss, rel=1e-4
    )
    assert stitching(model, a, norm, batches, ["features.0"])["features.0"].loss == pytest.approx(
        evaluate(model, norm, batches).loss, rel=1e-4
    )


def test_weights_that_are_computed_are_measured_as_those_they_come_to():
    model, a, b, batches = setting("weight norm")
    plain = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))

    def written_out(state):
        found = {}
        for layer in ("0", "2"):
            g, v = (state[f"{layer}.parametrizations.weight.original{k}"] for k in (0, 1))
            found |= {f"{layer}.weight": g * v / v.norm(dim=1, keepdim=True), f"{layer}.bias": state[f"{layer}.bias"]}
        return found

    at = written_out(a), written_out(b)
    for one, other in zip(commutativity(model, a, b, batches), commutativity(plain, *at, batches), strict=True):
        assert one.layer == other.layer
        assert vars(one) == {"layer": one.layer} | {
            key: pytest.approx(value, rel=1e-4, abs=1e-9) for key, value in vars(other).items() if key != "layer"
        }
    ours, plainly = weight_spectra(model, a), weight_spectra(plain, at[0])
    assert list(ours) == list(plainly) == ["0.weight", "2.weight"]
    for key in ours:
        torch.testing.assert_close(ours[key].values, plainly[key].values, rtol=1e-4, atol=1e-6)
    assert weight_spectra(model, {"0.bias": a["0.bias"]}, ["0"]) == {}


def test_the_weight_of_a_layer_that_runs_twice_counts_once():
    model, a, b, batches = setting("a layer that runs twice")
    expected = sum(float((a[key] - b[key]).double().square().sum()) for key in ("inner.weight", "head.weight"))
    assert commutativity_objective(model, a, b, batches).weights == pytest.approx(expected)


@pytest.mark.parametrize("name", ["attention", "resnet20-bn"])
def test_masks_and_partial_permutations_on_any_model(name):
    model, a, _, batches = setting(name)
    spec = PermutationSpec.trace(model.eval(), torch.zeros(2, *batches[0][0].shape[1:]))
    permutation = Permutation.random(spec, torch.Generator().manual_seed(3))
    mask = prune_smallest(a, dense_mask(a), 0.6)
    moved = transport_mask(permutation, mask, a)
    left, right = apply_mask(permutation.apply(a), moved), permutation.apply(apply_mask(a, mask))
    assert all(torch.equal(left[key], right[key]) for key in left)
    # pruning commutes with permuting: magnitudes do not know places
    assert all(
        torch.equal(moved[key], tensor)
        for key, tensor in prune_smallest(permutation.apply(a), dense_mask(a), 0.6).items()
    )
    own = evaluate(model, a, batches).loss
    for order in ("bottom-up", "top-down", "put-in", "leave-out"):
        for _, part in partial_permutations(permutation, order):
            assert evaluate(model, part.apply(a), batches).loss == pytest.approx(own, rel=1e-4)


def test_whole_blocks_of_a_residual_net_can_be_stitched():
    model, a, b, batches = setting("resnet20")
    blocks = [f"blocks.{k}" for k in range(9)]
    found = stitching(model, a, b, batches, blocks)
    assert list(found) == blocks
    assert all(score.labels == 12 for score in found.values())


@pytest.mark.cuda
@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_gives_the_same_numbers(name):
    on_cpu = measures(*setting(name))[0]
    model, a, b, batches = setting(name, "cuda")
    for cpu, gpu in zip(on_cpu, measures(model, a, b, batches)[0], strict=True):
        assert gpu.cosine.mean == pytest.approx(cpu.cosine.mean, abs=1e-3)
