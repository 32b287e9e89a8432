"""Any aligner inside a strategy gives what the aligner gives: the same aligned copies, and their mean as Flower's."""

import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg

from fedrebasin import (
    Alignment,
    AlignTo,
    CycleConsistent,
    History,
    Identity,
    MergeMany,
    Permutation,
    PermutationSpec,
    RebasinError,
    WeightMatching,
)
from fedrebasin.merging import cosine, two_step
from fedrebasin.strategies import Aligned, FedMergeMany
from tests.strategies.helpers import AXES, COMMON, STRATEGIES, make_reply, make_state, run_round

SPEC = PermutationSpec.from_axes(AXES)
WIDTH, COUNT = 12, 5
EXAMPLES = [5.0 + 3 * node for node in range(COUNT)]
START = make_state(0, width=WIDTH)


def models(own_order):
    """Noisy copies of the start, some of whose units are elsewhere; in orders of their own they are another network."""
    spec, found = SPEC.bind(START), []
    base = make_state(99, width=WIDTH) if own_order else START
    for node in range(COUNT):
        generator = torch.Generator().manual_seed(node)
        near = {
            key: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            if tensor.is_floating_point()
            else tensor
            for key, tensor in base.items()
        }
        found.append(Permutation.random(spec, generator).apply(near) if own_order or node == 1 else near)
    return found


class Reversing:
    """A matcher with a mind of its own: it turns the order of the units round, however well they agree."""

    def __call__(self, spec, reference, candidate):
        turned = {name: torch.arange(len(index) - 1, -1, -1) for name, index in Permutation.identity(spec).items()}
        similarity = cosine(spec, reference, Permutation(spec, turned).apply(candidate))
        return Alignment(Permutation(spec, turned), similarity, History((), 0.0, True, "turned"))


class Passing:
    """An aligner that is only called."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, spec, states, weights=None):
        return self.inner(spec, states, weights)


@dataclass(frozen=True)
class Loud(AlignTo):
    """A subclass with a call of its own: the first model, turned round, is the reference."""

    def __call__(self, spec, states, weights=None):
        states = list(states)
        turned = Reversing()(spec.bind(states[0]), states[0], states[0]).apply(states[0])
        return AlignTo(reference=turned)(spec, states, weights)


ALIGNERS = {
    "auto": AlignTo(),
    "medoid": AlignTo(reference="medoid"),
    "the first": AlignTo(reference=0),
    "the last": AlignTo(reference=-1),
    "a state": AlignTo(reference=make_state(99, width=WIDTH)),
    "threads": AlignTo(threads=3),
    "greedy": AlignTo(WeightMatching(method="greedy"), reference=START),
    "reversing": AlignTo(Reversing(), reference=START),
    "merge many": MergeMany(),
    "merge many, greedy": MergeMany(WeightMatching(method="greedy")),
    "cycle consistent": CycleConsistent(),
    "only a call": Passing(AlignTo()),
    "only a call, many": Passing(MergeMany()),
    "a call of its own": Loud(),
}


class Remembering:
    """A probe that keeps the round's aligned models."""

    merge = None

    def __call__(self, round_):
        self.merge = round_.merge
        return {}


def run(aligner, states, inner=None, **options):
    seen = Remembering()
    replies = [make_reply(state, node, EXAMPLES[node - 1]) for node, state in enumerate(states, 1)]
    strategy = Aligned(inner or FedAvg(**COMMON), spec=SPEC, aligner=aligner, probes=(seen,), **options)
    arrays, metrics = run_round(strategy, START, replies)
    return arrays, metrics, seen.merge


def flower_mean_of(states):
    """What plain FedAvg makes of the models."""
    return run_round(FedAvg(**COMMON), START, [make_reply(s, n, EXAMPLES[n]) for n, s in enumerate(states)])[0]


