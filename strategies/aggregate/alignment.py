"""The models of a round's replies, brought into one order of units."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from logging import INFO

import torch
from flwr.common import log
from torch import Tensor

from fedrebasin import Aligner, Alignment, AlignTo, History, Merge, PermutationSpec, WeightMatching, ahead, cosine
from fedrebasin.devices import move
from fedrebasin.merging import Placer, TwoStepAligner, two_step

from ..replies import Reply, State, alike, dissent, moving_integers, of_usual_length
from ..run import Frames
from .flower_mean import FlowerMean
from .tally import Tally

LOOKED_AT = 8  # replies that decide the reference when the others have yet to come


@dataclass
class ReplyAlignment:
    """What aligns, to what, and where.

    Args:
        spec: the permutation spec; None where nothing is permuted.
        aligner: how models are brought into agreement.
        frames: the nodes' own permutations, where each node keeps its own coordinates.
        device: where matching runs.
        private: how one model is permuted may not depend on the others: ``"auto"`` is the global model.
    """

    spec: PermutationSpec | None
    aligner: Aligner
    frames: Frames | None
    device: torch.device
    private: bool = False

    @property
    def idle(self) -> bool:
        """Whether every model stays as it is."""
        return self.spec is None or two_step(self.aligner).leaves_as_is

    def all_at_once(
        self, replies: Sequence[Reply], global_state: State, server_round: int, tally: Tally, keep_states: bool
    ) -> Merge:
        """All replies' models, aligned; their mean as Flower takes it.

        Args:
            replies: at least one.
            global_state: the model that the server sent out.
            server_round: Flower's round.
            tally: what was done is counted there.
            keep_states: whether the aligned models are needed, if the aligner does not keep them of itself.
        """
        assert self.spec is not None
        started = time.perf_counter()
        states = [move(reply.state, self.device) for reply in replies]
        weights = [reply.num_examples for reply in replies]
        start = move(global_state, self.device)
        aligner = self._aligner(start)
        shown = of_usual_length(alike(self.spec, states)) if aligner.needs_all else states
        placer = self._begun(aligner, start, shown)

        def place(pair: tuple[Reply, State]) -> Alignment | None:
            return self._place(placer, *pair, server_round)

        pairs = zip(replies, shown, strict=True)
        found = list(ahead(place, pairs, aligner.threads if placer.reference is not None else 1))
        alignments = [alignment for alignment in found if alignment is not None]
        goal = placer.reference
        if goal is None:
            held = placer.finish(weights)
            alignments, goal = list(held.alignments), held.merged
        mean, aligned = FlowerMean(weights), []
        for reply, state, alignment in zip(replies, states, alignments, strict=True):
            result = self._applied(reply, state, alignment, goal, tally)
            mean.add(result)
            if keep_states or aligner.keep_states:
                aligned.append(result)
        tally.seconds = time.perf_counter() - started
        history = History((), tally.seconds, True, "aligned")
        return Merge(tuple(aligned), tuple(alignments), mean.sums, history)

    def one_by_one(
        self,
        replies: Iterable[Reply],
        global_state: State,
        server_round: int,
        workers: int,
        tally: Tally,
        set_aside: Callable[[int, str], None],
    ) -> Iterator[tuple[Reply, State]]:
        """Each reply and its aligned model, as replies arrive; at most ``workers`` + 1 models are held.

        The reference must be known before the last reply is there: where it is neither given nor the global model it
        is one of the first replies. Models whose integers along groups are not the reference's are handed to
        ``set_aside``, with the reason.
        """
        arriving = ((reply, move(reply.state, self.device)) for reply in replies)
        if self.idle:
            yield from arriving
            return
        start = move(global_state, self.device)
        aligner = self._aligner(start)
        first = deque(islice(arriving, LOOKED_AT if aligner.looks_at is None else aligner.looks_at))
        started = time.perf_counter()
        placer = self._begun(aligner, start, [state for _, state in first])
        reference = placer.reference
        assert reference is not None, "an aligner that needs all models is refused before a run"
        tally.seconds = time.perf_counter() - started

        def place(pair: tuple[Reply, State]) -> tuple[Reply, State, Alignment, float]:
            started = time.perf_counter()
            alignment = self._place(placer, *pair, server_round)
            assert alignment is not None
            return *pair, alignment, time.perf_counter() - started

        for reply, state, alignment, seconds in ahead(
            place, _chained(first, arriving), max(workers, aligner.threads), waiting=1
        ):
            integers = {key: reference[key] for key in moving_integers(self.spec, state)}
            if reason := dissent(integers, alignment.apply(state) if integers else state):
                set_aside(reply.node_id, reason)
                continue
            yield reply, self._applied(reply, state, alignment, reference, tally, seconds)

    def _aligner(self, global_state: State) -> TwoStepAligner:
        """What aligns this round: once nodes have permutations of their own, models are aligned to the global one."""
        if self.frames is not None and self.frames.by_node:
            return AlignTo(getattr(self.aligner, "matcher", None) or WeightMatching(), reference=global_state)
        return two_step(self.aligner)

    def _begun(self, aligner: TwoStepAligner, start: State, first: Sequence[State]) -> Placer:
        assert self.spec is not None
        placer = aligner.begin(self.spec, start, () if self.private else first)
        if placer.reference is not None and aligner.looks_at != 0:
            chosen = "the global model" if placer.reference is start else "one of the clients' models"
            log(INFO, "aggregate_train: the reference is %s", chosen)
        return placer

    def _place(self, placer: Placer, reply: Reply, state: State, server_round: int) -> Alignment | None:
        """By the node's own permutation, or, if it has none or has drifted away from it, by the placer."""
        permutation = None if self.frames is None else self.frames.known(reply.node_id, server_round)
        if self.frames is None or permutation is None or placer.reference is None or self.spec is None:
            return placer.place(state)
        similarity = cosine(self.spec, placer.reference, permutation.apply(state))
        if self.frames.rematch_below is not None and similarity < self.frames.rematch_below:
            return placer.place(state)
        return Alignment(permutation, similarity, History((), 0.0, True, "the node's own permutation"))

    def _applied(
        self,
        reply: Reply,
        state: State,
        alignment: Alignment,
        goal: Mapping[str, Tensor],
        tally: Tally,
        seconds: float = 0.0,
    ) -> State:
        """The aligned model, counted."""
        assert self.spec is not None
        if self.frames is not None:
            self.frames.learn(reply.node_id, alignment.permutation)
        result = state if alignment.permutation.is_identity else alignment.apply(state)
        known = alignment.distance
        tally.add(alignment, distance(self.spec, goal, result) if known is None else known, seconds)
        return result


def _chained(first: deque[tuple[Reply, State]], rest: Iterable[tuple[Reply, State]]) -> Iterator[tuple[Reply, State]]:
    """The first ones, each let go of as it is handed on, then the rest."""
    while first:
        yield first.popleft()
    yield from rest


def distance(spec: PermutationSpec, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The Euclidean distance of two models' voting tensors."""
    apart = (float(torch.linalg.vector_norm(a[key].float() - b[key].float())) for key in spec.voting(a))
    return math.sqrt(math.fsum(one**2 for one in apart))
