"""The models of a round's replies, brought into one order of units."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from logging import INFO

import torch
from flwr.common import log
from torch import Tensor

from fedrebasin import Aligner, Alignment, AlignTo, History, PermutationSpec, WeightMatching
from fedrebasin.devices import move
from fedrebasin.merging import Placer, TwoStepAligner, cosine, two_step
from fedrebasin.state import State, distance
from fedrebasin.threads import ahead

from ..replies import Reply, alike, dissent, moving_integers, of_usual_length
from ..run import Frames
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
        return self.spec is None or two_step(self.aligner).idle

    def aligned(
        self,
        replies: Iterable[Reply],
        global_state: State,
        server_round: int,
        tally: Tally,
        workers: int = 0,
        set_aside: Callable[[int, str], None] | None = None,
    ) -> Iterator[tuple[Reply, State, Alignment]]:
        """Each reply with its aligned model and how it was aligned, in the order given.

        Args:
            replies: at least one.
            global_state: the model that the server sent out.
            server_round: Flower's round.
            tally: what was done is counted there.
            workers: matchings that run at the same time while replies arrive: at most one model more is held, and a
                reference is chosen from the first few. 0 where all replies are at hand.
            set_aside: is told of models whose integers along groups are not the reference's; None lets them pass.
        """
        for reply, state, alignment, goal in self._placed(replies, global_state, server_round, tally, workers):
            result = state if alignment.permutation.is_identity else alignment.apply(state)
            integers = moving_integers(self.spec, state) if set_aside is not None else ()
            if set_aside is not None and (reason := dissent({key: goal[key] for key in integers}, result)):
                set_aside(reply.node_id, reason)
                continue
            if self.frames is not None:
                self.frames.learn(reply.node_id, alignment.permutation)
            away = alignment.distance
            if away is None:
                away = distance(goal, result, alignment.permutation.spec.voting(result))
            tally.add(alignment, away)
            yield reply, result, alignment

    def _placed(
        self, replies: Iterable[Reply], global_state: State, server_round: int, tally: Tally, workers: int
    ) -> Iterator[tuple[Reply, State, Alignment, Mapping[str, Tensor]]]:
        """Each reply with its model, how that is aligned, and to what."""
        assert self.spec is not None
        start = move(global_state, self.device)
        aligner = self._aligner(start)
        arriving: Iterator[tuple[Reply, State]] = ((reply, move(reply.state, self.device)) for reply in replies)
        wanted = None if aligner.needs_all else aligner.looks_at
        first = deque(islice(arriving, LOOKED_AT if wanted is None and workers else wanted))
        started = time.perf_counter()
        if aligner.needs_all:
            seen = of_usual_length(alike(self.spec, [state for _, state in first]))
            first = deque(zip([reply for reply, _ in first], seen, strict=True))
        placer = aligner.begin(self.spec, start, () if self.private else [state for _, state in first])
        if placer.reference is not None and wanted != 0:
            chosen = "the global model" if placer.reference is start else "one of the clients' models"
            log(INFO, "aggregate_train: the reference is %s", chosen)
        tally.seconds += time.perf_counter() - started

        def place(pair: tuple[Reply, State]) -> tuple[Reply, State, Alignment | None, float]:
            started = time.perf_counter()
            return *pair, self._place(placer, *pair, server_round), time.perf_counter() - started

        held = []
        threads = 1 if placer.reference is None else max(workers, aligner.threads)
        for reply, state, alignment, seconds in ahead(place, _chained(first, arriving), threads, int(workers > 0)):
            tally.seconds += seconds
            if alignment is None or placer.reference is None:
                held.append(reply)
            else:
                own = move(reply.state, self.device) if aligner.needs_all else state
                yield reply, own, alignment, placer.reference
        if held:
            started = time.perf_counter()
            merge = placer.finish([reply.num_examples for reply in held])
            tally.seconds += time.perf_counter() - started
            for reply, alignment in zip(held, merge.alignments, strict=True):
                yield reply, move(reply.state, self.device), alignment, merge.merged

    def _aligner(self, global_state: State) -> TwoStepAligner:
        """What aligns this round: once nodes have permutations of their own, models are aligned to the global one."""
        if self.frames is not None and self.frames.by_node:
            return AlignTo(getattr(self.aligner, "matcher", None) or WeightMatching(), reference=global_state)
        return two_step(self.aligner)

    def _place(self, placer: Placer, reply: Reply, state: State, server_round: int) -> Alignment | None:
        """By the node's own permutation, or, if it has none or has drifted away from it, by the placer."""
        own = None if self.frames is None else self.frames.known(reply.node_id, server_round)
        if self.frames is None or own is None or placer.reference is None:
            return placer.place(state)
        similarity = cosine(own.spec, placer.reference, own.apply(state))
        if self.frames.rematch_below is not None and similarity < self.frames.rematch_below:
            return placer.place(state)
        return Alignment(own, similarity, History((), 0.0, True, "the node's own permutation"))


def _chained(first: deque[tuple[Reply, State]], rest: Iterable[tuple[Reply, State]]) -> Iterator[tuple[Reply, State]]:
    """The first ones, each let go of as it is handed on, then the rest."""
    while first:
        yield first.popleft()
    yield from rest
