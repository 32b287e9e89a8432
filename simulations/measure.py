"""How a model is judged: one row of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from statistics import fmean
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedrebasin import expected_calibration_error, fit_temperature

REFERENCES = ("mean-client", "best-client", "ensemble", "all-data")


@dataclass(frozen=True)
class Figures:
    """How good a model is, on the 80 % of the test set that beta is not fitted on.

    Args:
        accuracy: in [0, 1].
        loss: mean NLL of the model as it is delivered, in nats.
        calibrated_loss: mean NLL of ``beta * logits``, with beta fitted on the other 20 %.
        beta: inverse temperature.
        ece: expected calibration error of the model as it is delivered, in [0, 1].
    """

    accuracy: float
    loss: float
    calibrated_loss: float
    beta: float
    ece: float

    @staticmethod
    def mean(figures: Sequence[Figures]) -> Figures:
        """The mean of every figure."""
        return Figures(*(fmean(column) for column in zip(*map(astuple, figures), strict=True)))


@dataclass(frozen=True)
class Row:
    """One line of a comparison.

    Args:
        strategy: its name, or one of ``REFERENCES``.
        seed: of the simulation.
        round: after which the model was judged.
        figures: of the model.
        seconds: that the server spent on the round's aggregation.
        metrics: what the strategy reported.
    """

    strategy: str
    seed: int
    round: int
    figures: Figures
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain data, the figures beside the rest."""
        return {
            "strategy": self.strategy,
            "seed": self.seed,
            "round": self.round,
            **asdict(self.figures),
            "seconds": self.seconds,
            "metrics": dict(self.metrics),
        }


@dataclass(frozen=True)
class Judge:
    """Turns logits on the test set into figures.

    Args:
        labels: of the whole test set, shape ``(n,)``.
        held_out: indices that beta is fitted on.
        reported: indices that the figures are taken on.
    """

    labels: Tensor
    held_out: Tensor
    reported: Tensor

    def __call__(self, logits: Tensor, delivered_beta: float = 1.0) -> Figures:
        """The figures of a model.

        Args:
            logits: shape ``(n, classes)``, on the whole test set.
            delivered_beta: the factor that the strategy itself puts on them.
        """
        logits = logits.double()
        beta = fit_temperature(logits[self.held_out], self.labels[self.held_out]).beta
        logits, labels = logits[self.reported], self.labels[self.reported]
        delivered = delivered_beta * logits
        return Figures(
            accuracy=float((logits.argmax(1) == labels).double().mean()),
            loss=float(cross_entropy(delivered, labels)),
            calibrated_loss=float(cross_entropy(beta * logits, labels)),
            beta=beta,
            ece=expected_calibration_error(delivered, labels),
        )


class Stopwatch(Strategy):
    """A strategy that is timed while it aggregates.

    Args:
        strategy: the one to time.
        clock: seconds that pass.
    """

    def __init__(self, strategy: Strategy, clock: Any) -> None:
        self.strategy = strategy
        self.clock = clock
        self.seconds = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the strategy does."""
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As the strategy does; ``seconds`` is what it took."""
        started = self.clock()
        try:
            return self.strategy.aggregate_train(server_round, replies)
        finally:
            self.seconds = self.clock() - started

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the strategy does."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the strategy does."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """As the strategy does."""
        self.strategy.summary()
