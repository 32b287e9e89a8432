"""Connectivity of sets and sequences, on permuted copies of one model."""

import pytest
import torch

from fedrebasin import MergeError, Permutation, PermutationSpec, WeightMatching, evaluate, loss_barrier
from fedrebasin.analysis import instability, simultaneous_connectivity, strong_connectivity, weak_connectivity

from .nets import labelled_by, make_batches, make_cnn, make_mlp, make_spec, random_state


@pytest.fixture
def setting():
    model = make_mlp()
    a = random_state(model, 0)
    spec = make_spec(a)
    generator = torch.Generator().manual_seed(0)
    copies = [Permutation.random(spec, generator).apply(a) for _ in range(3)]
    return model, spec, copies


def test_permuted_copies_are_weakly_and_strongly_connected(setting):
    model, spec, copies = setting
    batches = make_batches()
    weak = weak_connectivity(model, spec, copies, batches, points=5)
    assert weak.connected(1e-9)
    strong = strong_connectivity(model, spec, copies, batches, points=5)
    assert strong.connected(1e-9)
    assert set(strong.direct.values) == {(0, 1), (0, 2)}
    assert set(strong.through_third.values) == {(1, 2)}


def test_one_permutation_carries_a_whole_sequence(setting):
    model, spec, _ = setting
    first = [random_state(model, seed) for seed in range(3)]
    permutation = Permutation.random(spec, torch.Generator().manual_seed(1))
    second = [permutation.inverse().apply(state) for state in first]
    batches = labelled_by(model, first[0], make_batches())
    assert simultaneous_connectivity(model, first, second, permutation, batches, 5) == pytest.approx(
        [0, 0, 0], abs=1e-9
    )
    identity = Permutation.identity(permutation.spec)
    assert simultaneous_connectivity(model, first, second, identity, batches, 5)[0] > 1e-3


def test_instability_is_zero_for_equal_seeds_and_the_children_start_from_each_checkpoint():
    model = make_mlp()
    checkpoints = [random_state(model, seed) for seed in range(2)]
    seen = []

    def train(state, position, seed):
        seen.append((position, seed))
        generator = torch.Generator().manual_seed(seed)
        return {key: t + 0.1 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for key, t in state.items()}

    assert instability(model, checkpoints, train, make_batches(), (3, 3), 5) == pytest.approx((0, 0), abs=1e-9)
    assert seen == [(0, 3), (0, 3), (1, 3), (1, 3)]


def test_too_few_models(setting):
    model, spec, copies = setting
    with pytest.raises(MergeError, match="at least 2"):
        weak_connectivity(model, spec, copies[:1], [])
    with pytest.raises(MergeError, match="at least 3"):
        strong_connectivity(model, spec, copies[:2], [])
    with pytest.raises(MergeError, match="of one length"):
        simultaneous_connectivity(model, copies, copies[:2], Permutation.identity(spec), [])


def by_hand(model, a, b, batches, points=5, of="loss", line=True):
    """Eq. 1 of Simultaneous connectivity; without the line, Git Re-Basin's Definition 2.2."""
    above = []
    ends = [evaluate(model, end, batches) for end in (a, b)]
    for lam in (k / (points - 1) for k in range(points)):
        score = evaluate(model, {key: (1 - lam) * a[key] + lam * b[key] for key in a}, batches)
        at = lam if line else 0.5
        if of == "loss":
            above.append(score.loss - (1 - at) * ends[0].loss - at * ends[1].loss)
        else:
            above.append((1 - at) * ends[0].accuracy + at * ends[1].accuracy - score.accuracy)
    return max(above)


@pytest.mark.parametrize("of", ["loss", "error"])
def test_all_three_notions_by_hand(of):
    model = make_mlp()
    states = [random_state(model, seed) for seed in range(3)]
    spec, batches = make_spec(states[0]), labelled_by(model, states[0], make_batches())

    def matched(i, j):
        return WeightMatching()(spec, reference=states[i], candidate=states[j]).permutation

    weak = weak_connectivity(model, spec, states, batches, points=5, of=of)
    for (i, j), value in weak.values.items():
        assert value == pytest.approx(by_hand(model, states[i], matched(i, j).apply(states[j]), batches, of=of))
    assert weak.mean == pytest.approx(sum(weak.values.values()) / 3)
    assert weak.connected(weak.largest)
    assert not weak.connected(weak.largest - 1e-9)

    strong = strong_connectivity(model, spec, states, batches, reference=1, points=5, of=of)
    first, last = (matched(1, k).apply(states[k]) for k in (0, 2))  # each aligned to the second, never to each other
    assert strong.through_third.values == {(0, 2): pytest.approx(by_hand(model, first, last, batches, of=of))}
    assert strong.direct.values == {
        (0, 1): pytest.approx(by_hand(model, first, states[1], batches, of=of)),
        (1, 2): pytest.approx(by_hand(model, states[1], last, batches, of=of)),
    }
    assert strong.permutations[1].is_identity

    later = [random_state(model, seed) for seed in range(3, 6)]
    found = simultaneous_connectivity(model, states, later, matched(0, 1), batches, 5, of=of)
    assert found == pytest.approx(
        [by_hand(model, a, matched(0, 1).apply(b), batches, of=of) for a, b in zip(states, later, strict=True)]
    )


def test_children_of_different_seeds_by_hand():
    model = make_mlp()
    checkpoint = random_state(model, 0)
    kept = {key: tensor.clone() for key, tensor in checkpoint.items()}
    batches = labelled_by(model, checkpoint, make_batches())

    def train(state, position, seed):
        for key, other in random_state(model, seed).items():
            state[key] += other  # a training may work in place
        return state

    a, b = ({key: kept[key] + other[key] for key in kept} for other in (random_state(model, s) for s in (4, 5)))
    for of in ("loss", "error"):
        (value,) = instability(model, [checkpoint], train, batches, (4, 5), 3, of=of)
        assert value == pytest.approx(by_hand(model, a, b, batches, 3, of, line=False))
        assert value > 0.01
    (value,) = instability(model, [checkpoint], train, batches, (4, 5), 3, "simultaneous", of="error")
    assert value == pytest.approx(by_hand(model, a, b, batches, 3, "error"))
    assert value > 0.01
    assert all(torch.equal(kept[key], tensor) for key, tensor in checkpoint.items())


def test_statistics_are_taken_anew_where_that_is_asked_for():
    model = make_cnn()
    a, b = random_state(model, 0), random_state(model, 1)
    batches = make_batches(shape=(1, 4, 4))
    fixed = {key: (None,) * tensor.dim() for key, tensor in a.items()}
    identity = Permutation.identity(PermutationSpec.from_axes({**fixed, "7.bias": ("P",)}, like=a))
    plain, anew = (
        simultaneous_connectivity(model, [a], [b], identity, batches, 3, recalibrate=data) for data in (None, batches)
    )
    assert anew == (loss_barrier(model, a, b, batches, 3, "simultaneous", recalibrate=batches).value,)
    assert plain != anew


def test_an_unknown_quantity_is_refused(setting):
    model, spec, copies = setting
    with pytest.raises(MergeError, match="neither 'loss' nor 'error'"):
        weak_connectivity(model, spec, copies, make_batches(), of="accuracy")
