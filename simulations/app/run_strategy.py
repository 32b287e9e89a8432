"""One strategy, run for all rounds and judged after each."""

from collections.abc import Callable
from dataclasses import asdict, replace

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid

from fedrebasin import RebasinError
from fedrebasin.strategies import Aligned

from ..report import Bin, Row
from ..training import Federation
from .judge import judge_of
from .moved_units import MovedUnits
from .stopwatch import Stopwatch
from .strategies import make_strategy

Progress = Callable[[str, int, int], None]


def run_strategy(
    name: str, federation: Federation, grid: Grid, progress: Progress | None = None
) -> tuple[list[Row], ArrayRecord]:
    """Run one strategy for all rounds and judge the global model after each; the rows and the last global model.

    Raises:
        RebasinError: if a round ends without a usable model.
    """
    config = federation.config
    report = progress or silent
    report(name, 0, config.rounds)
    moved = MovedUnits()
    strategy = make_strategy(name, federation, probes=(moved,))
    stopwatch = Stopwatch(strategy)
    judge, model = judge_of(federation), federation.server_model()
    rows: list[Row] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round == 0:
            return None
        model.load_state_dict(arrays.to_torch_state_dict())
        delivered = strategy.beta if isinstance(strategy, Aligned) and strategy.beta else 1.0
        logits = federation.predict(model)
        figures = judge(logits, delivered)
        last = server_round == config.rounds
        bins: tuple[Bin, ...] = judge.bins(logits, delivered) if last else ()
        moves = dict(moved.shares) if last else {}
        rows.append(Row(name, config.seed, server_round, figures, stopwatch.seconds, {}, bins, moves))
        report(name, server_round, config.rounds)
        return MetricRecord({key.replace("_", "-"): value for key, value in asdict(figures).items()})

    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=config.rounds,
        train_config=ConfigRecord(dict(config.to_flower())),
        evaluate_fn=evaluate,
    )
    if not result.arrays:
        raise RebasinError(f"strategy {name}: no round ended with a usable model")
    reported = result.train_metrics_clientapp
    return [_with_metrics(row, reported.get(row.round)) for row in rows], result.arrays


def silent(who: str, done: int, total: int) -> None:
    """Nobody watches."""


def _with_metrics(row: Row, metrics: MetricRecord | None) -> Row:
    numbers = {key: float(value) for key, value in (metrics or {}).items() if not isinstance(value, list)}
    return replace(row, metrics=numbers)
