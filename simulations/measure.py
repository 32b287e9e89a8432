"""How a model is judged: one row of a comparison."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from statistics import fmean
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedrebasin import fit_temperature, reliability_bins

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
class Bin:
    """Examples of like confidence, in one of several bins of equal width.

    Args:
        count: of examples.
        accuracy: their share that is classified correctly; None without any.
        confidence: their mean confidence; None without any.
    """

    count: int
    accuracy: float | None
    confidence: float | None


@dataclass(frozen=True)
class Row:
    """One line of a comparison.

    Args:
        strategy: its name, or one of ``REFERENCES``.
        seed: of the simulation.
        round: after which the model was judged.
        figures: of the model.
        seconds: that the aggregation took, requests to the clients included.
        metrics: what the strategy reported.
        reliability: confidence against accuracy of the model as it is delivered, after the last round.
        moved: the share of units that changed place, by group, in the last round.
    """

    strategy: str
    seed: int
    round: int
    figures: Figures
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    reliability: tuple[Bin, ...] = ()
    moved: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain data, the figures beside the rest."""
        return {
            "strategy": self.strategy,
            "seed": self.seed,
            "round": self.round,
            **asdict(self.figures),
            "seconds": self.seconds,
            "metrics": dict(self.metrics),
            "reliability": [asdict(one) for one in self.reliability],
            "moved": dict(self.moved),
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
        beta = fit_temperature(*_with_one_error(logits[self.held_out], self.labels[self.held_out])).beta
        logits, labels = logits[self.reported], self.labels[self.reported]
        delivered = delivered_beta * logits
        return Figures(
            accuracy=float((logits.argmax(1) == labels).double().mean()),
            loss=float(cross_entropy(delivered, labels)),
            calibrated_loss=float(cross_entropy(beta * logits, labels)),
            beta=beta,
            ece=reliability_bins(delivered, labels).expected_calibration_error,
        )

    def bins(self, logits: Tensor, delivered_beta: float = 1.0) -> tuple[Bin, ...]:
        """Confidence against accuracy of a model, on the reported examples; arguments as for the figures."""
        found = reliability_bins(delivered_beta * logits[self.reported].double(), self.labels[self.reported])
        columns = zip(found.counts.tolist(), found.accuracy.tolist(), found.confidence.tolist(), strict=True)
        return tuple(Bin(int(n), accuracy, sure) if n else Bin(0, None, None) for n, accuracy, sure in columns)


def _with_one_error(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The examples; if none of them is misclassified, one more with the median margin that counts as wrong.

    Without an error the best beta is infinite, and one error among the reported examples an infinite loss. What n
    examples without an error do say is that errors are rarer than about 1 in n (the rule of succession).
    """
    top, order = logits.topk(2, dim=1)
    if not torch.equal(order[:, 0], labels):
        return logits, labels
    typical = int((top[:, 0] - top[:, 1]).argsort()[len(labels) // 2])
    extra = slice(typical, typical + 1)
    return torch.cat([logits, logits[extra]]), torch.cat([labels, order[extra, 1]])


class Stopwatch:
    """Times a strategy's aggregation: ``seconds`` is what the last one took.

    It watches the strategy's own method instead of wrapping the strategy, whose name and settings stay in Flower's log.

    Args:
        strategy: the one to time.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.seconds = 0.0
        self._aggregate = strategy.aggregate_train
        strategy.aggregate_train = self._timed  # type: ignore[method-assign]

    def _timed(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        started = time.perf_counter()
        try:
            return self._aggregate(server_round, replies)
        finally:
            self.seconds = time.perf_counter() - started
