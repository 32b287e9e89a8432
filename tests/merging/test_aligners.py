from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrebasin import (
    Aligner,
    Alignment,
    AlignTo,
    CycleConsistent,
    Identity,
    MatchingError,
    MergeError,
    MergeMany,
    Permutation,
    PermutationSpec,
    SpecError,
    WeightMatching,
    average,
)
from tests.zoo import ZOO, State, few_examples, mlp, same, state_of

ALIGNERS: dict[str, Aligner] = {
    "identity": Identity(),
    "medoid": AlignTo(),
    "first": AlignTo(reference=0),
    "merge-many": MergeMany(),
    "cycle-consistent": CycleConsistent(),
}
names = st.sampled_from(sorted(ALIGNERS))
specs = st.sampled_from(sorted(ZOO)).map(ZOO.__getitem__)
seeds = st.integers(0, 2**31)
weights = st.sampled_from([None, (1.0, 1.0, 1.0), (5.0, 1.0, 2.0), (0.0, 1.0, 1.0)])


def noisy(spec: PermutationSpec, seed: int, count: int, noise: float) -> list[State]:
    """One network, permuted at random, with some noise on each copy."""
    base = state_of(spec, seed)
    found = []
    for k in range(count):
        other = state_of(spec, seed + 1 + k)
        copy = {key: tensor + noise * other[key] for key, tensor in base.items()}
        found.append(Permutation.random(spec, torch.Generator().manual_seed(seed + k)).apply(copy))
    return found


def spread(spec: PermutationSpec, states: tuple[State, ...], weights: tuple[float, ...] | None) -> float:
    shares = [w / sum(weights) for w in weights] if weights else [1 / len(states)] * len(states)
    mean = average(states, weights)
    keys = [key for key in spec.shapes if key not in spec.statistics]
    return sum(
        share * sum(float((state[key] - mean[key]).square().sum()) for key in keys)
        for share, state in zip(shares, states, strict=True)
    )


@few_examples
@given(names, specs, seeds, weights)
def test_every_aligner_keeps_its_word(
    name: str, spec: PermutationSpec, seed: int, weights: tuple[float, ...] | None
) -> None:
    states = noisy(spec, seed, 3, 0.5)
    copies = [{key: tensor.clone() for key, tensor in state.items()} for state in states]
    merge = ALIGNERS[name](spec, states, weights)
    assert all(same(state, copy) for state, copy in zip(states, copies, strict=True))
    for alignment, given_state, aligned in zip(merge.alignments, states, merge.states, strict=True):
        assert same(alignment.apply(given_state), dict(aligned))
    merged = average(merge.states, weights)
    assert all(torch.allclose(merge.merged[key], merged[key], rtol=1e-12, atol=1e-12) for key in merged)
    assert list(merge.history.objective) == sorted(merge.history.objective, reverse=True)
    if not isinstance(ALIGNERS[name], AlignTo):
        assert merge.history.objective[-1] == pytest.approx(spread(spec, merge.states, weights), rel=1e-9, abs=1e-9)


@few_examples
@given(specs, seeds, st.sampled_from(["merge-many", "cycle-consistent"]))
def test_merging_never_spreads(spec: PermutationSpec, seed: int, name: str) -> None:
    states = [state_of(spec, seed + k) for k in range(3)]
    merge = ALIGNERS[name](spec, states)
    assert spread(spec, merge.states, None) <= spread(spec, tuple(states), None) * (1 + 1e-9)


@pytest.mark.parametrize("name", ["medoid", "merge-many", "cycle-consistent"])
def test_permuted_copies_become_one(name: str) -> None:
    spec = mlp(10, 24, 24, 4)
    states = noisy(spec, 0, 4, 0.0)
    merge = ALIGNERS[name](spec, states)
    assert merge.history.objective[-1] == pytest.approx(0, abs=1e-9)
    assert all(alignment.similarity == pytest.approx(1) for alignment in merge.alignments)


def test_permutations_compose_around_cycles() -> None:
    spec = mlp(10, 24, 24, 4)
    found = [alignment.permutation for alignment in CycleConsistent()(spec, noisy(spec, 0, 3, 0.3)).alignments]

    def between(i: int, j: int) -> Permutation:
        return found[j].inverse().compose(found[i])

    for i, j, k in itertools.permutations(range(3)):
        assert between(j, k).compose(between(i, j)) == between(i, k)


@pytest.mark.parametrize("name", sorted(ALIGNERS))
def test_one_model_stays(name: str) -> None:
    spec = mlp(3, 4, 2)
    state = state_of(spec, 0)
    merge = ALIGNERS[name](spec, [state])
    assert merge.alignments[0].permutation.is_identity
    assert all(torch.allclose(merge.merged[key], state[key]) for key in state)


@pytest.mark.parametrize("name", sorted(ALIGNERS))
def test_no_model_is_an_error(name: str) -> None:
    with pytest.raises(MergeError, match="no model"):
        ALIGNERS[name](mlp(3, 4, 2), [])


@pytest.mark.parametrize("name", sorted(ALIGNERS))
def test_models_of_another_spec_are_refused(name: str) -> None:
    spec = mlp(3, 4, 2)
    with pytest.raises(SpecError, match=r"0\.weight"):
        ALIGNERS[name](spec, [state_of(spec, 0), state_of(mlp(3, 5, 2), 0)])


