from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedrebasin import CalibrationError
from fedrebasin.watching import Product as AffineCall
from fedrebasin.watching import affine_matrix, affine_weights, head_weight, watch, with_affine_matrix
from tests.calibration.nets import AttentionNet, ConvNet, examples, mlp, random_state


class Bare(nn.Module):
    """Weights without a module, a bias that is added later on, and a tied embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.weight = nn.Parameter(torch.zeros(5, 6))
        self.mixer = nn.Conv1d(5, 4, 3, padding=1)
        self.volume = nn.Conv3d(1, 2, (1, 2, 2), groups=1)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = nn.functional.linear(self.embedding(tokens), self.weight)
        mixed = self.mixer(hidden.mT).mean(2)
        return self.volume(mixed.reshape(-1, 1, 1, 2, 2)).flatten(1)


CASES = {
    "conv": (ConvNet(), (2, 6, 6), ["conv1.weight", "conv2.weight", "hidden.weight", "head.weight"]),
    "mlp": (mlp(), (6,), ["0.weight", "2.weight", "4.weight"]),
    "attention": (
        AttentionNet(),
        (5, 8),
        [
            "encoder.self_attn.in_proj_weight",
            "encoder.self_attn.out_proj.weight",
            "encoder.linear1.weight",
            "encoder.linear2.weight",
            "attention.in_proj_weight",
            "attention.out_proj.weight",
            "head.weight",
        ],
    ),
}


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("name", CASES)
def test_features_times_the_weight_are_the_output(name: str, count: int) -> None:
    model, shape, weights = CASES[name]
    state = random_state(model, 1)
    inputs, _ = examples(shape, count, 2)
    seen: list[str] = []

    def check(call: AffineCall) -> None:
        seen.append(call.weight)
        matrix = affine_matrix(state, call.weight, call.number_of_blocks)[call.blocks.start : call.blocks.stop]
        features = torch.cat(list(call.features()), 1)[..., : matrix.shape[-1]]
        values = (features @ matrix.mT).movedim(0, 1).flatten(1)
        bias = 0 if call.has_bias else (matrix[:, :, -1].flatten() if call.weight.endswith("in_proj_weight") else 0)
        assert torch.allclose(values - bias, call.outputs, rtol=1e-9, atol=1e-9)
        assert torch.equal(call.like_output(call.outputs), call.output)

    watch(model.eval(), state, inputs, check)
    assert list(dict.fromkeys(seen)) == weights


def test_bare_weights_are_seen_and_tied_ones_are_not() -> None:
    model = Bare()
    state = random_state(model, 1)
    assert affine_weights(model, state, torch.randint(9, (3, 4))) == ("weight", "mixer.weight", "volume.weight")


def test_a_replaced_output_goes_on() -> None:
    model = mlp()
    state = random_state(model, 1)
    inputs, _ = examples((6,), 5, 2)

    def silence(call: AffineCall) -> Tensor | None:
        return torch.zeros_like(call.output) if call.weight == "2.weight" else None

    assert torch.allclose(watch(model, state, inputs, silence), state["4.bias"].expand(5, -1))


def test_the_fused_attention_is_switched_on_again() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    model = AttentionNet().eval()
    watch(model, random_state(model, 1), examples((5, 8), 2, 1)[0], lambda _: None)
    assert torch.backends.mha.get_fastpath_enabled() == before


@pytest.mark.parametrize("name", CASES)
def test_matrices_go_back_to_where_they_came_from(name: str) -> None:
    model, _, weights = CASES[name]
    state = random_state(model, 1)
    for weight in weights:
        again = with_affine_matrix(state, weight, affine_matrix(state, weight, 2))
        assert all(torch.equal(again[key], state[key]) for key in again)


@pytest.mark.parametrize("name", CASES)
def test_the_head_is_the_last_layer(name: str) -> None:
    model, shape, weights = CASES[name]
    # One example in training mode would be too few for BatchNorm: the mode does not matter.
    assert head_weight(model.train(), random_state(model, 1), examples(shape, 1, 1)[0]) == weights[-1]


def test_a_model_without_a_linear_end_has_no_head() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.raises(CalibrationError, match="does not end in a linear layer"):
        head_weight(model, random_state(model, 1), torch.randn(5, 3, dtype=torch.float64))
