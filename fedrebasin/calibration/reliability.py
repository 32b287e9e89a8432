"""Does a model's confidence mean what it says: reliability bins and the expected calibration error."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, logits_and_labels
from fedrebasin.state import State
from fedrebasin.sums import EXAMPLES, Sums, check_logits, demand, demand_data


@dataclass(frozen=True)
class ReliabilityBins:
    """Examples by confidence, drawn as in Git Re-Basin's Figures 11 and 13.

    Args:
        edges: shape ``(bins + 1,)``, from 0 to 1; bin i holds confidences in ``(edges[i], edges[i + 1]]``.
        counts: examples in each bin, shape ``(bins,)``.
        accuracy: their share that is classified correctly; NaN in an empty bin.
        confidence: their mean confidence; NaN in an empty bin.
    """

    edges: Tensor
    counts: Tensor
    accuracy: Tensor
    confidence: Tensor

    @property
    def expected_calibration_error(self) -> float:
        """``sum_b n_b / n |accuracy_b - confidence_b|``, in [0, 1] (Guo et al. 2017, Eq. 3); empty bins add nothing."""
        gaps = (self.accuracy - self.confidence).abs().nan_to_num()
        return float((gaps * self.counts).sum() / self.counts.sum())


def _demand_bins(bins: int) -> None:
    if bins < 1:
        raise CalibrationError(f"{bins} bins: at least one is needed")


def _bin_sums(logits: Tensor, labels: Tensor, bins: int) -> Tensor:
    """Examples, correct ones and total confidence by bin: float64, shape ``(3, bins)``."""
    confidence, predicted = torch.softmax(logits, 1).max(1)
    place = (torch.ceil(confidence * bins) - 1).clamp(0, bins - 1).long()
    values = torch.stack([torch.ones_like(confidence), (predicted == labels).double(), confidence])
    return torch.zeros(3, bins, dtype=torch.float64, device=logits.device).index_add_(1, place, values)


def _bins(sums: Tensor) -> ReliabilityBins:
    counts, correct, confidence = sums.cpu()
    edges = torch.linspace(0, 1, len(counts) + 1, dtype=torch.float64)
    return ReliabilityBins(edges, counts, correct / counts, confidence / counts)


def reliability_bins(logits: Tensor, labels: Tensor, bins: int = 15) -> ReliabilityBins:
    """Confidence against accuracy in bins of equal width.

    Args:
        logits: shape ``(n, classes)``, already multiplied by beta if they are to be.
        labels: shape ``(n,)``.
        bins: how many.

    Raises:
        CalibrationError: if logits and labels cannot be used (see :func:`fit_temperature`), or there is no bin.
    """
    _demand_bins(bins)
    return _bins(_bin_sums(*check_logits(logits, labels), bins))


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """The expected calibration error, in [0, 1]; see :func:`reliability_bins` for arguments and errors."""
    return reliability_bins(logits, labels, bins).expected_calibration_error


@dataclass(frozen=True)
class Reliability:
    """Reliability bins as a statistic: three numbers a bin leave a client.

    Args:
        bins: how many, of equal width.
        beta: the factor on the logits.

    Raises:
        CalibrationError: if there is no bin.
    """

    bins: int = 15
    beta: float = 1.0
    name: ClassVar[str] = "reliability"
    batch_statistics: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _demand_bins(self.bins)

    def from_batch(self, model: nn.Module, state: State, batch: Batch) -> dict[str, Tensor]:
        """Examples, correct ones and total confidence by bin."""
        logits, labels = check_logits(*logits_and_labels(model, state, batch))
        return {"bins": _bin_sums(self.beta * logits, labels, self.bins)}

    def validate(self, sums: Sums) -> None:
        """Refuse bins that no data can have.

        Raises:
            CalibrationError: if counts, correct examples and confidence contradict each other.
        """
        demand(sums, {"bins": (3, self.bins)}, self.name)
        counts, correct, confidence = sums["bins"]
        slack = 1e-6 * float(sums[EXAMPLES])
        if bool(((correct < 0) | (correct > counts) | (confidence < 0) | (confidence > counts + slack)).any()):
            raise CalibrationError(f"{self.name}: more correct or confident examples in a bin than examples")

    def finish(self, sums: Sums) -> ReliabilityBins:
        """The bins over all data."""
        demand_data(sums, self.name)
        return _bins(sums["bins"])