@pytest.mark.parametrize("name", ["medoid", "first", "merge-many", "cycle-consistent"])
def test_weights_that_are_not_finite_are_named(name: str) -> None:
    spec = mlp(3, 4, 2)
    states = [state_of(spec, k) for k in range(3)]
    states[1]["0.bias"][2] = math.nan
    with pytest.raises(MatchingError, match=r"0\.bias"):
        ALIGNERS[name](spec, states)


@pytest.mark.parametrize("wrong", [(1.0,), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0), (math.nan, 1.0, 1.0)])
@pytest.mark.parametrize("name", sorted(ALIGNERS))
def test_weights_that_cannot_be_used_are_refused(name: str, wrong: tuple[float, ...]) -> None:
    spec = mlp(3, 4, 2)
    with pytest.raises(MergeError, match="weights"):
        ALIGNERS[name](spec, [state_of(spec, k) for k in range(3)], wrong)


def test_a_reference_that_is_a_state_takes_no_part_in_the_mean() -> None:
    spec = mlp(6, 12, 3)
    states = noisy(spec, 0, 3, 0.1)
    reference = {key: tensor * 100 for key, tensor in state_of(spec, 0).items()}
    merge = AlignTo(reference=reference)(spec, states)
    expected = average([WeightMatching()(spec, reference, state).apply(state) for state in states])
    assert same(dict(merge.merged), expected)


def test_models_are_taken_one_by_one_from_an_iterator() -> None:
    spec = mlp(6, 12, 3)
    alive: list[int] = []
    states = noisy(spec, 0, 4, 0.1)

    def stream() -> Iterator[State]:
        for k, state in enumerate(states):
            alive.append(k)
            yield {key: tensor.clone() for key, tensor in state.items()}

    merge = AlignTo(reference=states[0], keep_states=False)(spec, stream())
    assert merge.states == ()
    assert alive == [0, 1, 2, 3]
    assert same(dict(merge.merged), dict(AlignTo(reference=states[0])(spec, states).merged))


def test_a_minority_does_not_choose_the_medoid() -> None:
    spec = mlp(8, 16, 4)
    honest = noisy(spec, 0, 3, 0.3)
    zero = {key: torch.zeros_like(tensor) for key, tensor in honest[0].items()}
    stranger = state_of(spec, 999)
    for strangers in ([zero, zero], [stranger, stranger], [{k: t * 1e3 for k, t in stranger.items()}] * 2):
        merge = AlignTo(reference="medoid")(spec, [*strangers, *honest])
        chosen = [alignment.history.reason for alignment in merge.alignments].index("it is the reference")
        assert chosen >= 2


def test_unknown_references_are_refused() -> None:
    spec = mlp(3, 4, 2)
    with pytest.raises(MergeError, match="reference"):
        AlignTo(reference="best")  # type: ignore[arg-type]
    with pytest.raises(MergeError, match="reference 7"):
        AlignTo(reference=7)(spec, [state_of(spec, 0)])


@pytest.mark.parametrize(
    ("alone", "together"),
    [
        (AlignTo(), AlignTo(threads=3)),
        (AlignTo(reference=0), AlignTo(reference=0, threads=3)),
        (MergeMany(), MergeMany(WeightMatching(threads=3))),
        (CycleConsistent(), CycleConsistent(threads=3)),
    ],
)
def test_threads_do_not_change_the_result(alone: Aligner, together: Aligner) -> None:
    spec = ZOO["attention"]
    states = noisy(spec, 5, 5, 0.3)
    one, many = alone(spec, iter(states)), together(spec, iter(states))
    assert [a.permutation for a in one.alignments] == [a.permutation for a in many.alignments]
    assert same(dict(one.merged), dict(many.merged))


def test_no_more_models_are_taken_ahead_than_there_are_threads() -> None:
    spec, taken = mlp(4, 6, 3), 0
    states = noisy(spec, 5, 6, 0.3)

    def given_one_by_one() -> Iterator[State]:
        nonlocal taken
        for taken, state in enumerate(states, 1):  # noqa: B007
            yield state

    drawn: list[int] = []

    def matcher(spec: PermutationSpec, reference: State, candidate: State) -> Alignment:
        drawn.append(taken)
        return WeightMatching()(spec, reference=reference, candidate=candidate)

    AlignTo(matcher, reference=0, keep_states=False, threads=2)(spec, given_one_by_one())
    assert all(ahead <= position + 3 for position, ahead in enumerate(drawn))


@pytest.mark.parametrize("aligner", [MergeMany(seconds=0.0), CycleConsistent(seconds=0.0)])
def test_a_spent_time_budget_leaves_a_merge(aligner: Aligner) -> None:
    spec = ZOO["attention"]
    merge = aligner(spec, noisy(spec, 5, 3, 0.3))
    assert not merge.history.converged
    assert merge.history.reason == "the time budget of 0 s was spent"
    assert merge.history.objective[-1] <= merge.history.objective[0]


@pytest.mark.parametrize("make", [MergeMany, CycleConsistent])
def test_progress_is_told_of_every_round(make: type[MergeMany] | type[CycleConsistent]) -> None:
    spec, told = mlp(4, 6, 3), []
    merge = make(progress=lambda number, spread: told.append((number, spread)))(spec, noisy(spec, 5, 3, 0.3))
    assert told[-1][1] == merge.history.objective[-1]
    assert [number for number, _ in told] == list(range(told[0][0], len(merge.history.objective)))
