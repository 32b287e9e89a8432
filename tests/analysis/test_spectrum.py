"""Spectra of matrices that are known on paper."""

import pytest
import torch
from torch import nn

from fedrebasin.analysis import activation_spectra, singular_values, stable_rank, weight_spectra

from .nets import make_batches, make_cnn, make_mlp, random_state


@pytest.mark.parametrize("size", [1, 5, 32])
def test_a_random_orthogonal_weight_has_full_stable_rank(size):
    torch.manual_seed(size)
    weight = nn.init.orthogonal_(torch.empty(size, size))
    assert stable_rank(weight) == pytest.approx(size, rel=1e-5)


def test_rank_one_has_stable_rank_one_and_zero_has_none():
    generator = torch.Generator().manual_seed(0)
    column, row = torch.randn(6, 1, generator=generator), torch.randn(1, 4, generator=generator)
    assert stable_rank(column @ row) == pytest.approx(1)
    assert stable_rank(torch.zeros(3, 3)) == 0
    assert singular_values(torch.eye(4)).relative_rank == pytest.approx(1)


def test_activation_spectra_are_those_of_the_stacked_inputs():
    model = make_mlp()
    a = random_state(model, 0)
    batches = make_batches()
    inputs = torch.cat([batch[0] for batch in batches])
    found = activation_spectra(model, a, batches)
    torch.testing.assert_close(found["0"].values, torch.linalg.svdvals(inputs))
    hidden = torch.relu(inputs @ a["0.weight"].T + a["0.bias"])
    torch.testing.assert_close(found["2"].values, torch.linalg.svdvals(hidden), atol=1e-6, rtol=1e-6)


def test_only_weights_of_layers_have_a_spectrum():
    model = make_cnn()
    assert list(weight_spectra(model, random_state(model, 0))) == ["0.weight", "3.weight", "7.weight"]


def test_a_convolution_has_the_spectrum_of_its_filters_as_rows():
    model = make_cnn()
    state = random_state(model, 0)
    found = weight_spectra(model, state)
    rows = torch.stack([filters.flatten() for filters in state["3.weight"]])
    torch.testing.assert_close(found["3.weight"].values, torch.linalg.svdvals(rows))
    squares = found["3.weight"].values.square()
    assert found["3.weight"].stable_rank == pytest.approx(float(rows.square().sum() / squares.max()))
    assert found["3.weight"].relative_rank == pytest.approx(found["3.weight"].stable_rank / 4)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_projection_has_the_stable_rank_of_its_image(rank):
    basis = torch.linalg.qr(torch.randn(7, rank, generator=torch.Generator().manual_seed(rank)))[0]
    assert stable_rank(5 * basis @ basis.T) == pytest.approx(rank, rel=1e-5)
