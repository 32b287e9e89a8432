"""Three notions of being connected after permutation, and whether training has settled.

Simultaneous connectivity, Definitions 4.1 to 4.3. Two models are connected here as far as the barrier between them is
low; what is low enough is for the reader to say (``connected(threshold)``).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from torch import nn

from fedrebasin.analysis.barrier import Definition, Quantity, loss_barrier
from fedrebasin.errors import MergeError
from fedrebasin.matching import Matcher, WeightMatching
from fedrebasin.running import Batch
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import State, demand_numbers

Pair = tuple[int, int]


@dataclass(frozen=True)
class PairBarriers:
    """Barriers between models of a set.

    Args:
        values: by pair of positions ``(i, j)``, i < j.
    """

    values: dict[Pair, float]

    @property
    def mean(self) -> float:
        """The mean barrier."""
        return fmean(self.values.values())

    @property
    def largest(self) -> float:
        """The largest barrier."""
        return max(self.values.values())

    def connected(self, threshold: float) -> bool:
        """Whether every barrier is at most this, in nats."""
        return self.largest <= threshold


@dataclass(frozen=True)
class StrongConnectivity:
    """Barriers when each model has one permutation for all others.

    Args:
        direct: between the reference and each aligned model.
        through_third: between models that were aligned to the reference and not to each other (section 5.3).
        permutations: one for each model.
    """

    direct: PairBarriers
    through_third: PairBarriers
    permutations: tuple[Permutation, ...]

    def connected(self, threshold: float) -> bool:
        """Whether every barrier is at most this, in nats."""
        return self.direct.connected(threshold) and self.through_third.connected(threshold)


def weak_connectivity(
    model: nn.Module,
    spec: PermutationSpec,
    states: Sequence[State],
    batches: Iterable[Batch],
    matcher: Matcher | None = None,
    points: int = 25,
    definition: Definition = "simultaneous",
    *,
    of: Quantity = "loss",
    recalibrate: Iterable[Batch] | None = None,
) -> PairBarriers:
    """Barriers with a permutation of its own for every pair (Simultaneous connectivity, Definition 4.1).

    Args:
        model: the module.
        spec: of all models.
        states: at least two.
        batches: ``(inputs, labels)``, read more than once.
        matcher: weight matching by default.
        points: positions on each path.
        definition: of the barrier.
        of: "loss", or "error" for the barrier of ``1 - accuracy``.
        recalibrate: see :func:`fedrebasin.loss_barrier`.

    Raises:
        MergeError: if there are fewer than two models.
    """
    _demand(states, 2)
    between = _barriers(model, batches, points, definition, of, recalibrate)
    matcher = WeightMatching() if matcher is None else matcher
    found = {}
    for i, j in combinations(range(len(states)), 2):
        aligned = matcher(spec, reference=states[i], candidate=states[j]).apply(states[j])
        found[i, j] = between(states[i], aligned)
    return PairBarriers(found)


def strong_connectivity(
    model: nn.Module,
    spec: PermutationSpec,
    states: Sequence[State],
    batches: Iterable[Batch],
    matcher: Matcher | None = None,
    reference: int = 0,
    points: int = 25,
    definition: Definition = "simultaneous",
    *,
    of: Quantity = "loss",
    recalibrate: Iterable[Batch] | None = None,
) -> StrongConnectivity:
    """Barriers with one permutation for each model, found against a reference (Definition 4.2 and section 5.3).

    Identity: permuted copies of one model have barrier 0 in both readings, if the matcher finds the permutations.

    Args:
        model: the module.
        spec: of all models.
        states: at least three.
        batches: ``(inputs, labels)``, read more than once.
        matcher: weight matching by default.
        reference: the position of the model that the others are aligned to.
        points: positions on each path.
        definition: of the barrier.
        of: "loss", or "error" for the barrier of ``1 - accuracy``.
        recalibrate: see :func:`fedrebasin.loss_barrier`.

    Raises:
        MergeError: if there are fewer than three models, or the reference is none of them.
    """
    _demand(states, 3)
    if not 0 <= reference < len(states):
        raise MergeError(f"reference {reference}: there are {len(states)} models")
    between = _barriers(model, batches, points, definition, of, recalibrate)
    matcher = WeightMatching() if matcher is None else matcher
    bound = spec.bind(states[reference])
    permutations = tuple(
        Permutation.identity(bound)
        if k == reference
        else matcher(spec, reference=states[reference], candidate=state).permutation
        for k, state in enumerate(states)
    )
    aligned = [permutation.apply(state) for permutation, state in zip(permutations, states, strict=True)]
    direct: dict[Pair, float] = {}
    third: dict[Pair, float] = {}
    for i, j in combinations(range(len(states)), 2):
        value = between(aligned[i], aligned[j])
        (direct if reference in (i, j) else third)[i, j] = value
    return StrongConnectivity(PairBarriers(direct), PairBarriers(third), permutations)


def simultaneous_connectivity(
    model: nn.Module,
    first: Sequence[State],
    second: Sequence[State],
    permutation: Permutation,
    batches: Iterable[Batch],
    points: int = 25,
    definition: Definition = "simultaneous",
    *,
    of: Quantity = "loss",
    recalibrate: Iterable[Batch] | None = None,
) -> tuple[float, ...]:
    """The barrier at every step of two sequences under one permutation (Simultaneous connectivity, Definition 4.3).

    The sequences are checkpoints of two trainings, or two nets pruned further and further; the permutation may come
    from any step, ``matcher(spec, reference=first[k], candidate=second[k]).permutation``.

    Args:
        model: the module.
        first: state dicts.
        second: as many.
        permutation: of every member of ``second``.
        batches: ``(inputs, labels)``, read more than once.
        points: positions on each path.
        definition: of the barrier.
        of: "loss", or "error" for the barrier of ``1 - accuracy``.
        recalibrate: see :func:`fedrebasin.loss_barrier`.

    Returns:
        a barrier for each step, in nats.

    Raises:
        MergeError: if the sequences are empty or of different lengths.
    """
    if len(first) != len(second) or not first:
        raise MergeError(f"{len(first)} and {len(second)} checkpoints: the sequences must be of one length, not 0")
    between = _barriers(model, batches, points, definition, of, recalibrate)
    return tuple(between(a, permutation.apply(b)) for a, b in zip(first, second, strict=True))


def instability(
    model: nn.Module,
    checkpoints: Sequence[State],
    train: Callable[[State, int, int], State],
    batches: Iterable[Batch],
    seeds: tuple[int, int] = (0, 1),
    points: int = 25,
    definition: Definition = "git-re-basin",
    *,
    of: Quantity = "loss",
    recalibrate: Iterable[Batch] | None = None,
) -> tuple[float, ...]:
    """Instability analysis: the barrier between two children of each checkpoint (Frankle et al. 2020, section 2).

    Args:
        model: the module.
        checkpoints: of one training.
        train: ``train(state, position, seed)`` goes on from the checkpoint at this position to the end of the training,
            with batches in the order of the seed. The state is its own to change.
        batches: ``(inputs, labels)``, read more than once.
        seeds: of the two children; equal ones give 0.
        points: positions on each path.
        definition: of the barrier.
        of: "loss", or "error" for the barrier of ``1 - accuracy``.
        recalibrate: see :func:`fedrebasin.loss_barrier`.

    Returns:
        a barrier for each checkpoint, in nats, or as a share of the examples as Frankle et al. have it ("error").
        Training is stable from the first one where it is about 0.

    Raises:
        MergeError: if an argument is out of its range.
        CalibrationError: if batches can be read only once, or do not fit the model.
    """
    between = _barriers(model, batches, points, definition, of, recalibrate)
    found = []
    for position, state in enumerate(checkpoints):
        demand_numbers(state)
        children = [train({key: t.clone() for key, t in state.items()}, position, seed) for seed in seeds]
        found.append(between(*children))
    return tuple(found)


def _barriers(
    model: nn.Module,
    batches: Iterable[Batch],
    points: int,
    definition: Definition,
    of: Quantity,
    recalibrate: Iterable[Batch] | None,
) -> Callable[[State, State], float]:
    """The barrier between two models, as all these notions measure it."""
    if of not in ("loss", "error"):
        raise MergeError(f"of={of!r} is neither 'loss' nor 'error'")

    def between(a: State, b: State) -> float:
        found = loss_barrier(model, a, b, batches, points, definition, recalibrate=recalibrate)
        return found.value if of == "loss" else found.error_barrier(definition)

    return between


def _demand(states: Sequence[State], number: int) -> None:
    if len(states) < number:
        raise MergeError(f"{len(states)} models: at least {number} are needed")
