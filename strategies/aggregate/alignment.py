"""The models of a round's replies, brought into one order of units."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from logging import INFO, WARNING
from typing import TypeVar

import torch
from torch import Tensor

from fedrebasin import Aligner, Alignment, AlignTo, History, Merge, MergeError, PermutationSpec, WeightMatching
from fedrebasin.devices import move
from fedrebasin.errors import reason
from fedrebasin.merging import Placer, TwoStepAligner, cosine, two_step
from fedrebasin.state import State, distance, length
from fedrebasin.threads import ahead

from ..flower import log
from ..replies import Reply, alike, dissent, moving_integers, of_usual_length
from ..run import Frames
from .tally import Tally

Models = deque[tuple[Reply, State]]
Done = TypeVar("Done")

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
        barred: nodes whose models are no reference.
    """

    spec: PermutationSpec | None
    aligner: Aligner
    frames: Frames | None
    device: torch.device
    private: bool = False
    barred: frozenset[int] = frozenset()

    @property
    def elects(self) -> bool:
        """Whether the reference is chosen among all models."""
        aligner = two_step(self.aligner)
        return not aligner.needs_all and aligner.looks_at is None

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
        set_aside: Callable[[int, str], None],
        workers: int = 0,
        equal_integers: bool = False,
    ) -> Iterator[tuple[Reply, State, Alignment]]:
        """Each reply with its aligned model and how it was aligned, in the order given.

        Whatever an aligner or a matcher raises about a model sets its reply aside. An error about all of them at once
        is blamed on the longest model, and the others are tried again, until half of them are gone: then all are.

        Args:
            replies: at least one.
            global_state: the model that the server sent out; empty where none was seen.
            server_round: Flower's round.
            tally: what was done is counted there.
            set_aside: is told of replies that cannot be aligned, by node and reason.
            workers: matchings that run at the same time while replies arrive: at most one model more is held, and a
                reference is chosen from the first few. 0 where all replies are at hand.
            equal_integers: set models aside whose integers along groups are not the reference's.
        """

        def failed(node_id: int, why: str) -> None:
            tally.failed += 1
            set_aside(node_id, why)

        for reply, state, alignment, goal in self._placed(replies, global_state, server_round, tally, workers, failed):
            try:
                result = state if alignment.permutation.is_identity else alignment.apply(state)
                away = alignment.distance
                if away is None:
                    away = distance(goal, result, alignment.permutation.spec.voting(result))
            except Exception as error:
                failed(reply.node_id, reason(error))
                continue
            integers = moving_integers(self.spec, state) if equal_integers else ()
            if why := dissent({key: goal[key] for key in integers}, result):
                set_aside(reply.node_id, why)
                continue
            tally.add(alignment, away)
            yield reply, result, alignment

    def keep(self, replies: Iterable[Reply], alignments: Iterable[Alignment]) -> None:
        """Let the nodes of a round that counts keep their permutations, if nodes have such."""
        if self.frames is not None:
            for reply, alignment in zip(replies, alignments, strict=True):
                self.frames.learn(reply.node_id, alignment.permutation)

    def measured(self, tally: Tally) -> dict[str, float]:
        """What was done in a round, and how far nodes' permutations stayed what they were."""
        found = tally.metrics()
        if found and self.frames is not None:
            found["fixed-points"] = self.frames.fixed_points()
        return found

    def _placed(
        self,
        replies: Iterable[Reply],
        global_state: State,
        server_round: int,
        tally: Tally,
        workers: int,
        failed: Callable[[int, str], None],
    ) -> Iterator[tuple[Reply, State, Alignment, Mapping[str, Tensor]]]:
        """Each reply with its model, how that is aligned, and to what."""
        assert self.spec is not None
        spec, start = self.spec, move(global_state, self.device) if global_state else None
        if self.private and start is None:
            raise MergeError(
                "differential privacy: replies are aligned to the global model: call configure_train first"
            )
        aligner = self._aligner(start)
        arriving: Iterator[tuple[Reply, State]] = ((reply, move(reply.state, self.device)) for reply in replies)
        wanted = None if aligner.needs_all else aligner.looks_at
        first = deque(islice(arriving, LOOKED_AT if wanted is None and workers else wanted))
        started = time.perf_counter()
        if aligner.needs_all:
            seen = of_usual_length(alike(spec, [state for _, state in first]))
            first = deque(zip([reply for reply, _ in first], seen, strict=True))

        def begin(models: Models) -> Placer:
            shown = [] if self.private else [state for reply, state in models if reply.node_id not in self.barred]
            return aligner.begin(spec, start, shown)

        begun = _without_the_longest(begin, first, failed)
        tally.seconds += time.perf_counter() - started
        if begun is None:
            for reply, _ in arriving:
                failed(reply.node_id, "there is no reference to align it to")
            return
        placer = begun
        if placer.reference is not None and wanted != 0:
            chosen = "the global model" if placer.reference is start else "one of the clients' models"
            log(INFO, "aggregate_train: the reference is %s", chosen)

        def place(pair: tuple[Reply, State]) -> tuple[Reply, State, Alignment | Exception | None, float]:
            started = time.perf_counter()
            try:
                placed: Alignment | Exception | None = self._place(placer, *pair, server_round)
            except Exception as error:  # a stranger's numbers may be anything, and so may what a matcher says of them
                placed = error
            return *pair, placed, time.perf_counter() - started

        held: Models = deque()
        threads = 1 if placer.reference is None else max(workers, aligner.threads)
        for reply, state, alignment, seconds in ahead(place, _chained(first, arriving), threads, int(workers > 0)):
            tally.seconds += seconds
            if isinstance(alignment, Exception):
                failed(reply.node_id, reason(alignment))
            elif alignment is None or placer.reference is None:
                held.append((reply, state))
            else:
                own = move(reply.state, self.device) if aligner.needs_all else state
                yield reply, own, alignment, placer.reference
        count = len(held)

        def finish(models: Models) -> Merge:
            holding = placer if len(models) == count else _holding(begin(models), models)
            merge = holding.finish([reply.num_examples for reply, _ in models])
            if len(merge.alignments) != len(models):
                raise MergeError(f"the aligner gives {len(merge.alignments)} alignments of {len(models)} models")
            return merge

        started = time.perf_counter()
        merge = _without_the_longest(finish, held, failed) if held else None
        tally.seconds += time.perf_counter() - started
        if merge is not None:
            for (reply, _), alignment in zip(held, merge.alignments, strict=True):
                yield reply, move(reply.state, self.device), alignment, merge.merged

    def _aligner(self, global_state: State | None) -> TwoStepAligner:
        """What aligns this round: once nodes have permutations of their own, models are aligned to the global one."""
        if global_state is not None and self.frames is not None and self.frames.by_node:
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


