"""Checkpoints aligned, one in memory at a time where the method allows it."""

import time
from collections.abc import Sequence
from dataclasses import replace

from fedrebasin.files.calibrate import Progress
from fedrebasin.files.checkpoint_set import CheckpointSet
from fedrebasin.matching import Alignment, WeightMatching
from fedrebasin.merging import AlignTo, CycleConsistent, MergeMany, TwoStepAligner, average, unmoved
from fedrebasin.spec import PermutationSpec
from fedrebasin.state import State, cosine, cosines

# Frank-Wolfe holds three matrices for each group: beyond this many bytes of them weight matching goes without.
_RELAXED_BYTES = 3e8


def aligned(
    opened: CheckpointSet,
    spec: PermutationSpec,
    method: str,
    seed: int,
    weights: Sequence[float] | None,
    progress: Progress,
) -> tuple[list[tuple[Alignment, float, float]], State | None]:
    """For every checkpoint its alignment, its similarity before, and seconds; and the mean, if it is known already.

    Where there is a reference one candidate is looked at at a time.
    """

    def match(spec: PermutationSpec, reference: State, candidate: State) -> Alignment:
        if method == "average":
            found, by_layer = cosines(reference, candidate, spec.voting(reference))
            return replace(unmoved(spec, found, "left as it is"), by_layer=by_layer)
        matcher = WeightMatching(
            method="frank-wolfe" if method == "frank-wolfe" else "auto" if _relaxable(spec) else "coordinate",
            seed=seed,
            progress=lambda sweep, objective: progress(what, sweep, None),
        )
        return matcher(spec, reference=reference, candidate=candidate)

    aligners: dict[str, TwoStepAligner] = {
        "merge-many": MergeMany(seed=seed),
        "cycle-consistent": CycleConsistent(seed=seed),
    }
    placer = aligners.get(method, AlignTo(match, reference=opened.first)).begin(spec)
    found = []
    for checkpoint in opened.checkpoints:
        started = time.perf_counter()
        what = f"matching {checkpoint.path.name}, sweep"
        if placer.reference is not None:
            progress(what, 0, None)
        if (alignment := placer.place(checkpoint.state)) is not None:
            found.append((alignment, _before(alignment), time.perf_counter() - started))
        checkpoint.state.release()
    if found:
        return found, None
    states = [one.state for one in opened.checkpoints]
    progress(f"{method} of {len(states)} checkpoints", 0, None)
    before = _cosines_to_mean(spec, states, weights)
    merge = placer.finish(weights)
    seconds = merge.history.seconds / len(states)
    return [(one, was, seconds) for one, was in zip(merge.alignments, before, strict=True)], merge.merged


def _relaxable(spec: PermutationSpec) -> bool:
    """Whether the matrices of Frank-Wolfe are small enough."""
    return 3 * sum(8 * spec.shape(name)[-1] ** 2 for name in spec.groups) <= _RELAXED_BYTES


def _before(alignment: Alignment) -> float:
    """The similarity of the models as they were: the objective is its multiple by both norms."""
    objective = alignment.history.objective
    if not objective or objective[-1] == 0:
        return alignment.similarity
    return alignment.similarity * objective[0] / objective[-1]


def _cosines_to_mean(spec: PermutationSpec, states: Sequence[State], weights: Sequence[float] | None) -> list[float]:
    mean = average(({key: state[key] for key in spec.voting(state)} for state in states), weights)
    return [cosine(mean, state, spec.voting(state)) for state in states]
