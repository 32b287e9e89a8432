"""The papers' theorems as properties of nets that meet their premises, and of nets that break one of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedrebasin.analysis import (
    active_overlap,
    commutativity,
    feature_connectivity,
    layer_features,
    layers_of,
    lemma_1,
    reciprocal_orthogonality,
    record_layers,
    weak_additivity,
)

from .nets import make_mlp


def positive(generator, *shape):
    return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.1


def data(generator, inputs, count=3, classes=3):
    """All inputs are positive, so that positive weights keep every unit active."""
    return [(positive(generator, 6, inputs), torch.randint(classes, (6,), generator=generator)) for _ in range(count)]


def commuting_pair(seed):
    """Two ReLU nets with biases, everything active. Of every hidden layer, the first half of the units is shared.

    The other half differs, and nothing but the columns that read the shared half differs in the layer after it.
    """
    generator = torch.Generator().manual_seed(seed)
    width, shared = 6, 3
    model = make_mlp(width, inputs=4, depth=3)
    a, b = {}, {}
    for key, tensor in model.state_dict().items():
        x, y = positive(generator, *tensor.shape), positive(generator, *tensor.shape)
        first, last = key.startswith("0."), key.startswith("6.")
        if not last:
            y[:shared] = x[:shared]
        if key.endswith("weight") and not first:
            y[:, shared:] = x[:, shared:]
            if not last:
                x[:shared, shared:] = y[:shared, shared:] = 0  # shared units read shared units
        a[key], b[key] = x, y
    return model, a, b, data(generator, 4)


def orthogonal_pair(seed):
    """Two bias-free ReLU nets with every unit active in both, whose weights answer the other's features with nothing.

    Hidden features have rank one: A's layer l is a multiple of ``u[l]``, B's of ``v[l]``, both positive.
    """
    generator = torch.Generator().manual_seed(seed)
    width, depth = 6, 3
    model = make_mlp(width, inputs=4, depth=depth, bias=False)
    a, b = {}, {}
    before = None
    for position, key in enumerate(model.state_dict()):
        u, v = positive(generator, width, 1), positive(generator, width, 1)
        if position == 0:
            a[key], b[key] = (end @ positive(generator, 1, 4) for end in (u, v))
        else:
            of_a, of_b = before
            from_a, from_b = (
                of_a - of_b * (of_a.T @ of_b) / (of_b.T @ of_b),
                of_b - of_a * (of_a.T @ of_b) / (of_a.T @ of_a),
            )
            if position == depth:
                u, v = torch.randn(2, 3, 1, generator=generator, dtype=torch.float64)
            a[key], b[key] = u @ from_a.T, v @ from_b.T
        before = u, v
    return model, a, b, data(generator, 4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lam", [0.2, 0.5, 0.9])
def test_llfc_theorem_1_weak_additivity_and_commutativity_imply_the_linear_law(seed, lam):
    model, a, b, batches = commuting_pair(seed)
    assert [layer.dist_com for layer in commutativity(model, a, b, batches)] == pytest.approx([0] * 4, abs=1e-24)
    assert min(layer.dist_h for layer in commutativity(model, a, b, batches)[1:]) > 1e-6
    assert [found.distance for found in weak_additivity(model, a, b, batches, lam)] == pytest.approx([0] * 3, abs=1e-24)
    for layer in feature_connectivity(model, a, b, batches, [lam]):
        assert layer.baseline.mean < 1 - 1e-6
        assert layer.cosine.mean == pytest.approx(1, abs=1e-12)
        assert layer.coefficient.mean == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("premise", ["commutativity", "weak additivity"])
def test_llfc_theorem_1_needs_both_premises(premise):
    model, a, b, batches = commuting_pair(0)
    if premise == "commutativity":
        b["2.weight"][:, 3:] += 2.0
    else:
        b["0.bias"][3:] -= 5.0  # the units that differ are dead in B
    com = max(layer.dist_com for layer in commutativity(model, a, b, batches))
    distance = max(found.distance for found in weak_additivity(model, a, b, batches))
    assert (com > 1e-4, distance > 1e-4) == (premise == "commutativity", premise == "weak additivity")
    worst = min(layer.cosine.mean for layer in feature_connectivity(model, a, b, batches))
    assert worst < 1 - 1e-5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lam", [0.2, 0.5, 0.9])
def test_lewc_theorem_5_3_weak_additivity_and_reciprocal_orthogonality_imply_the_exponential_law(seed, lam):
    model, a, b, batches = orthogonal_pair(seed)
    assert [overlap.jaccard for overlap in active_overlap(model, a, b, batches)] == [1, 1, 1]  # disjointness is no need
    assert [found.distance for found in weak_additivity(model, a, b, batches, lam)] == pytest.approx([0] * 3, abs=1e-20)
    for layer in reciprocal_orthogonality(model, a, b, batches)[1:]:
        assert layer.ratio.mean == pytest.approx(0, abs=1e-10)
        assert layer.cosine.mean == pytest.approx(1)
    for layer in feature_connectivity(model, a, b, batches, [lam], "exponential"):
        assert layer.baseline.mean < 1 - 1e-6
        assert layer.cosine.mean == pytest.approx(1)
        assert layer.coefficient.mean == pytest.approx(1)
    at = {key: (1 - lam) * a[key] + lam * b[key] for key in a}
    z_a, z_b, z = (
        list(layer_features(record_layers(model, s, batches[0], layers_of(model))).values()) for s in (a, b, at)
    )
    for depth in range(1, 5):
        torch.testing.assert_close(z[depth - 1], (1 - lam) ** depth * z_a[depth - 1] + lam**depth * z_b[depth - 1])


@pytest.mark.parametrize("premise", ["reciprocal orthogonality", "weak additivity"])
def test_lewc_theorem_5_3_needs_both_premises(premise):
    model, a, b, batches = orthogonal_pair(1)
    if premise == "reciprocal orthogonality":
        b["2.weight"] += 0.5
    else:
        # all of B is dead, but its inputs to the ReLU still count in the mean
        b = {**b, "0.weight": -b["0.weight"]}
    ratio = max(layer.ratio.mean for layer in reciprocal_orthogonality(model, a, b, batches)[1:])
    distance = max(found.distance for found in weak_additivity(model, a, b, batches))
    assert (ratio > 1e-3, distance > 1e-3) == (
        premise == "reciprocal orthogonality",
        premise == "weak additivity",
    )
    found = feature_connectivity(model, a, b, batches, law="exponential")
    assert min(layer.cosine.mean for layer in found) < 1 - 1e-4


def two_readings(sign):
    """Two classes, told apart by the product of two layers; ``sign`` is that of both factors."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2))
    bias = torch.tensor([0.1, 0.0], dtype=torch.float64)
    state = {
        "0.weight": torch.full((1, 1), float(sign), dtype=torch.float64),
        "1.weight": torch.tensor([[0.0], [float(sign)]], dtype=torch.float64),
        "1.bias": bias,
    }
    return model, state