@pytest.mark.parametrize("name", ALIGNERS)
@pytest.mark.parametrize("own_order", [False, True])
def test_wrapped_is_unwrapped(name, own_order):
    aligner, states = ALIGNERS[name], models(own_order)
    expected = aligner(SPEC, states, EXAMPLES)
    if name in ("auto", "threads") and not own_order:  # the one that they started from
        expected = AlignTo(reference=START)(SPEC, states, EXAMPLES)
    arrays, metrics, merge = run(aligner, states)
    for ours, theirs, state in zip(merge.alignments, expected.alignments, states, strict=True):
        assert ours.permutation == theirs.permutation
        assert ours.similarity == pytest.approx(theirs.similarity, abs=1e-6)
        assert all(torch.equal(tensor, theirs.apply(state)[key]) for key, tensor in ours.apply(state).items())
    for ours, theirs in zip(merge.states, expected.states, strict=True):
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items() if tensor.is_floating_point())
    if name in ("merge many", "cycle consistent", "only a call, many"):
        assert merge.history.objective == expected.history.objective
    mean = flower_mean_of(merge.states)
    for key, tensor in START.items():
        if tensor.is_floating_point():
            assert np.array_equal(arrays[key].numpy(), mean[key].numpy()), key
    similarities = [alignment.similarity for alignment in expected.alignments]
    assert metrics["rebasin-similarity"] == pytest.approx(np.mean(similarities), abs=1e-6)


@pytest.mark.parametrize("aligner", [Identity(), Passing(Identity())])
def test_leaving_everything_as_it_is_is_flowers_mean(aligner):
    states = models(own_order=True)
    arrays, _, _ = run(aligner, states)
    mean = flower_mean_of(states)
    floats = [key for key, tensor in START.items() if tensor.is_floating_point()]
    assert all(np.array_equal(arrays[key].numpy(), mean[key].numpy()) for key in floats)


@pytest.mark.parametrize("name", ["a state", "greedy", "reversing"])
def test_streamed_is_unwrapped_where_the_reference_is_given(name):
    states = models(own_order=True)
    arrays, _, merge = run(ALIGNERS[name], states, streaming=True)
    assert merge is None
    expected = ALIGNERS[name](SPEC, states, EXAMPLES).merged
    for key, tensor in expected.items():
        assert np.allclose(arrays[key].numpy(), tensor.numpy(), atol=1e-5) or not tensor.is_floating_point(), key


@pytest.mark.parametrize("streaming", [False, True])
def test_as_many_models_are_matched_at_a_time_as_the_aligner_says(streaming):
    together = threading.Barrier(COUNT)

    def matcher(spec, reference, candidate):
        together.wait(timeout=60)  # for all the others: nobody passes alone
        return WeightMatching()(spec, reference=reference, candidate=candidate)

    aligner = AlignTo(matcher, reference=START, threads=COUNT)
    arrays, _, _ = run(aligner, models(own_order=True), streaming=streaming)
    assert arrays is not None


def test_an_aligner_that_keeps_no_states_shows_none():
    states = models(own_order=True)
    kept, _, merge = run(AlignTo(), states)
    arrays, _, nothing = run(AlignTo(keep_states=False), states)
    assert merge is not None
    assert nothing is None
    assert all(np.array_equal(arrays[key].numpy(), kept[key].numpy()) for key in START)
    _, _, needed = run(AlignTo(keep_states=False), states, STRATEGIES["FedMedian"]())
    assert len(needed.states) == COUNT


@pytest.mark.parametrize("name", ALIGNERS)
def test_behind_noise_how_a_model_is_permuted_depends_on_no_other_one(name):
    aligner, private = ALIGNERS[name], STRATEGIES["DP-server"]
    if not two_step(aligner).private:
        with pytest.raises(RebasinError, match="depends on the others"):
            Aligned(private(), spec=SPEC, aligner=aligner)
        return
    mine, *others = models(own_order=True)
    for rest in (others, models(own_order=False)[1:]):
        _, _, merge = run(aligner, [mine, *rest], private())
        alone = AlignTo(aligner.matcher, reference=START if aligner.reference == "auto" else aligner.reference)
        assert merge.alignments[0].permutation == alone(SPEC, [mine]).alignments[0].permutation


@pytest.mark.parametrize("name", [name for name in ALIGNERS if two_step(ALIGNERS[name]).needs_all])
def test_what_needs_all_models_cannot_be_streamed_and_says_so_when_it_is_made(name):
    aligner = ALIGNERS[name]
    with pytest.raises(RebasinError, match=f"{type(aligner).__name__} needs all models at once.*streaming=False"):
        Aligned(FedAvg(), spec=SPEC, aligner=aligner, streaming=True)
    Aligned(STRATEGIES["FedMedian"](), spec=SPEC, aligner=aligner, streaming=True)  # which gets all replies anyway


def test_a_strategy_by_name_is_refused_likewise():
    with pytest.raises(RebasinError, match="MergeMany needs all models at once"):
        FedMergeMany(spec=SPEC, streaming=True)
