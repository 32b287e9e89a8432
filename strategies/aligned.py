"""Aligned: any Flower strategy, with the clients' hidden units permuted into agreement before it averages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from logging import ERROR, INFO, WARNING
from pathlib import Path
from typing import Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from fedrebasin import Aligner, AlignTo, PermutationSpec
from fedrebasin.devices import move, pick_device
from fedrebasin.spec import coverage_gaps

from .aggregate import Aggregate, Aggregation, ReplyAlignment
from .combinations import check_outside, check_parts, is_private
from .replies import RecordError, Screener, StreamingGrid, Template, to_state
from .round import Calibrator, Probe, Round, finish
from .run import Frames, Journal
from .sums import QUERY


class Aligned(Strategy):
    """Wraps a Flower strategy: replies are checked and aligned, then the strategy aggregates as it always does.

    With an aligner that leaves everything as it is, no calibrator and no probe, the wrapper is the wrapped strategy,
    bit for bit but for the dtypes, which are the global model's again.

    Args:
        strategy: the inner strategy (default: ``FedAvg()``).
        spec: the permutation spec of the model; needed by every aligner but ``Identity``.
        aligner: how models are brought into agreement (default: ``AlignTo()``). ``AlignTo(reference="auto")`` aligns to
            the global model if the clients measurably started from it, and to their medoid if they did not; with
            differential privacy inside it is the global model always.
        calibrators: run in order on the aggregate.
        probes: measure the finished round; their floats land in Flower's ``Result``. One that fails is reported and
            changes nothing.
        device: where matching runs: ``"auto"`` takes the GPU where there is one.
        frame: ``"client"`` finds each node's permutation once and from then on sends it the global model in its own
            coordinates (see :class:`Frames`, which can be given for its settings).
        streaming: take replies as they arrive and let go of each: memory for a few models, however many replies there
            are. Strategies that need all replies get them all; probes and calibrators see no single models.
        workers: matchings that run at the same time while streaming.
        checkpoint: a folder to write a checkpoint to after each round.
        resume: go on from the newest checkpoint in that folder.
        query_type: the message type of the requests for sums. ``"train"`` reaches clients whose app has only
            :class:`StatisticsMod` and no query handler: Flower runs mods only around functions that the app has.

    Raises:
        RebasinError: if the parts do not fit together.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        spec: PermutationSpec | None = None,
        aligner: Aligner | None = None,
        calibrators: Sequence[Calibrator] = (),
        probes: Sequence[Probe] = (),
        device: str | torch.device = "auto",
        frame: Literal["server", "client"] | Frames = "server",
        streaming: bool = False,
        workers: int = 2,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        query_type: str = QUERY,
    ) -> None:
        self.strategy = FedAvg() if strategy is None else strategy
        self.aligner: Aligner = AlignTo() if aligner is None else aligner
        self.calibrators = tuple(calibrators)
        self.probes = tuple(probes)
        self.streaming = streaming
        self.workers = workers
        self.resume = resume
        self.query_type = query_type
        self.beta: float | None = None
        frames = frame if isinstance(frame, Frames) else Frames() if frame == "client" else None
        self.stage = ReplyAlignment(spec, self.aligner, frames, pick_device(device), private=is_private(self.strategy))
        self._journal = None if checkpoint is None else Journal(Path(checkpoint), self.strategy)
        self._done = 0
        self._arrays = ArrayRecord()
        self._template = Template({})
        self._asked: dict[int, Metadata] = {}
        self._grid: Grid | None = None
        check_parts(self)

    @property
    def spec(self) -> PermutationSpec | None:
        """The permutation spec, with its sizes once a model was seen."""
        return self.stage.spec

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds: Flower's own loop, from the last checkpoint where one is to be resumed.

        A spec that moves little is warned of, see :func:`fedrebasin.coverage_gaps`.
        """
        self._done, arrays = 0, initial_arrays
        self._bind(initial_arrays)
        if not self.stage.idle and self.spec is not None and (missing := coverage_gaps(self.spec)):
            log(WARNING, "%s: %s", type(self).__name__, missing)
        if self._journal is not None and self.resume:
            self._done, arrays, self.beta = self._journal.resume(initial_arrays, self.spec, self.stage.frames)
        done = self._done
        evaluate = None if evaluate_fn is None else lambda number, model: evaluate_fn(number + done, model)
        result = super().start(
            StreamingGrid(grid) if self.streaming else grid,
            arrays,
            max(num_rounds - done, 0),
            timeout,
            train_config,
            evaluate_config,
            evaluate,
        )
        self._done = 0
        return result if self._journal is None else self._journal.completed(result, done, arrays)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember the outgoing model, then let the inner strategy choose the nodes.

        Raises:
            RebasinError: if another strategy wraps this one.
        """
        check_outside(self)
        self._bind(arrays)
        self._arrays = ArrayRecord(dict(arrays))  # shares the bytes; a deep copy fails once the record was sent
        self._grid = grid
        messages = list(self.strategy.configure_train(server_round + self._done, arrays, config, grid))
        self._asked = {message.metadata.dst_node_id: message.metadata for message in messages}
        return self._in_own_coordinates(messages, arrays)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen the replies, align the good ones, aggregate, calibrate, measure, write down."""
        server_round += self._done
        screener = Screener(self._template, self.strategy, self._asked)
        looked_at = not self.stage.idle or self.calibrators or self.probes
        global_state = to_state(self._arrays) if looked_at else {}
        aggregation = Aggregation(self.stage, self.strategy, screener, self._template, global_state, server_round)
        taken = aggregation.one_by_one(replies, self.workers) if self.streaming else aggregation.at_once(replies)
        arrays = self._checked(server_round, taken, screener)
        measured = dict(taken.measured)
        if taken.measured or screener.bad:
            measured["replies-set-aside"] = float(len(screener.bad))
        if arrays is not None and (self.calibrators or self.probes):
            assert self._grid is not None
            current = Round(
                server_round=server_round,
                spec=self.spec,
                global_state=move(global_state, self.stage.device),
                replies=taken.replies,
                merge=taken.merge,
                state=move(to_state(arrays), self.stage.device),
                grid=self._grid,
                device=self.stage.device,
                query_type=self.query_type,
            )
            arrays = finish(current, self.calibrators, self.probes, arrays, self._template, measured)
            self.beta = measured.get("beta", self.beta)
        metrics = with_metrics(taken.metrics, measured)
        if self._journal is not None:
            kept = self._arrays if arrays is None else arrays
            self._journal.write(server_round, kept, metrics, self.stage.frames, self.beta)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the inner strategy does."""
        messages = list(self.strategy.configure_evaluate(server_round + self._done, arrays, config, grid))
        return self._in_own_coordinates(messages, arrays)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the inner strategy does."""
        return self.strategy.aggregate_evaluate(server_round + self._done, replies)

    def summary(self) -> None:
        """Log the settings of the alignment, then those of the inner strategy."""
        log(INFO, "\t├──> Alignment settings:")
        log(INFO, "\t│\t├── Aligner: %s", type(self.aligner).__name__)
        if self.spec is not None:
            log(INFO, "\t│\t├── Permutation groups: %d", len(self.spec.groups))
        for part in (*self.calibrators, *self.probes):
            log(INFO, "\t│\t├── %s", type(part).__name__)
        log(INFO, "\t│\t└── Device: %s", self.stage.device)
        self.strategy.summary()

    def _bind(self, arrays: ArrayRecord) -> None:
        self._template = Template.of(arrays)
        if self.stage.spec is not None:
            self.stage.spec = self.stage.spec.bind(self._template.empty())

    def _in_own_coordinates(self, messages: list[Message], arrays: ArrayRecord) -> list[Message]:
        frames = self.stage.frames
        return messages if frames is None else frames.outgoing(messages, arrays, self._template)

    def _checked(self, server_round: int, taken: Aggregate, screener: Screener) -> ArrayRecord | None:
        """The aggregate in the global dtypes; None, so that the last good model is kept, if there is none to use."""
        if not taken.replies:
            log(
                ERROR,
                "aggregate_train: no usable reply in round %d (%d set aside, %d failed); the global model stays",
                server_round,
                len(screener.bad),
                len(screener.errors),
            )
        if taken.arrays is None:
            return None
        try:
            return self._template.restore(taken.arrays)
        except RecordError as error:
            log(ERROR, "aggregate_train: %s; the last good global model is kept", error)
            return None


def with_metrics(metrics: MetricRecord | None, measured: dict[str, float]) -> MetricRecord | None:
    """Flower's metrics and our own, whose names begin with ``rebasin-`` (but for ``beta``)."""
    if not measured:
        return metrics
    merged = MetricRecord() if metrics is None else MetricRecord(dict(metrics))
    for key, value in measured.items():
        merged[key if key == "beta" else f"rebasin-{key}"] = float(value)
    return merged
