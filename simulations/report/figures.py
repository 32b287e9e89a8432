"""What a comparison says of a model: figures, reliability, and the row that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from statistics import fmean
from typing import Any

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
        content = asdict(self)
        figures = content.pop("figures")
        return {**content, **figures}
