"""Placing: models brought to one reference, where that costs something only if units have to move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fedrebasin import (
    Aligner,
    Alignment,
    AlreadyAligned,
    Closeness,
    History,
    Matcher,
    Merge,
    Permutation,
    PermutationSpec,
    WeightMatching,
    cosine,
    medoid,
    started_from,
)
from fedrebasin.state import distance

from ..replies import State
from ..run import Frames


@dataclass
class Placing:
    """One round's reference, and how models get there.

    Args:
        spec: bound to the models.
        matcher: for models whose units have to move.
        frames: the nodes' own permutations, if they have any.
        server_round: Flower's round.
    """

    spec: PermutationSpec
    matcher: Matcher
    frames: Frames | None
    server_round: int
    reference: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._skipping = AlreadyAligned(self.matcher)
        self._close: dict[int, Closeness] = {}

    def started_from(self, start: State, states: Mapping[int, State]) -> bool:
        """Whether most of the models still have their units in the order of a start.

        A model whose every unit is provably nearest to its own counterpart does, and that is found out on the way to
        aligning it; where it is not most of them, :func:`fedrebasin.started_from` looks closer.

        Args:
            start: a state dict.
            states: the models, by node.
        """
        for node_id, state in states.items():
            if (close := self._skipping.closeness(self.spec, start, state)) is not None:
                self._close[node_id] = close
        return 2 * len(self._close) > len(states) or started_from(self.spec, start, list(states.values()))

    def to(self, reference: Mapping[str, Tensor]) -> Placing:
        """With this reference."""
        self.reference = reference
        return self

    def to_medoid(self, states: Sequence[State]) -> Placing:
        """With the model as reference that the others agree with best."""
        self._close = {}
        return self.to(states[medoid(self.spec, states)])

    def place(self, node_id: int, state: State) -> tuple[Alignment, float]:
        """How a model gets to the reference, and its Euclidean distance from that once it is there."""
        if (own := self._own(node_id, state)) is not None:
            return own
        if state is self.reference:
            return Alignment(Permutation.identity(self.spec), 1.0, History((), 0.0, True, "it is the reference")), 0.0
        close = self._close.get(node_id) or self._skipping.closeness(self.spec, self.reference, state)
        if close is not None:
            history = History((), 0.0, True, "every unit is nearest to its own")
            return Alignment(Permutation.identity(self.spec), close.similarity, history), close.distance
        alignment = self.matcher(self.spec, reference=self.reference, candidate=state)
        return alignment, distance(self.reference, alignment.apply(state), self.spec.voting(state))

    def merge(self, aligned: Sequence[State], alignments: Sequence[Alignment], mean: State) -> Merge:
        """What an aligner would return."""
        return Merge(tuple(aligned), tuple(alignments), mean, History((), 0.0, True, "aligned to one reference"))

    def _own(self, node_id: int, state: State) -> tuple[Alignment, float] | None:
        """The alignment by the node's own permutation, None if it has none or has drifted away from it."""
        if self.frames is None or (permutation := self.frames.known(node_id, self.server_round)) is None:
            return None
        mapped = permutation.apply(state)
        similarity = cosine(self.spec, self.reference, mapped)
        if self.frames.rematch_below is not None and similarity < self.frames.rematch_below:
            return None
        alignment = Alignment(permutation, similarity, History((), 0.0, True, "the node's own permutation"))
        return alignment, distance(self.reference, mapped, self.spec.voting(mapped))


def matcher_of(aligner: Aligner) -> Matcher:
    """What an aligner matches pairs with."""
    matcher: Matcher = getattr(aligner, "matcher", None) or WeightMatching()
    return matcher
