"""Stage: the models of a round's replies, brought into one order of units."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from logging import INFO

import torch
from flwr.common import log

from fedrebasin import (
    Aligner,
    Alignment,
    AlignTo,
    AlreadyAligned,
    Identity,
    Matcher,
    Merge,
    PermutationSpec,
    RebasinError,
    Trace,
    WeightMatching,
    cosine,
    medoid,
    started_from,
)

from .device import move
from .flower_mean import flower_mean
from .frames import Frames
from .records import State
from .screening import Reply

LOOKED_AT = 8  # replies that decide the reference when the others have yet to come


@dataclass
class Stage:
    """What aligns, to what, and where.

    Args:
        spec: the permutation spec; None where nothing is permuted.
        aligner: how models are brought into agreement.
        frames: the nodes' own permutations, where each node keeps its own coordinates.
        device: where matching runs.
    """

    spec: PermutationSpec | None
    aligner: Aligner
    frames: Frames | None
    device: torch.device

    @property
    def idle(self) -> bool:
        """Whether every model stays as it is."""
        return self.spec is None or isinstance(self.aligner, Identity)

    def all_at_once(self, replies: Sequence[Reply], global_state: State, server_round: int) -> tuple[Merge, float]:
        """All replies' models, aligned and averaged, and the seconds that it took."""
        assert self.spec is not None
        started = time.perf_counter()
        states = [move(reply.state, self.device) for reply in replies]
        weights = [reply.num_examples for reply in replies]
        reference = move(global_state, self.device)
        aligner = self._aligner(reference, states)
        if self.frames is not None and self.frames.by_node:
            aligner = AlignTo(_matcher(aligner), reference)
        if isinstance(aligner, AlignTo) and isinstance(aligner.reference, Mapping):
            merge = self._to_reference(replies, states, weights, dict(aligner.reference), server_round)
        else:
            merge = aligner(self.spec, states, weights)
        if self.frames is not None:
            for reply, alignment in zip(replies, merge.alignments, strict=True):
                self.frames.learn(reply.node_id, alignment.permutation)
        return merge, time.perf_counter() - started

    def one_by_one(
        self, replies: Iterable[Reply], global_state: State, server_round: int, workers: int
    ) -> Iterator[tuple[Reply, State, Alignment | None]]:
        """Each reply and its aligned model, as replies arrive; at most ``workers`` + 1 models are held.

        The reference must be known before the last reply is there: it is the global model, or, if the first replies
        did not start from that, the medoid of these.
        """
        arriving = iter(replies)
        if self.idle:
            yield from ((reply, move(reply.state, self.device), None) for reply in arriving)
            return
        reference, first = self._early_reference(arriving, move(global_state, self.device))
        matcher = AlreadyAligned(_matcher(self.aligner))
        with ThreadPoolExecutor(workers) as pool:
            pending: deque[tuple[Reply, Future[Alignment]]] = deque()
            for reply in _chained(first, arriving):
                pending.append((reply, pool.submit(self._align_one, reply, reference, matcher, server_round)))
                if len(pending) > workers:
                    yield self._done(*pending.popleft())
            while pending:
                yield self._done(*pending.popleft())

    def _done(self, reply: Reply, future: Future[Alignment]) -> tuple[Reply, State, Alignment]:
        alignment = future.result()
        if self.frames is not None:
            self.frames.learn(reply.node_id, alignment.permutation)
        return reply, alignment.apply(move(reply.state, self.device)), alignment

    def _align_one(self, reply: Reply, reference: State, matcher: Matcher, server_round: int) -> Alignment:
        assert self.spec is not None
        state = move(reply.state, self.device)
        known = self._own(reply, state, reference, server_round)
        return known if known is not None else matcher(self.spec, reference=reference, candidate=state)

    def _early_reference(self, arriving: Iterator[Reply], global_state: State) -> tuple[State, deque[Reply]]:
        assert self.spec is not None
        if not isinstance(self.aligner, AlignTo):
            raise RebasinError(
                f"{type(self.aligner).__name__} needs all models at once: use AlignTo, or streaming=False"
            )
        if isinstance(self.aligner.reference, Mapping):
            return dict(self.aligner.reference), deque()
        first = deque(islice(arriving, LOOKED_AT))
        states = [move(reply.state, self.device) for reply in first]
        if not states or (self.aligner.reference == "auto" and started_from(self.spec, global_state, states)):
            return global_state, first
        return states[medoid(self.spec, states, _matcher(self.aligner))], first

    def _aligner(self, global_state: State, states: Sequence[State]) -> Aligner:
        """The aligner with its reference decided."""
        assert self.spec is not None
        if not isinstance(self.aligner, AlignTo) or self.aligner.reference != "auto":
            return self.aligner
        shared = started_from(self.spec, global_state, states)
        log(INFO, "aggregate_train: the reference is %s", "the global model" if shared else "the clients' medoid")
        return replace(self.aligner, reference=global_state if shared else "medoid")

    def _to_reference(
        self,
        replies: Sequence[Reply],
        states: Sequence[State],
        weights: Sequence[float],
        reference: State,
        server_round: int,
    ) -> Merge:
        """Each model by its node's own permutation, or matched to the reference where it has none.

        ``AlignTo`` with a state dict as reference gives the same; here what needs no matching costs one look.
        """
        assert self.spec is not None
        matcher = AlreadyAligned(_matcher(self.aligner))
        alignments = []
        for reply, state in zip(replies, states, strict=True):
            known = self._own(reply, state, reference, server_round)
            alignments.append(known or matcher(self.spec, reference=reference, candidate=state))
        aligned = tuple(
            state if alignment.permutation.is_identity else alignment.apply(state)
            for alignment, state in zip(alignments, states, strict=True)
        )
        trace = Trace((), 0.0, True, "aligned to one reference")
        return Merge(aligned, tuple(alignments), flower_mean(aligned, weights), trace)

    def _own(self, reply: Reply, state: State, reference: State, server_round: int) -> Alignment | None:
        """The alignment by the node's own permutation, None if it has none or has drifted away from it."""
        if self.frames is None or (permutation := self.frames.known(reply.node_id, server_round)) is None:
            return None
        assert self.spec is not None
        similarity = cosine(self.spec, reference, permutation.apply(state))
        if self.frames.rematch_below is not None and similarity < self.frames.rematch_below:
            return None
        return Alignment(permutation, similarity, Trace((), 0.0, True, "the node's own permutation"))


def _matcher(aligner: Aligner) -> Matcher:
    matcher: Matcher = getattr(aligner, "matcher", None) or WeightMatching()
    return matcher


def _chained(first: deque[Reply], rest: Iterator[Reply]) -> Iterator[Reply]:
    """The first ones, each let go of as it is handed on, then the rest."""
    while first:
        yield first.popleft()
    yield from rest
