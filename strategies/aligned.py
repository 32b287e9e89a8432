"""Aligned: any Flower strategy, with the clients' hidden units permuted into agreement before it averages."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from logging import ERROR, INFO, WARNING

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedAvgM, QFedAvg, Strategy
from flwr.serverapp.strategy.fedopt import FedOpt

from fedrebasin import Aligner, AlignTo, Identity, Merge, PermutationSpec, RebasinError, SpecError, started_from

from .alignment_metrics import alignment_metrics
from .device import move, pick_device
from .records import RecordError, Template, to_state
from .round import Calibrator, Probe, Round
from .screening import Reply, Screened, is_a, screen
from .wire import QUERY

KEEPS_STATE = (FedAvgM, FedOpt)


class Aligned(Strategy):
    """Wraps a Flower strategy: replies are checked and aligned, then the strategy aggregates as it always does.

    With an aligner that leaves everything as it is, no calibrator and no probe, the wrapper is the wrapped strategy,
    bit for bit but for the dtypes, which are the global model's again.

    Args:
        strategy: the inner strategy (default: ``FedAvg()``).
        spec: the permutation spec of the model; needed by every aligner but ``Identity``.
        aligner: how models are brought into agreement (default: ``AlignTo()``). ``AlignTo(reference="auto")`` aligns to
            the global model if the clients measurably started from it, and to their medoid if they did not.
        calibrators: run in order on the aggregate.
        probes: measure the finished round; their floats land in Flower's ``Result``. One that fails is reported and
            changes nothing.
        device: where matching runs: ``"auto"`` takes the GPU where there is one.
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
        query_type: str = QUERY,
    ) -> None:
        self.strategy = FedAvg() if strategy is None else strategy
        self.spec = spec
        self.aligner: Aligner = AlignTo() if aligner is None else aligner
        self.calibrators = tuple(calibrators)
        self.probes = tuple(probes)
        self.device = pick_device(device)
        self.query_type = query_type
        self.beta: float | None = None
        self._arrays = ArrayRecord()
        self._template = Template({})
        self._asked: frozenset[int] = frozenset()
        self._grid: Grid | None = None
        if spec is None and not isinstance(self.aligner, Identity):
            raise SpecError(f"{type(self).__name__} needs spec=, as in PermutationSpec.trace(model, example_inputs)")
        rewriting = [type(part).__name__ for part in self.calibrators if part.rewrites_weights]
        if rewriting and is_a(self.strategy, KEEPS_STATE):
            raise RebasinError(
                f"{', '.join(rewriting)} rewrites weights after {type(self.strategy).__name__} has aggregated, which "
                "keeps its own copy of the global model and would undo it: use FedAvg inside, or buffers only"
            )

    # -- training --------------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember the outgoing model, then let the inner strategy choose the nodes."""
        self._template = Template.of(arrays)
        if self.spec is not None:
            self.spec = self.spec.bind(self._template.empty())
        self._arrays = ArrayRecord(dict(arrays))  # shares the bytes; a deep copy fails once the record was sent
        self._grid = grid
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._asked = frozenset(message.metadata.dst_node_id for message in messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen the replies, align the good ones, aggregate, calibrate, measure."""
        screened = screen(replies, self._template, self.strategy, self._asked)
        for bad in screened.bad:
            log(WARNING, "aggregate_train: set aside the reply of node %d: %s", bad.node_id, bad.reason)
        if not screened.good:
            return self._nothing_to_aggregate(server_round, screened)
        started = time.perf_counter()
        merge = self._align(screened.good)
        seconds = time.perf_counter() - started
        measured = {} if merge is None else alignment_metrics(merge, seconds)
        if merge is not None or screened.bad:
            measured["replies-set-aside"] = float(len(screened.bad))

        messages = [*self._messages(screened.good, merge), *screened.errors]
        arrays, metrics = self.strategy.aggregate_train(server_round, messages)
        if arrays is not None:
            try:
                arrays = self._template.restore(arrays)
            except RecordError as error:
                log(ERROR, "aggregate_train: %s; the last good global model is kept", error)
                arrays = None
        if arrays is not None and (self.calibrators or self.probes):
            arrays = self._finish(server_round, screened.good, merge, arrays, measured)
        return arrays, _with_metrics(metrics, measured)

    def _align(self, replies: Sequence[Reply]) -> Merge | None:
        if isinstance(self.aligner, Identity) or self.spec is None:
            return None
        states = [move(reply.state, self.device) for reply in replies]
        weights = [reply.num_examples for reply in replies]
        aligner = self.aligner
        if isinstance(aligner, AlignTo) and aligner.reference == "auto":
            global_state = move(to_state(self._arrays), self.device)
            shared = started_from(self.spec, global_state, states)
            log(INFO, "aggregate_train: the reference is %s", "the global model" if shared else "the clients' medoid")
            aligner = replace(aligner, reference=global_state if shared else "medoid")
        return aligner(self.spec, states, weights)

    def _messages(self, replies: Sequence[Reply], merge: Merge | None) -> list[Message]:
        """What the inner strategy gets: the replies with aligned arrays, in the global key order."""
        integers_as_floats = is_a(self.strategy, QFedAvg)  # which scales its copies of the arrays in place
        messages = []
        for position, reply in enumerate(replies):
            arrays = reply.arrays(self._template) if merge is None else self._template.encode(merge.states[position])
            if integers_as_floats:
                arrays = ArrayRecord(
                    {
                        key: array if self._template.forms[key].is_float else Array(array.numpy().astype(float))
                        for key, array in arrays.items()
                    }
                )
            messages.append(reply.carrying(arrays))
        return messages

    def _finish(
        self,
        server_round: int,
        replies: tuple[Reply, ...],
        merge: Merge | None,
        arrays: ArrayRecord,
        measured: dict[str, float],
    ) -> ArrayRecord:
        """Run calibrators, then probes; what they measure is added to ``measured``."""
        assert self._grid is not None
        current = Round(
            server_round=server_round,
            spec=self.spec,
            global_state=move(to_state(self._arrays), self.device),
            replies=replies,
            merge=merge,
            state=move(to_state(arrays), self.device),
            grid=self._grid,
            device=self.device,
            query_type=self.query_type,
        )
        for calibrator in self.calibrators:
            name = type(calibrator).__name__
            try:
                calibrated = calibrator(current)
            except RebasinError as error:
                log(WARNING, "%s: %s; the model stays as it was before", name, error)
                measured[f"{_kebab(name)}-failed"] = 1.0
                continue
            current = replace(current, state=calibrated.state)
            measured.update(calibrated.metrics)
        self.beta = measured.get("beta", self.beta)
        for probe in self.probes:
            name = type(probe).__name__
            try:
                measured.update(probe(current))
            except Exception as error:  # a measurement must never end a round
                log(WARNING, "%s failed in round %d: %s", name, server_round, error)
                measured[f"{_kebab(name)}-failed"] = 1.0
        return self._template.encode(current.state) if self.calibrators else arrays

    def _nothing_to_aggregate(
        self, server_round: int, screened: Screened
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        log(
            ERROR,
            "aggregate_train: no usable reply in round %d (%d set aside, %d failed); the global model stays as it was",
            server_round,
            len(screened.bad),
            len(screened.errors),
        )
        # The inner strategy still learns that the round is over: it logs errors, and privacy accountants count.
        arrays, metrics = self.strategy.aggregate_train(server_round, list(screened.errors))
        counted = {"replies-set-aside": float(len(screened.bad))} if screened.bad else {}
        return arrays, _with_metrics(metrics, counted)

    # -- evaluation and the rest: the inner strategy's own ---------------------------------------------------------

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the inner strategy does."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the inner strategy does."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log the settings of the alignment, then those of the inner strategy."""
        log(INFO, "\t├──> Alignment settings:")
        log(INFO, "\t│\t├── Aligner: %s", self.aligner)
        if self.spec is not None:
            log(INFO, "\t│\t├── Permutation groups: %d", len(self.spec.groups))
        for part in (*self.calibrators, *self.probes):
            log(INFO, "\t│\t├── %s", type(part).__name__)
        log(INFO, "\t│\t└── Device: %s", self.device)
        self.strategy.summary()


def _with_metrics(metrics: MetricRecord | None, measured: dict[str, float]) -> MetricRecord | None:
    if not measured:
        return metrics
    merged = MetricRecord() if metrics is None else MetricRecord(dict(metrics))
    for key, value in measured.items():
        merged[f"rebasin-{key}" if key != "beta" else key] = float(value)
    return merged


def _kebab(name: str) -> str:
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("-")
