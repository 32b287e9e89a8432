"""trace as a whole: numbers on paper, every trap at once, what is reported, what stays untouched."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from fedrebasin import Permutation, PermutationSpec, TraceError
from fedrebasin.models import ResNet20
from fedrebasin.tracing import register_rule, trace
from tests.tracing.nets import NETS, Apply, Tied, members, mlp
from tests.tracing.oracle import example, outputs, random_model


def test_mlp_of_the_paper() -> None:
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()]
    spec = trace(nn.Sequential(*layers, nn.Linear(512, 10)), torch.zeros(1, 784))
    assert spec.log10_symmetries == pytest.approx(3499.6, abs=0.05)
    assert spec.coverage == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(("name", "groups", "log10"), [("vgg16", 15, 35168.5), ("resnet50", 37, 25638.3)])
def test_torchvision_nets_of_the_paper(name: str, groups: int, log10: float) -> None:
    with torch.device("meta"):
        model, x = torchvision.models.get_model(name).eval(), torch.empty(1, 3, 64, 64)
    spec = trace(model, x)
    assert len(spec.groups) == groups
    assert spec.log10_symmetries == pytest.approx(log10, abs=0.05)
    assert not spec.checked


def test_resnet20_of_the_paper() -> None:
    with torch.device("meta"):
        spec = trace(ResNet20().eval(), torch.empty(1, 3, 32, 32))
    assert len(spec.groups) == 12
    assert spec.coverage == pytest.approx(1.0, abs=1e-3)


def test_vision_transformer_on_paper() -> None:
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(768, 12, 3072, batch_first=True)
        model, x = nn.Sequential(layer, nn.Linear(768, 10)).eval(), torch.empty(1, 4, 768)
    spec = trace(model, x)
    names = [name.removeprefix("0.self_attn.in_proj_weight") for name in spec.groups if "attn" in name]
    assert names == ["", ":units", ":units/2"]
    attention = [spec.shape(name) for name in spec.groups if "attn" in name]
    assert sorted(attention) == [(12,), (12, 64), (12, 64)]
    assert members(*attention) == pytest.approx(2147, abs=0.5)


class AllTraps(nn.Module):
    """Every trap at once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.group_norm = nn.GroupNorm(4, 8)
        self.grow = nn.Conv2d(8, 4, 1)
        self.tokens = nn.Linear(12, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.position = nn.Parameter(torch.randn(16, 6))
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.auxiliary = nn.Linear(5, 2)
        self.unused = nn.Parameter(torch.randn(3, 4))
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(5, 2))
        self.register_buffer("table", torch.arange(5.0), persistent=False)
        self.register_buffer("steps", torch.zeros(3, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = functional.relu(self.norm(self.conv(x)))
        x = x + self.depthwise(x)
        x = self.group_norm(self.grouped(x))
        x = torch.cat((x, self.grow(x)), 1)
        x = functional.max_pool2d(x, 2).flatten(2).transpose(1, 2)
        x = self.tokens(x) + self.position
        x = x + self.attention(x, x, x)[0]
        x = self.lstm(x)[0][:, -1]
        if self.training:
            return self.head(x), self.auxiliary(x * self.table)
        return self.head(x)


def test_every_trap_at_once() -> None:
    torch.manual_seed(0)
    model, x = AllTraps().eval(), example((2, 2, 8, 8))
    spec = trace(model, x)
    assert spec.checked
    assert set(spec.shapes) == set(model.state_dict())
    assert spec.statistics == {"norm.running_mean", "norm.running_var"}
    reasons = {(row.key, row.dim): row.reason for row in spec.unpermuted}
    assert reasons["unused", 0] == "the model does not read it"
    assert "not in the state dict" in reasons["auxiliary.weight", 1]  # read in training only, and tied to a constant
    assert not [key for key in reasons if key[0].startswith("attention") and reasons[key] == "model output"]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    random = random_model(AllTraps())
    state = dict(random.state_dict())
    moved = Permutation.random(spec, torch.Generator().manual_seed(1)).apply(state)
    torch.testing.assert_close(outputs(random, moved, x.double()), outputs(random, state, x.double()))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_tied_tensors_move_under_both_keys() -> None:
    spec = trace(Tied(), torch.randint(7, (2, 3)))
    (group,) = spec.groups.values()
    assert {str(axis) for axis in group.axes} == {
        "embedding.weight[1]",
        "head.weight[1]",
        "body.weight[0]",
        "body.weight[1]",
        "body.bias[0]",
    }


def test_auxiliary_heads_tie_what_feeds_them() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.side = nn.Linear(3, 6), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            x = torch.relu(self.body(x))
            return (self.head(x), self.side(x)) if self.training else self.head(x)

    model = Auxiliary().eval()
    spec = trace(model, example((4, 3)))
    (group,) = spec.groups.values()
    assert "side.weight[1]" in {str(axis) for axis in group.axes}
    assert not model.training


@torch.library.custom_op("fedrebasin_tests::mystery", mutates_args=())
def mystery(x: Tensor) -> Tensor:
    return x * torch.arange(x.shape[-1])


@mystery.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fedrebasin_tests::harmless", mutates_args=())
def harmless(x: Tensor) -> Tensor:
    return x.clone()


@harmless.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_unknown_operator_is_reported_and_its_surroundings_stay() -> None:
    model = mlp(nn.ReLU(), nn.Linear(6, 6), Apply(mystery), nn.Linear(6, 4), after=4)
    spec = trace(model, example((4, 3)))
    assert [group.size for group in spec.groups.values()] == [6, 4]
    row = next(row for row in spec.unpermuted if (row.key, row.dim) == ("2.weight", 0))
    assert row.operator == "fedrebasin_tests.mystery.default"
    assert "no rule" in row.reason
    assert "fedrebasin_tests.mystery" in str(spec)


def test_users_teach_operators() -> None:
    @register_rule("fedrebasin_tests.harmless")
    def _rule(call, x):
        return x.axes

    assert len(trace(mlp(Apply(harmless)), example((4, 3))).groups) == 1


def test_inputs_as_tuple_and_dict() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 5), nn.Linear(2, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"out": self.head(self.a(x) + self.b(y))}

    x, y = example((4, 3)), example((4, 2))
    assert trace(Two(), (x, y)) == trace(Two(), {"x": x, "y": y})


def test_control_flow_on_data_says_what_to_do() -> None:
    with pytest.raises(TraceError, match=r"from_axes.*sub-module"):
        trace(mlp(Apply(lambda x: x if x.sum() > 0 else -x)), example((4, 3)))


def test_nothing_is_left_behind() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.Dropout(), nn.BatchNorm1d(6), nn.Linear(6, 2))
    model[1].eval()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    default = torch.get_default_dtype()
    trace(model, example((4, 3)))
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert torch.get_default_dtype() == default
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_fused_attention_is_read_through() -> None:
    net = NETS["encoder-layer"]
    model = net.make().eval().requires_grad_(False)
    with torch.no_grad():
        spec = trace(model, example(net.shape))
    assert spec.log10_symmetries == pytest.approx(net.log10)


def test_the_meta_device_allocates_nothing_and_checks_nothing() -> None:
    with torch.device("meta"):
        model, x = mlp(nn.Linear(10**6, 10**6), width=10**6), torch.empty(1, 3)
    spec = trace(model, x)
    assert spec.log10_symmetries == pytest.approx(2 * math.lgamma(10**6 + 1) / math.log(10))
    assert not spec.checked


def test_a_spec_reads_well_and_survives_json(tmp_path) -> None:
    net = NETS["grouped-query"]
    spec = trace(net.make(), example(net.shape))
    spec.save(tmp_path / "spec.json")
    assert PermutationSpec.load(tmp_path / "spec.json") == spec
    assert "(2)x(3)x4" in str(spec)


def test_what_a_forward_pass_caches_is_not_kept() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.scale = nn.Linear(3, 6), nn.Linear(6, 2), nn.Parameter(torch.ones(6))
            self.cache: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            if "scale" not in self.cache:
                self.cache["scale"] = self.scale * 2
            return self.head(self.body(x) * self.cache["scale"])

    model = Caching()
    assert [group.size for group in trace(model, example((4, 3))).groups.values()] == [6]
    assert not model.cache
