"""Stage: the models of a round's replies, brought into one order of units."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from logging import INFO

import torch
from flwr.common import log

from fedrebasin import Aligner, Alignment, AlignTo, Identity, Merge, PermutationSpec, RebasinError, ahead
from fedrebasin.devices import move
from fedrebasin.state import Mean, distance

from ..replies import Reply, State, alike, dissent, moving_integers, of_usual_length
from ..run import Frames
from .placing import Placing, matcher_of
from .tally import Tally

LOOKED_AT = 8  # replies that decide the reference when the others have yet to come


@dataclass
class Stage:
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
        return self.spec is None or isinstance(self.aligner, Identity)

    def all_at_once(
        self, replies: Sequence[Reply], global_state: State, server_round: int, tally: Tally
    ) -> tuple[Merge, State]:
        """All replies' models, aligned.

        Args:
            replies: at least one.
            global_state: the model that the server sent out.
            server_round: Flower's round.
            tally: what was done is counted there.

        Returns:
            the merge, and the weighted mean as Flower takes it.
        """
        assert self.spec is not None
        started = time.perf_counter()
        states = [move(reply.state, self.device) for reply in replies]
        weights = [reply.num_examples for reply in replies]
        mean = Mean("averaged", total=sum(weights))
        placing = self._placing(replies, states, move(global_state, self.device), server_round)
        if placing is None:
            merge = self.aligner(self.spec, of_usual_length(alike(self.spec, states)), weights)
            merge = replace(merge, states=tuple(a.apply(s) for a, s in zip(merge.alignments, states, strict=True)))
            for reply, alignment, state in zip(replies, merge.alignments, merge.states, strict=True):
                self._learn(reply, alignment)
                tally.add(alignment, distance(merge.merged, state, self.spec.voting(state)))
                mean.add(state, reply.num_examples)
        else:
            aligned, alignments = [], []
            for reply, state in zip(replies, states, strict=True):
                alignment, away = placing.place(reply.node_id, state)
                self._learn(reply, alignment)
                tally.add(alignment, away)
                aligned.append(state if alignment.permutation.is_identity else alignment.apply(state))
                alignments.append(alignment)
                mean.add(aligned[-1], reply.num_examples)
            merge = placing.merge(aligned, alignments, mean.finish())
        tally.seconds = time.perf_counter() - started
        return merge, mean.finish()

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

        The reference must be known before the last reply is there: it is the global model, or, if the first replies
        did not start from that, the medoid of these. Models whose integers along groups are not the reference's are
        handed to ``set_aside``, with the reason.
        """
        arriving = iter(replies)
        if self.idle:
            yield from ((reply, move(reply.state, self.device)) for reply in arriving)
            return
        first: deque[Reply] = deque()
        if not isinstance(self.aligner, AlignTo):
            raise RebasinError(
                f"{type(self.aligner).__name__} needs all models at once: use AlignTo, or streaming=False"
            )
        if not isinstance(self.aligner.reference, Mapping):
            first.extend(islice(arriving, LOOKED_AT))
        started = time.perf_counter()
        states = [move(reply.state, self.device) for reply in first]
        placing = self._placing(first, states, move(global_state, self.device), server_round)
        if placing is None:
            raise RebasinError(
                "streaming: the reference cannot be the position of a reply: use 'auto', or a state dict"
            )
        del states
        tally.seconds = time.perf_counter() - started

        def place(reply: Reply) -> tuple[Reply, Alignment, float, float]:
            state = move(reply.state, self.device)
            started = time.perf_counter()
            return reply, *placing.place(reply.node_id, state), time.perf_counter() - started

        for reply, alignment, away, seconds in ahead(place, _chained(first, arriving), workers, waiting=1):
            state = alignment.apply(move(reply.state, self.device))
            integers = {key: placing.reference[key] for key in moving_integers(self.spec, state)}
            if reason := dissent(integers, state):
                set_aside(reply.node_id, reason)
                continue
            self._learn(reply, alignment)
            tally.add(alignment, away, seconds)
            yield reply, state

    def _learn(self, reply: Reply, alignment: Alignment) -> None:
        if self.frames is not None:
            self.frames.learn(reply.node_id, alignment.permutation)

    def _placing(
        self, replies: Sequence[Reply], states: Sequence[State], global_state: State, server_round: int
    ) -> Placing | None:
        """How models are brought to one reference; None for an aligner that has none, or a position as reference."""
        assert self.spec is not None
        placing = Placing(self.spec, matcher_of(self.aligner), self.frames, server_round)
        if self.frames is not None and self.frames.by_node:
            return placing.to(global_state)
        if not isinstance(self.aligner, AlignTo) or isinstance(self.aligner.reference, int):
            return None
        if isinstance(self.aligner.reference, Mapping):
            return placing.to(self.aligner.reference)
        if not states or self.private:
            return placing.to(global_state)
        if self.aligner.reference == "auto":
            by_node = {reply.node_id: state for reply, state in zip(replies, states, strict=True)}
            shared = placing.started_from(global_state, by_node)
            log(INFO, "aggregate_train: the reference is %s", "the global model" if shared else "the clients' medoid")
            if shared:
                return placing.to(global_state)
        return placing.to_medoid(states)


def _chained(first: deque[Reply], rest: Iterator[Reply]) -> Iterator[Reply]:
    """The first ones, each let go of as it is handed on, then the rest."""
    while first:
        yield first.popleft()
    yield from rest
