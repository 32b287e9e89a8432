"""The conditions behind both laws: commutativity, weak additivity, reciprocal orthogonality, overlap, stitching."""

import pytest
import torch

from fedrebasin import Permutation, WeightMatching, evaluate
from fedrebasin.analysis import (
    active_overlap,
    commutativity,
    commutativity_objective,
    compare_matchers,
    reciprocal_orthogonality,
    record_layers,
    stitching,
    unit_activity,
    weak_additivity,
)

from .nets import disjoint_pair, make_batches, make_cnn, make_linear, make_mlp, make_spec, random_state


@pytest.mark.parametrize(("build", "shape"), [(make_mlp, (5,)), (make_cnn, (1, 4, 4))])
def test_a_model_commutes_with_itself(build, shape):
    model = build()
    a = random_state(model, 0)
    for layer in commutativity(model, a, a, make_batches(shape=shape)):
        assert layer.dist_com == layer.dist_w == layer.dist_h == 0


def test_the_residual_is_the_product_of_both_differences():
    model = make_mlp()
    a, b = random_state(model, 0), random_state(model, 1)
    batches = make_batches()
    found = {layer.layer: layer for layer in commutativity(model, a, b, batches)}
    expected = 0.0
    for batch in batches:
        h_a, h_b = (record_layers(model, state, batch, ["2"])["2"].inputs for state in (a, b))
        expected += float(((h_a - h_b) @ (a["2.weight"] - b["2.weight"]).T).square().sum())
    assert found["2"].residual == pytest.approx(expected)
    assert found["0"].dist_h == found["0"].dist_com == 0
    assert found["0"].dist_w > 0


def test_the_objective_of_the_right_permutation_is_zero():
    model = make_mlp()
    a = random_state(model, 0)
    spec = make_spec(a)
    permutation = Permutation.random(spec, torch.Generator().manual_seed(3))
    b = permutation.apply(a)
    batches = make_batches()
    right = commutativity_objective(model, a, b, batches, permutation.inverse())
    assert (right.value, right.weights, right.features) == pytest.approx((0, 0, 0), abs=1e-20)
    found = compare_matchers(model, spec, a, b, batches, {"weights": WeightMatching()})
    assert found["none"].value > 0
    assert found["weights"].value == pytest.approx(0, abs=1e-20)


def test_weak_additivity_is_exact_for_a_model_with_itself_and_for_disjoint_units():
    model = make_mlp()
    a = random_state(model, 0)
    for found in weak_additivity(model, a, a, make_batches(), 0.3):
        assert found.cosine.mean == pytest.approx(1)
        assert found.distance == pytest.approx(0, abs=1e-20)
    model, a, b = disjoint_pair()
    assert [found.distance for found in weak_additivity(model, a, b, make_batches(shape=(4,)), 0.3)] == pytest.approx(
        [0, 0, 0], abs=1e-20
    )


def test_weak_additivity_of_two_strangers_lies_below_one():
    model = make_mlp()
    a, b = random_state(model, 0), random_state(model, 1)
    assert all(0.5 < found.cosine.mean < 1 for found in weak_additivity(model, a, b, make_batches()))


def test_disjoint_units_are_reciprocally_orthogonal_after_the_first_layer():
    model, a, b = disjoint_pair()
    _, *later = reciprocal_orthogonality(model, a, b, make_batches(shape=(4,)))
    assert [layer.ratio.mean for layer in later] == pytest.approx([0, 0, 0], abs=1e-12)
    assert [layer.cosine.mean for layer in later] == pytest.approx([1, 1, 1])
    assert [overlap.jaccard for overlap in active_overlap(model, a, b, make_batches(shape=(4,)))] == [0, 0, 0]


def test_a_model_answers_its_own_features_fully():
    model = make_cnn()
    a = random_state(model, 0)
    batches = make_batches(shape=(1, 4, 4))
    for layer in reciprocal_orthogonality(model, a, a, batches):
        assert layer.ratio.mean == pytest.approx(1)
        assert layer.cosine.mean == pytest.approx(1)
    for overlap in active_overlap(model, a, a, batches):
        assert overlap.jaccard == 1
        assert overlap.moments == pytest.approx(1)


def test_unit_activity_counts_every_example():
    model = make_mlp()
    a = random_state(model, 0)
    batches = make_batches()
    hidden = torch.cat([inputs for inputs, _ in batches]) @ a["0.weight"].T + a["0.bias"]
    first, _ = unit_activity(model, a, batches)
    torch.testing.assert_close(first.second_moment, hidden.square().mean(0))
    torch.testing.assert_close(first.active, (hidden > 0).double().mean(0))


def test_stitching_onto_oneself_and_after_the_last_layer():
    model = make_mlp()
    a, b = random_state(model, 0), random_state(model, 1)
    batches = make_batches()
    own = evaluate(model, a, batches)
    assert all(score.loss == pytest.approx(own.loss) for score in stitching(model, a, a, batches).values())
    found = stitching(model, a, b, batches)
    assert list(found) == ["0", "2", "4"]
    assert found["4"].loss == pytest.approx(own.loss)
    assert found["0"].loss != pytest.approx(own.loss)


def test_a_permuted_copy_stitches_badly_and_its_alignment_well():
    model = make_linear((5, 6, 4, 3))
    a = random_state(model, 0)
    batches = make_batches()
    spec = make_spec(a)
    permutation = Permutation.random(spec, torch.Generator().manual_seed(1))
    shuffled = permutation.apply(a)
    aligned = permutation.inverse().apply(shuffled)
    own = evaluate(model, a, batches).loss
    assert stitching(model, a, shuffled, batches)["1"].loss != pytest.approx(own)
    assert stitching(model, a, aligned, batches)["1"].loss == pytest.approx(own)
