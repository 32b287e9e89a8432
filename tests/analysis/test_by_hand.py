"""Every measure of a pair against its formula, written out with plain loops over the examples of a small net."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from fedrebasin.analysis import (
    activation_spectra,
    active_overlap,
    commutativity,
    commutativity_objective,
    feature_connectivity,
    reciprocal_orthogonality,
    stitching,
    unit_activity,
    weak_additivity,
)

from .nets import make_batches, make_mlp, random_state

MODEL = make_mlp()
A, B = random_state(MODEL, 0), random_state(MODEL, 1)
BATCHES = make_batches()
INPUTS, LABELS = (torch.cat(part) for part in zip(*BATCHES, strict=True))
KEYS = ("0", "2", "4")


def run(state, inputs=INPUTS, start=0):
    """What every layer reads and makes, from layer ``start`` on."""
    reads, makes = [], []
    for position, key in list(enumerate(KEYS))[start:]:
        reads.append(inputs)
        makes.append(inputs @ state[f"{key}.weight"].T + state[f"{key}.bias"])
        inputs = torch.relu(makes[-1]) if position < 2 else makes[-1]
    return reads, makes


def between(lam):
    return {key: (1 - lam) * A[key] + lam * B[key] for key in A}


def agrees(spread, values):
    assert spread.mean == pytest.approx(float(values.mean()), abs=1e-12)
    assert spread.std == pytest.approx(float(values.std(correction=0)), abs=1e-7)


@pytest.mark.parametrize("where", ["after", "before"])
@pytest.mark.parametrize("law", ["linear", "exponential"])
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.8])
def test_both_laws(law, lam, where):
    def features(state):
        makes = run(state)[1]
        return [torch.relu(z) for z in makes[:2]] + [makes[2]] if where == "after" else makes

    for depth, (layer, z_a, z_b, z) in enumerate(
        zip(
            feature_connectivity(MODEL, A, B, BATCHES, [lam], law, where=where),
            features(A),
            features(B),
            features(between(lam)),
            strict=True,
        ),
        1,
    ):
        power = depth if law == "exponential" else 1
        expected = (1 - lam) ** power * z_a + lam**power * z_b
        cosines = cosine_similarity(z, expected)
        agrees(layer.cosine, cosines)
        agrees(layer.baseline, cosine_similarity(z_a, z_b))
        agrees(layer.coefficient, z.norm(dim=1) * cosines / expected.norm(dim=1))
        for spread, found in zip((layer.norm, *layer.norms), (z, z_a, z_b), strict=True):
            agrees(spread, found.norm(dim=1))
        assert (layer.depth, layer.lam) == (depth, lam)


def test_commutativity_and_its_objective():
    value = weights = features = 0.0
    for layer, key, h_a, h_b in zip(commutativity(MODEL, A, B, BATCHES), KEYS, run(A)[0], run(B)[0], strict=True):
        w_a, w_b = A[f"{key}.weight"], B[f"{key}.weight"]
        own, swapped = h_a @ w_a.T + h_b @ w_b.T, h_b @ w_a.T + h_a @ w_b.T
        for distance, x, y in (
            (layer.dist_com, own, swapped),
            (layer.dist_w, w_a, w_b),
            (layer.dist_h, h_a, h_b),
        ):
            assert distance == pytest.approx(float((x - y).norm() ** 2 / (x.norm() * y.norm())), rel=1e-9, abs=1e-20)
        value += float(((h_a - h_b) @ (w_a - w_b).T).square().sum())
        weights += float((w_a - w_b).square().sum())
        features += float((h_a - h_b).square().sum())
    found = commutativity_objective(MODEL, A, B, BATCHES)
    assert (found.value, found.weights, found.features) == pytest.approx((value, weights, features))


def test_reciprocal_orthogonality():
    found = reciprocal_orthogonality(MODEL, A, B, BATCHES)
    for layer, key, z_a, z_b in zip(found, KEYS, run(A)[0], run(B)[0], strict=True):
        w_a, w_b = A[f"{key}.weight"].T, B[f"{key}.weight"].T
        crossed = (z_b @ w_a).norm(dim=1) + (z_a @ w_b).norm(dim=1)
        own = (z_a @ w_a).norm(dim=1) + (z_b @ w_b).norm(dim=1)
        agrees(layer.ratio, crossed / own)
        agrees(layer.cosine, cosine_similarity((z_a + z_b) @ (w_a + w_b), z_a @ w_a + z_b @ w_b))


def test_a_layer_whose_own_answers_are_zero_has_a_ratio_without_an_error():
    dead = {**A, "2.weight": torch.zeros_like(A["2.weight"])}  # B's second layer answers nothing
    silent = {**B, "0.weight": torch.zeros_like(B["0.weight"]), "0.bias": torch.full_like(B["0.bias"], -1.0)}
    # A reads z_A with weights of zero, B reads z_B = 0
    ratio = reciprocal_orthogonality(MODEL, dead, silent, BATCHES)[1].ratio
    assert ratio.mean > 1e100
    assert ratio.std >= 0


@pytest.mark.parametrize("lam", [0.2, 0.5])
def test_weak_additivity(lam):
    for found, x_a, x_b in zip(weak_additivity(MODEL, A, B, BATCHES, lam), run(A)[1], run(B)[1], strict=False):
        left = torch.relu((1 - lam) * x_a + lam * x_b)
        right = (1 - lam) * torch.relu(x_a) + lam * torch.relu(x_b)
        agrees(found.cosine, cosine_similarity(left, right))
        assert found.distance == pytest.approx(float((left - right).norm() ** 2 / (left.norm() * right.norm())))


def test_activity_and_overlap():
    pairs = list(zip(run(A)[1][:2], run(B)[1][:2], strict=True))
    for own, overlap, (x_a, x_b) in zip(
        unit_activity(MODEL, A, BATCHES), active_overlap(MODEL, A, B, BATCHES), pairs, strict=True
    ):
        torch.testing.assert_close(own.second_moment, x_a.square().mean(0))
        torch.testing.assert_close(own.active, (x_a > 0).double().mean(0))
        on_a, on_b = x_a > 0, x_b > 0
        assert overlap.jaccard == pytest.approx(float((on_a & on_b).sum() / (on_a | on_b).sum()))
        moments = [torch.relu(x).square().mean(0) for x in (x_a, x_b)]
        assert overlap.moments == pytest.approx(float(cosine_similarity(*moments, dim=0)))


def test_stitching():
    found = stitching(MODEL, A, B, BATCHES)
    for position, (key, made) in enumerate(zip(KEYS, run(A)[1], strict=True)):
        logits = run(B, torch.relu(made), position + 1)[1][-1] if position < 2 else made
        assert found[key].accuracy == pytest.approx(float((logits.argmax(1) == LABELS).double().mean()))
        assert found[key].loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, LABELS)))
        assert found[key].labels == len(LABELS)


def test_activation_spectra():
    for spectrum, read in zip(activation_spectra(MODEL, A, BATCHES).values(), run(A)[0], strict=True):
        values = torch.linalg.svdvals(read)
        assert spectrum.stable_rank == pytest.approx(float(values.square().sum() / values[0] ** 2))
