"""How a model is judged: from logits on the test set to figures."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedrebasin import fit_temperature
from fedrebasin.calibration import reliability_bins

from ..report import Bin, Figures
from ..training import Federation


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


def judge_of(federation: Federation) -> Judge:
    """The judge on the federation's test set."""
    held_out, reported = federation.dataset.test_split()
    return Judge(federation.dataset.test_labels, held_out, reported)
