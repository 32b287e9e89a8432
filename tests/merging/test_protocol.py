"""Two steps: begin, place, finish; and what matchers say of themselves is heeded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from fedrebasin import (
    Aligner,
    Alignment,
    AlignTo,
    CycleConsistent,
    Identity,
    MatchingError,
    Merge,
    MergeError,
    MergeMany,
    Permutation,
    PermutationSpec,
    WeightMatching,
)
from fedrebasin.merging import Placer, TwoStepAligner, two_step
from tests.merging.test_aligners import noisy, spread
from tests.zoo import ZOO, State, mlp, same, state_of

SPEC = mlp(6, 12, 12, 4)
WEIGHTS = (3.0, 1.0, 2.0, 1.0)
HOLDING = {"identity": Identity(), "merge-many": MergeMany(), "cycle-consistent": CycleConsistent()}
CHOOSING = {"auto": AlignTo(), "medoid": AlignTo(reference="medoid"), "the last": AlignTo(reference=-1)}


def placed(placer: Placer, states: list[State]) -> list[Alignment | None]:
    return [placer.place(state) for state in states]


@pytest.mark.parametrize("name", [*HOLDING, *CHOOSING])
def test_models_are_held_until_all_are_there_where_nothing_is_known_before(name: str) -> None:
    aligner = (HOLDING | CHOOSING)[name]
    states = noisy(SPEC, 3, 4, 0.3)
    placer = aligner.begin(SPEC)
    assert placer.reference is None
    assert placed(placer, states) == [None] * 4
    found, expected = placer.finish(WEIGHTS), aligner(SPEC, states, WEIGHTS)
    assert [a.permutation for a in found.alignments] == [a.permutation for a in expected.alignments]
    assert same(dict(found.merged), dict(expected.merged))


@pytest.mark.parametrize("name", CHOOSING)
def test_the_reference_is_chosen_from_the_first_models(name: str) -> None:
    aligner, states = CHOOSING[name], noisy(SPEC, 3, 4, 0.3)
    placer = aligner.begin(SPEC, None, states)
    found = placed(placer, [*states, *noisy(SPEC, 3, 5, 0.3)[4:]])
    expected = [alignment.permutation for alignment in aligner(SPEC, states).alignments]
    assert [alignment.permutation for alignment in found[:4] if alignment is not None] == expected
    assert any(placer.reference is state for state in states)
    assert found[4] is not None


@pytest.mark.parametrize("first", [0, 3])
def test_the_start_is_the_reference_for_those_who_started_from_it(first: int) -> None:
    start = state_of(SPEC, 0)
    near = [{key: t + 0.01 * state_of(SPEC, k)[key] for key, t in start.items()} for k in range(1, 4)]
    assert AlignTo().begin(SPEC, start, near[:first]).reference is start
    others = noisy(SPEC, 9, 3, 0.3)
    assert AlignTo().begin(SPEC, start, others).reference is not start
    assert AlignTo().begin(SPEC, start).reference is start
    given = AlignTo(reference=others[0])
    assert given.begin(SPEC, start, near).reference is others[0]


@pytest.mark.parametrize("aligner", [AlignTo(), AlignTo(reference=state_of(SPEC, 0)), *HOLDING.values()])
def test_nothing_that_is_held_is_no_merge(aligner: TwoStepAligner) -> None:
    with pytest.raises(MergeError, match="no model to merge"):
        aligner.begin(SPEC).finish()


@dataclass(frozen=True)
class Calling(AlignTo):
    def __call__(self, spec, states, weights=None):  # type: ignore[no-untyped-def]
        return replace(super().__call__(spec, states, weights), states=())


@dataclass(frozen=True)
class Beginning(Calling):
    def begin(self, spec, start=None, first=()):  # type: ignore[no-untyped-def]
        return super().begin(spec, start, first)


def called(spec, states, weights=None) -> Merge:  # type: ignore[no-untyped-def]
    return Identity()(spec, states, weights)


def test_what_an_aligner_says_last_is_what_counts() -> None:
    for aligner in (AlignTo(), MergeMany(), Beginning()):
        assert two_step(aligner) is aligner
    others: list[Aligner] = [Calling(), called]
    for other in others:
        adapted = two_step(other)
        assert adapted is not other
        assert (adapted.needs_all, adapted.private, adapted.idle) == (True, False, False)
        placer = adapted.begin(SPEC)
        states = noisy(SPEC, 3, 3, 0.3)
        placed(placer, states)
        assert same(dict(placer.finish().merged), dict(other(SPEC, states).merged))


@dataclass
class Counting:
    """A matcher that says of itself what it is told to, and counts."""

    keeps_aligned: bool
    calls: list[State] = field(default_factory=list)

    def __call__(self, spec: PermutationSpec, reference: State, candidate: State) -> Alignment:
        self.calls.append(candidate)
        return WeightMatching()(spec, reference=reference, candidate=candidate)


@pytest.mark.parametrize("keeps_aligned", [False, True])
def test_a_matcher_is_asked_about_models_in_order_unless_it_would_keep_them(keeps_aligned: bool) -> None:
    start = state_of(SPEC, 0)
    near = [{key: t + 0.01 * state_of(SPEC, k)[key] for key, t in start.items()} for k in range(1, 4)]
    moved = Permutation.random(SPEC, torch.Generator().manual_seed(0)).apply(near[0])
    for first in ([], [*near, moved]):
        matcher = Counting(keeps_aligned)
        placer = AlignTo(matcher).begin(SPEC, start, first)
        found = placed(placer, [*near, moved])
        assert [a.permutation.is_identity for a in found if a is not None] == [True, True, True, False]
        assert len(matcher.calls) == (1 if keeps_aligned else 4)


def test_numbers_that_are_not_finite_are_refused_where_nothing_moves_as_well() -> None:
    states = [state_of(SPEC, 0), {**state_of(SPEC, 0)}]
    states[1]["0.bias"] = torch.full_like(states[1]["0.bias"], math.nan)
    with pytest.raises(MatchingError, match=r"0\.bias"):
        AlignTo(reference=0)(SPEC.freeze(list(SPEC.groups)), states)


def many(matcher: WeightMatching, states: list[State], spec: PermutationSpec = SPEC) -> Merge:
    return MergeMany(matcher, max_rounds=3)(spec, states)


def test_merge_many_heeds_its_matchers_settings() -> None:
    states = noisy(SPEC, 5, 4, 2.0)
    plain = many(WeightMatching(), states)
    told: list[int] = []
    many(WeightMatching(progress=lambda sweep, objective: told.append(sweep)), states)
    assert set(told) == {0, 1, 2}
    told.clear()
    many(WeightMatching(max_sweeps=1, progress=lambda sweep, objective: told.append(sweep)), states)
    assert set(told) == {0, 1}
    restarted = many(WeightMatching(restarts=4), states)
    assert spread(SPEC, restarted.states, None) != spread(SPEC, plain.states, None)
    stopped = many(WeightMatching(seconds=0.0), states)
    assert all(alignment.permutation.is_identity for alignment in stopped.alignments)


def test_merge_many_takes_a_step_before_its_matchers_ascent() -> None:
    generator = torch.Generator().manual_seed(0)
    base = state_of(SPEC, 0)
    init = Permutation.random(SPEC, generator)
    near = [{key: t + 0.01 * state_of(SPEC, k)[key] for key, t in base.items()} for k in range(1, 4)]
    states = [*near[:2], init.inverse().apply(near[2])]
    merge = MergeMany(WeightMatching(method="coordinate", init=init, max_sweeps=1))(SPEC, states)
    back = merge.alignments[0].permutation.inverse().compose(merge.alignments[2].permutation)
    assert back == init


def test_merge_many_matches_on_as_many_threads_as_its_matcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedrebasin.merging import rounds

    asked: list[int] = []

    def orders(spec: PermutationSpec, states: list[State], threads: int = 1) -> list[None]:
        asked.append(threads)
        return [None for _ in states]

    monkeypatch.setattr(rounds, "orders_by_signatures", orders)
    many(WeightMatching(threads=3), noisy(ZOO["attention"], 5, 3, 0.3), ZOO["attention"])
    assert asked == [3]