def _without_the_longest(
    done: Callable[[Models], Done], models: Models, set_aside: Callable[[int, str], None]
) -> Done | None:
    """What is done with all models at once; while that fails, without the longest of them.

    Args:
        done: with the models that are left.
        models: those that are left: it is changed.
        set_aside: is told of the others.

    Returns:
        None where half of the models are not enough: all are set aside.
    """
    fewest = len(models) // 2
    while True:
        try:
            return done(models)
        except Exception as error:
            why = reason(error)
        log(WARNING, "aggregate_train: %d models cannot be aligned: %s", len(models), why)
        if len(models) - 1 < max(fewest, 1):
            for reply, _ in models:
                set_aside(reply.node_id, why)
            models.clear()
            return None
        worst = max(range(len(models)), key=lambda at: length(models[at][0].state))
        set_aside(models[worst][0].node_id, f"{why}, and it is the longest of {len(models)} models")
        del models[worst]


def _holding(placer: Placer, models: Models) -> Placer:
    """A placer that was shown all models again."""
    for _, state in models:
        placer.place(state)
    return placer


def _chained(first: deque[tuple[Reply, State]], rest: Iterable[tuple[Reply, State]]) -> Iterator[tuple[Reply, State]]:
    """The first ones, each let go of as it is handed on, then the rest."""
    while first:
        yield first.popleft()
    yield from rest
