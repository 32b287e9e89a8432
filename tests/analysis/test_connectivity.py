"""LLFC and LEWC on nets where the answer is known on paper."""

import pytest
import torch

from fedrebasin import CalibrationError, MergeError
from fedrebasin.analysis import feature_connectivity, lemma_1

from .nets import disjoint_pair, make_batches, make_cnn, make_linear, make_mlp, random_state


@pytest.mark.parametrize("where", ["after", "before"])
def test_a_model_agrees_with_itself_in_direction_and_length(where):
    model = make_mlp()
    a = random_state(model, 0)
    for layer in feature_connectivity(model, a, a, make_batches(), [0.3, 0.5], where=where):
        assert layer.cosine.mean == pytest.approx(1)
        assert layer.cosine.std == pytest.approx(0, abs=1e-7)
        assert layer.baseline.mean == pytest.approx(1)
        assert layer.coefficient.mean == pytest.approx(1)


@pytest.mark.parametrize("position", [0, 1])
def test_linear_nets_that_differ_in_one_layer_are_linearly_connected_exactly(position):
    model = make_linear((5, 6, 4))
    a, b = random_state(model, 0), random_state(model, 1)
    b = {key: tensor if key.startswith(str(position)) else a[key] for key, tensor in b.items()}
    for layer in feature_connectivity(model, a, b, make_batches(), [0.25, 0.5, 0.9]):
        assert layer.cosine.mean == pytest.approx(1)
        assert layer.coefficient.mean == pytest.approx(1)


def test_the_ends_of_the_path_are_exact_under_both_laws():
    model = make_mlp()
    a, b = random_state(model, 0), random_state(model, 1)
    for law in ("linear", "exponential"):
        for layer in feature_connectivity(model, a, b, make_batches(), [0.0, 1.0], law):
            assert layer.cosine.mean == pytest.approx(1)
            assert layer.coefficient.mean == pytest.approx(1)


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.8])
def test_disjoint_units_are_exponentially_connected_exactly(lam):
    model, a, b = disjoint_pair()
    batches = make_batches(shape=(4,))
    for layer in feature_connectivity(model, a, b, batches, [lam], "exponential"):
        assert layer.cosine.mean == pytest.approx(1)
        assert layer.coefficient.mean == pytest.approx(1)
    last = feature_connectivity(model, a, b, batches, [lam])[-1]
    assert last.coefficient.mean < 0.99


def test_at_the_middle_both_laws_have_the_same_cosines_and_lengths_two_to_the_depth_apart():
    model = make_mlp()
    a, b = random_state(model, 0), random_state(model, 1)
    linear, exponential = (
        feature_connectivity(model, a, b, make_batches(), [0.5], law) for law in ("linear", "exponential")
    )
    for one, other in zip(linear, exponential, strict=True):
        assert one.cosine.mean == pytest.approx(other.cosine.mean)
        assert other.coefficient.mean == pytest.approx(one.coefficient.mean * 2 ** (one.depth - 1))


def test_the_result_does_not_depend_on_how_the_data_are_batched():
    model = make_cnn()
    a, b = random_state(model, 0), random_state(model, 1)
    batches = make_batches(shape=(1, 4, 4))
    whole = [tuple(torch.cat(part) for part in zip(*batches, strict=True))]
    for one, other in zip(
        feature_connectivity(model, a, b, batches), feature_connectivity(model, a, b, whole), strict=True
    ):
        assert one.cosine == pytest.approx(other.cosine)
        assert one.norm == pytest.approx(other.norm)


def test_lemma_1_holds_for_a_model_with_itself_and_names_its_bound():
    model = make_mlp()
    a = random_state(model, 0)
    (bound,) = lemma_1(model, a, a, make_batches())
    assert bound.holds
    assert bound.bound == pytest.approx(2 * bound.error)
    assert bound.cosine == pytest.approx(1)


def test_nothing_is_changed():
    model = make_cnn().train()
    a, b = random_state(model, 0), random_state(model, 1)
    before = {key: tensor.clone() for key, tensor in (a | b).items()}
    own = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    feature_connectivity(model, a, b, make_batches(shape=(1, 4, 4)))
    assert model.training
    assert all(torch.equal(before[key], tensor) for key, tensor in (a | b).items())
    assert all(torch.equal(own[key], tensor) for key, tensor in model.state_dict().items())


def test_errors():
    model = make_mlp()
    a = random_state(model, 0)
    with pytest.raises(MergeError, match="neither 'linear'"):
        feature_connectivity(model, a, a, make_batches(), law="quadratic")
    with pytest.raises(CalibrationError, match="no batches"):
        feature_connectivity(model, a, a, [])
