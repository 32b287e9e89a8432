"""AlignTo: every model is aligned to one reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedrebasin.errors import MergeError
from fedrebasin.matching import Alignment, AlreadyAligned, Matcher, WeightMatching
from fedrebasin.merging.merge import Merge, collected, unmoved
from fedrebasin.merging.protocol import Placer, Together, TwoStepAligner
from fedrebasin.merging.reference import medoid, started_from
from fedrebasin.spec import PermutationSpec
from fedrebasin.state import State, demand_numbers, demand_same_kinds

Reference = Literal["auto", "medoid"] | int | State


@dataclass(frozen=True)
class AlignTo(TwoStepAligner):
    """Align every model to a reference, then average (Git Re-Basin, section 3, for more than two models).

    Args:
        matcher: aligns one model to the reference. One with a true attribute ``keeps_aligned``, as
            :class:`WeightMatching` has it, is not asked about models that :class:`fedrebasin.AlreadyAligned` proves to
            be in the reference's order.
        reference: a state dict (which takes no part in the mean), the position of one of the models, or ``"medoid"``:
            the one through which the others agree best, see :func:`fedrebasin.merging.medoid`. ``"auto"`` is the model
            that they were trained from, if it is known and they measurably were, and the medoid if not.
        keep_states: whether the merge carries the aligned models. Without, and with a reference that is a state dict
            or 0, models given as an iterator are taken one by one: memory for one reference, one model and the sum.
        threads: how many models are matched at a time; the result does not depend on it.
    """

    matcher: Matcher = field(default_factory=WeightMatching)
    reference: Reference = "auto"
    keep_states: bool = True
    threads: int = 1

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise MergeError(f"threads {self.threads}: it must be at least 1")
        known = isinstance(self.reference, Mapping | int) or self.reference in ("auto", "medoid")
        if not known:
            raise MergeError(f"reference {self.reference!r}: choose auto, medoid, a position, or a state dict")
        is_given, is_position = isinstance(self.reference, Mapping), isinstance(self.reference, int)
        object.__setattr__(self, "needs_all", is_position)  # among all models
        object.__setattr__(self, "private", is_given or self.reference == "auto")
        object.__setattr__(self, "looks_at", 0 if is_given else 1 if is_position and self.reference == 0 else None)

    def begin(self, spec: PermutationSpec, start: State | None = None, first: Sequence[State] = ()) -> Placer:
        """A placer with the reference: given, the start, or one of the first models: see :class:`TwoStepAligner`."""
        if isinstance(self.reference, Mapping):
            return _ToReference(spec, self.matcher, self.reference)
        if not first:
            return Together(spec, self) if start is None else _ToReference(spec, self.matcher, start)
        if self.reference == "auto" and start is not None:
            spec, (start, *first) = collected(spec, (start, *first))
            found = _ToReference(spec, self.matcher, start)
            if 2 * found.look_at(first) > len(first) or started_from(spec, start, first):
                return found
        spec, first = collected(spec, first)
        if isinstance(self.reference, int):
            if not -len(first) <= self.reference < len(first):
                raise MergeError(f"reference {self.reference}: there are {len(first)} models")
            return _ToReference(spec, self.matcher, first[self.reference])
        return _ToReference(spec, self.matcher, first[medoid(spec, first)])


@dataclass
class _ToReference:
    """A placer that aligns models to one reference."""

    spec: PermutationSpec
    matcher: Matcher
    reference: State

    def __post_init__(self) -> None:
        self._skipping = AlreadyAligned(self.matcher)
        self._may_skip = getattr(self.matcher, "keeps_aligned", False)
        # By identity, with the models themselves: another one might come to lie where one of them lay.
        self._known: dict[int, tuple[State, Alignment]] = {}

    def look_at(self, states: Sequence[State]) -> int:
        """How many models provably are in the reference's order; for these that is all there is to find out."""
        found = [(state, self._skipping.near(self.spec, self.reference, state)) for state in states]
        close = [(state, alignment) for state, alignment in found if alignment is not None]
        if self._may_skip:
            self._known = {id(state): (state, alignment) for state, alignment in close}
        return len(close)

    def place(self, state: State) -> Alignment:
        if known := self._known.pop(id(state), None):
            return known[1]
        demand_numbers(state)
        demand_same_kinds(self.reference, state)
        bound = self.spec.bind(state)
        if state is self.reference:
            return unmoved(bound, 1.0, "it is the reference")
        near = self._skipping.near(bound, self.reference, state) if self._may_skip else None
        return near or self.matcher(bound, reference=self.reference, candidate=state)

    def finish(self, weights: Sequence[float] | None = None) -> Merge:
        raise MergeError("no model to merge: none was held, each is aligned as it is placed")
