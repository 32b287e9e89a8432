from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedrebasin import CalibrationError, Permutation, PermutationSpec, collect_sums
from fedrebasin.calibration import permute_moments
from fedrebasin.sums import GramMatrices, PreActivationMoments, permute_gram
from fedrebasin.watching import affine_weights
from tests.calibration.nets import AttentionNet, ConvNet, examples, mlp, random_state

NETS = {"conv": (ConvNet(), (2, 6, 6)), "attention": (AttentionNet(), (5, 8)), "mlp": (mlp(), (6,))}


def setting(name: str) -> tuple[nn.Module, dict[str, Tensor], Tensor, PermutationSpec]:
    model, shape = NETS[name]
    state = random_state(model, 1)
    inputs, _ = examples(shape, 20, 2)
    return model, state, inputs, PermutationSpec.trace(model, inputs[:2].float())


def test_linear_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    grams = GramMatrices().finish(collect_sums(GramMatrices(), model, model.state_dict(), [inputs]))
    assert grams["0.weight"].tolist() == [[[10, 14, 4], [14, 20, 6], [4, 6, 2]]]


def test_a_convolution_is_a_linear_layer_on_patches() -> None:
    model, state, inputs, _ = setting("conv")
    gram = GramMatrices().finish(collect_sums(GramMatrices(), model, state, [inputs]))["conv1.weight"]
    patches = nn.functional.unfold(inputs, 3, padding=1).mT.reshape(-1, 18)
    rows = torch.cat([patches, torch.ones_like(patches[:, :1])], 1)
    assert torch.allclose(gram[0], rows.T @ rows)


def test_cross_attention_has_one_matrix_for_each_input() -> None:
    model, state, inputs, _ = setting("attention")
    grams = GramMatrices().finish(collect_sums(GramMatrices(), model, state, [inputs]))
    packed = grams["attention.in_proj_weight"]
    assert packed.shape == (3, 9, 9)
    assert not torch.allclose(packed[0], packed[1])
    assert torch.equal(packed[1], packed[2])
    rows = torch.cat([inputs.flatten(0, 1), torch.ones(100, 1, dtype=torch.float64)], 1)
    assert torch.allclose(packed[1], rows.T @ rows)
    assert grams["encoder.self_attn.in_proj_weight"].shape == (1, 9, 9)


@pytest.mark.parametrize("limit", [None, 10])
@pytest.mark.parametrize("name", NETS)
def test_a_gram_matrix_permutes_with_its_group(name: str, limit: int | None) -> None:
    model, state, inputs, spec = setting(name)
    statistic = GramMatrices(limit)
    own = statistic.finish(collect_sums(statistic, model, state, [inputs]))
    for seed in range(3):
        permutation = Permutation.random(spec, torch.Generator().manual_seed(seed))
        moved = statistic.finish(collect_sums(statistic, model, permutation.apply(state), [inputs]))
        permuted = permute_gram(permutation, state, own)
        assert any(not torch.allclose(own[key], moved[key]) for key in own)
        for key in own:
            assert torch.allclose(permuted[key], moved[key], rtol=1e-8, atol=1e-8), key


@pytest.mark.parametrize("name", NETS)
def test_moments_permute_with_their_units(name: str) -> None:
    model, state, inputs, spec = setting(name)
    weights = tuple(key for key in affine_weights(model.eval(), state, inputs) if key != "attention.in_proj_weight")
    statistic = PreActivationMoments(weights)
    own = statistic.finish(collect_sums(statistic, model, state, [inputs]))
    permutation = Permutation.random(spec, torch.Generator().manual_seed(3))
    moved = statistic.finish(collect_sums(statistic, model, permutation.apply(state), [inputs]))
    permuted = permute_moments(permutation, state, own)
    for key in own:
        assert torch.allclose(permuted[key].mean, moved[key].mean, rtol=1e-8, atol=1e-8), key
        assert torch.allclose(permuted[key].variance, moved[key].variance, rtol=1e-8, atol=1e-8), key


def test_large_matrices_are_sent_as_diagonals() -> None:
    model, state, inputs, _ = setting("conv")
    whole, part = (collect_sums(GramMatrices(limit), model, state, [inputs]) for limit in (None, 30))
    assert part["hidden.weight.diagonal"].shape == (1, 109)
    assert torch.allclose(part["hidden.weight.diagonal"], whole["hidden.weight.gram"].diagonal(dim1=1, dim2=2))
    assert "hidden.weight.gram" not in part
    assert "head.weight.gram" in part


def test_single_precision_is_right_to_six_digits() -> None:
    model, state, inputs, _ = setting("conv")
    exact, fast = (
        collect_sums(GramMatrices(single_precision=single), model, state, [inputs]) for single in (False, True)
    )
    for key, tensor in exact.items():
        assert fast[key].dtype == torch.float64
        assert float((fast[key] - tensor).abs().max()) < 1e-5 * float(tensor.abs().max()), key
    GramMatrices().validate(fast)


def test_a_matrix_that_fits_no_weight_is_refused() -> None:
    _, state, _, spec = setting("mlp")
    for key, shape in (("0.weight", (1, 6, 6)), ("absent", (1, 7, 7))):
        with pytest.raises(CalibrationError, match=f"{key}: a Gram matrix of shape"):
            permute_gram(Permutation.identity(spec), state, {key: torch.zeros(shape)})
