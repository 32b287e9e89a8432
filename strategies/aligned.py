"""Aligned: any Flower strategy, with the clients' hidden units permuted into agreement before it averages."""

import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from logging import INFO, WARNING
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from fedrebasin import Aligner, AlignTo, PermutationSpec, RebasinError
from fedrebasin.devices import move, pick_device
from fedrebasin.spec import coverage_gaps

from .aggregate import Aggregation, ReplyAlignment
from .combinations import check_parts, demand_whole, former_api, inside_another, suggestion
from .driving import Call, demand_resumable, drive
from .flower import log
from .options import SETTINGS
from .replies import Proportions, Screener, StreamingGrid, demand_ratio, to_state
from .round import Calibrator, Probe, Round, calibrate, measure, with_metrics
from .run import Checkpoints, Frames, Memory, Run
from .sums import QUERY
from .tracking import Log, RoundMetrics
from .traits import traits_of, weighted_by


class Aligned(Strategy):
    """Wraps a Flower strategy: replies are checked and aligned, then the strategy aggregates as it always does.

    With an aligner that leaves everything as it is, no calibrator and no probe, the wrapper is the wrapped strategy,
    bit for bit but for the dtypes, which are the global model's again, and for replies that are not finite, or that one
    of Flower's own strategies could not take, which are set aside; nothing else is judged or capped. Its settings
    cannot be changed, other attributes and methods are the inner strategy's. What lasts for a run begins anew with each
    ``start``, the inner strategy's numbers and arrays too (``keep_memory``).

    Args:
        strategy: the inner strategy (default: ``FedAvg()``).
        spec: the permutation spec of the model, of which a part may be sent; needed by every aligner but ``Identity``.
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
        max_weight_ratio: how many times the median of the others' examples a reply may count for; None for any number.
            No weight is capped where nothing is aligned or calibrated, nor with differential privacy inside.
        checkpoint: a folder to write a checkpoint to after each round. It belongs to one run, which holds a lock on it:
            a folder with checkpoints of another is refused.
        keep_memory: whether the inner strategy keeps its momenta, its copy of the global model and whatever else it
            remembers over another ``start``, as Flower's strategies do by themselves.
        resume: go on with the run whose checkpoints are in that folder, from the newest that is whole.
        query_type: the message type of the requests for sums. ``"train"`` reaches clients whose app has only
            :class:`StatisticsMod` and no query handler: Flower runs mods only around functions that the app has.
        log: called when a round is over with its number and its metrics as floats, ``train/NAME``, ``evaluate/NAME``
            and ``server/NAME``: any function, :class:`TensorBoardLogger`, :class:`WandbLogger`, :class:`MLflowLogger`.
            What it raises is reported and changes nothing.
        sends: what the clients send, their ``"model"`` or its ``"update"``. Then P(model + update) - model goes on to
            the inner strategy, which has to return a model: the one that it sent plus the mean of these.

    Raises:
        RebasinError: if the parts do not fit together.
    """

    aligns: ClassVar[bool] = True

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
        max_weight_ratio: float | None = 1000.0,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        keep_memory: bool = False,
        query_type: str = QUERY,
        log: Log | None = None,
        sends: Literal["model", "update"] = "model",
    ) -> None:
        self.strategy = FedAvg() if strategy is None else strategy
        self.aligner: Aligner = AlignTo() if aligner is None else aligner
        self.calibrators = tuple(calibrators)
        self.probes = tuple(probes)
        self.device = pick_device(device)
        self.streaming = streaming
        self.workers = workers
        self.max_weight_ratio = max_weight_ratio
        self.resume = resume
        self.keep_memory = keep_memory
        self.query_type = query_type
        self.log = log
        self.sends = sends
        self._spec = spec
        self._frames = frame if isinstance(frame, Frames) else Frames() if frame == "client" else None
        self._checkpoints = None if checkpoint is None else Checkpoints(Path(checkpoint), self.strategy)
        self._memory = Memory(self.strategy)
        self._private = traits_of(self.strategy).private
        parts = self.strategy, spec, self.aligner, self.calibrators, self.probes
        check_parts(type(self).__name__, *parts, streaming, sends)
        demand_ratio(max_weight_ratio)
        if resume:
            demand_resumable(self.strategy)
        self._run = Run(spec, self._frames)
        self._round_metrics = RoundMetrics(log)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in SETTINGS and name in vars(self):
            raise AttributeError(f"{name} is a setting of {type(self).__name__}: make another one with it")
        if name in SETTINGS or name.startswith("_") or name in vars(self) or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            setattr(self.strategy, name, value)

    def __getattr__(self, name: str) -> Any:
        """What the wrapper has not is the inner strategy's, to be read and, if it is public, to be set."""
        if name.startswith("__") or "strategy" not in vars(self):  # not made yet, or just being copied
            raise AttributeError(name)
        return getattr(self.strategy, name)

    @property
    def spec(self) -> PermutationSpec | None:
        """The permutation spec, with its sizes once a model was seen."""
        return self._run.spec

    @property
    def alignment(self) -> ReplyAlignment:
        """What aligns, to what, and where."""
        return ReplyAlignment(self._run.spec, self.aligner, self._run.frames, self.device, self._private)

    @property
    def is_transparent(self) -> bool:
        """Whether nothing is aligned, calibrated or measured."""
        return not (self._changes or self.probes)

    @property
    def _changes(self) -> bool:
        """Whether something else than the inner strategy changes models."""
        return bool(self.calibrators) or not self.alignment.idle

    @property
    def beta(self) -> float | None:
        """The inverse temperature that a calibrator of the last run has found."""
        return self._run.beta

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds: the inner strategy's own loop, from the last checkpoint where one is to be resumed.

        It takes what the inner strategy's ``start`` takes, first of all Flower's ``grid, initial_arrays, num_rounds=3,
        timeout=3600, train_config=None, evaluate_config=None, evaluate_fn=None``, and returns what that returns. A
        spec that moves little is warned of, see :func:`fedrebasin.coverage_gaps`.
        """
        call = Call(self.strategy, args, kwargs)
        if self._frames is not None:
            self._frames.forget()
        if not self.keep_memory and (forgotten := self._memory.begin()):
            log(INFO, "the inner strategy begins anew: %s (keep_memory)", ", ".join(forgotten))
        self._run = run = Run(self._spec, self._frames)
        if call.arrays is not None:
            run.see(call.arrays, quiet=self.alignment.idle, as_it_is=not self._changes)
        demand_whole(run.absent, (*self.calibrators, *self.probes))
        if not self.alignment.idle and run.spec is not None and (missing := coverage_gaps(run.spec)):
            log(WARNING, "%s: %s", type(self).__name__, missing)
        metrics, checkpoints = self._round_metrics, self._checkpoints
        if (evaluate_fn := call.get("evaluate_fn")) is not None:
            call.put("evaluate_fn", metrics.of_server(evaluate_fn, run.number))
        if self.streaming:
            call.put("grid", StreamingGrid(call.get("grid")))
        with nullcontext() if checkpoints is None else checkpoints.opened(run, call.arrays, self.resume) as arrays:
            if arrays is not None and run.done:
                call.go_on(arrays, run.done)
            run.started = True
            try:
                result = drive(self, self.strategy, call)
                return run.completed(result, arrays) if arrays is not None and isinstance(result, Result) else result
            finally:
                metrics.flush()
                run.started = False

    def initialize_parameters(self, client_manager: object) -> NoReturn:
        """What a server of Flower's former API calls first: it cannot run this strategy.

        Raises:
            RebasinError: with how to move on.
        """
        raise RebasinError(former_api(f"{type(self).__name__} was given to a Server or ServerApp of flwr.server"))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember the outgoing model, then let the inner strategy choose the nodes.

        Raises:
            RebasinError: if another strategy wraps this one.
        """
        run = self._run
        if run.inside and (self.streaming or not self.is_transparent):
            raise RebasinError(inside_another(type(self).__name__, self.strategy))
        self._round_metrics.flush()
        run.see(arrays, quiet=self.alignment.idle, as_it_is=not self._changes)
        messages = list(self.strategy.configure_train(run.number(server_round), arrays, config, grid))
        return run.ask(messages, arrays, grid, quiet=self.alignment.idle)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen the replies, align the good ones, aggregate, calibrate, measure, write down."""
        run = self._run
        replies, server_round = run.seeing(replies, as_it_is=not self._changes), run.number(server_round)
        alignment = self.alignment
        global_state = {} if self.is_transparent or not run.template.forms else to_state(run.arrays)
        proportions = None
        updates = run.updates() if self.sends == "update" and not self.is_transparent else None
        if self._changes:
            weights = weighted_by(self.strategy), self.max_weight_ratio
            proportions = Proportions(global_state, *weights, private=self._private)
        screener = Screener(run.template, self.strategy, run.asked, proportions, updates, run.say)
        parts = self.strategy, screener, run.template, global_state, server_round
        aggregation = Aggregation(alignment, *parts, updates, judged=self._changes)
        taken = aggregation.aggregate(replies, self.workers if self.streaming else None)
        state, measured = taken.state, dict(taken.measured)
        current: Round | None = None
        if state is not None and (self.calibrators or self.probes):
            current = Round(
                server_round=server_round,
                spec=run.spec,
                global_state=move(global_state, self.device),
                replies=taken.replies,
                merge=taken.merge,
                state=move(state, self.device),
                grid=run.grid,
                device=self.device,
                query_type=self.query_type,
                robust=aggregation.traits.robust,
                aggregate=partial(aggregation.of_models, taken) if aggregation.traits.robust else None,
            )
            current, reported = calibrate(current, self.calibrators)
            state, measured = current.state, measured | reported
            run.beta = measured.get("beta", run.beta)
        if advice := suggestion(self.strategy, self.calibrators, alignment.idle, state or {}):
            run.say("statistics", WARNING, advice)
        arrays = taken.arrays if state is None else run.template.encode(state)
        if current is not None:
            measured |= measure(current, self.probes)
        metrics = with_metrics(taken.metrics, measured)
        if metrics is not None:
            run.metrics[server_round] = dict(metrics)
        self._round_metrics.add(server_round, "train", metrics)
        if self._checkpoints is not None:
            self._checkpoints.write(run, server_round, run.arrays if arrays is None else arrays)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the inner strategy does."""
        run = self._run
        messages = list(self.strategy.configure_evaluate(run.number(server_round), arrays, config, grid))
        return run.in_own_order(messages)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the inner strategy does."""
        server_round = self._run.number(server_round)
        metrics = self.strategy.aggregate_evaluate(server_round, replies)
        self._round_metrics.add(server_round, "evaluate", metrics)
        return metrics

    def summary(self) -> None:
        """Log the settings of the alignment, then those of the inner strategy."""
        # A loop asks for it before the first round, whosever it is: this one's, one around it, one derived from it.
        self._run.inside = not self._run.started and type(self).start is Aligned.start
        log(INFO, "\t├──> Alignment settings:")
        log(INFO, "\t│\t├── Aligner: %s", type(self.aligner).__name__)
        if self.spec is not None:
            log(INFO, "\t│\t├── Permutation groups: %d", len(self.spec.groups))
        for part in (*self.calibrators, *self.probes):
            log(INFO, "\t│\t├── %s", type(part).__name__)
        log(INFO, "\t│\t└── Device: %s", self.device)
        self.strategy.summary()