def test_llfc_lemma_1_holds_where_the_logits_are_sums_and_fails_where_they_are_not():
    model, a = two_readings(1)
    b = two_readings(-1)[1]
    inputs = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    batches = [(inputs, (inputs[:, 0] > 0.1).long())]
    (broken,) = lemma_1(model, a, b, batches)
    assert broken.bound == 0  # A and B are one function and never err
    assert broken.error == pytest.approx(4 / 9)  # halfway both factors are 0, and the answer is always class 0
    assert broken.cosine < 1
    assert not broken.holds
    # one layer differs: the logits are those of A and B in proportion, and each model errs on its own examples
    b = {**a, "1.bias": torch.tensor([0.7, 0.0], dtype=torch.float64)}
    for found in lemma_1(model, a, b, batches, [0.1, 0.5, 0.9]):
        assert found.cosine == pytest.approx(1)
        assert found.bound == pytest.approx(2 / 9)
        assert found.holds


@pytest.mark.parametrize("seed", range(3))
def test_llfc_lemma_1_on_nets_that_meet_theorem_1(seed):
    model, a, b, batches = commuting_pair(seed)
    assert all(bound.holds for bound in lemma_1(model, a, b, batches, [0.1, 0.3, 0.5, 0.7]))


def test_the_premise_of_lemma_1_is_on_what_the_model_answers():
    model, generator = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU()), torch.Generator().manual_seed(0)
    a, b = ({"0.weight": positive(generator, 3, 4)} for _ in range(2))
    batches = data(generator, 4)
    for sign, met in ((1, True), (-1, False)):  # a unit that is active in A alone
        b["0.weight"][0] *= sign
        assert feature_connectivity(model, a, b, batches)[0].cosine.mean == pytest.approx(1)  # its own output is linear
        (found,) = lemma_1(model, a, b, batches)
        assert (found.cosine > 1 - 1e-9) == met
