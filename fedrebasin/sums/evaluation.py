"""Loss and accuracy as sums, and the ensemble that a merged model is measured against."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, demand_batches, demand_classes, logits_and_labels, mode_of
from fedrebasin.state import State, has_mean
from fedrebasin.sums.algebra import Sums, collect_sums, demand, demand_data, demand_rows


@dataclass(frozen=True)
class Score:
    """How good a model is: mean NLL in nats, accuracy in [0, 1], and over how many labels."""

    loss: float
    accuracy: float
    labels: int


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy as a statistic; ``beta`` is the factor on the logits."""

    beta: float = 1.0
    name: ClassVar[str] = "evaluation"
    batch_statistics: ClassVar[bool] = False

    def from_batch(self, model: nn.Module, state: State, batch: Batch) -> dict[str, Tensor]:
        """Total loss, correct predictions and labels."""
        logits, labels = logits_and_labels(model, state, batch)
        demand_classes(labels, logits.shape[1])
        logits = logits.double() * self.beta
        return {
            "loss": cross_entropy(logits, labels, reduction="sum"),
            "correct": (logits.argmax(1) == labels).double().sum(),
            "labels": torch.tensor(float(len(labels)), dtype=torch.float64, device=logits.device),
        }

    def validate(self, sums: Sums) -> None:
        """Refuse sums that no data can have.

        Raises:
            CalibrationError: see :func:`demand_losses`.
        """
        demand(sums, {"loss": (), "correct": (), "labels": ()}, self.name)
        demand_losses(sums, self.name)

    def finish(self, sums: Sums) -> Score:
        """Mean loss and accuracy."""
        demand_data(sums, self.name)
        labels = float(sums["labels"])
        return Score(float(sums["loss"]) / labels, float(sums["correct"]) / labels, int(labels))


def demand_losses(sums: Sums, name: str) -> None:
    """Refuse losses and correct predictions that no model has.

    A class that is not predicted has a probability of at most 1/2, and costs log 2 or more.

    Args:
        sums: ``loss`` and ``correct``, any shape; ``labels``, ``examples``.
        name: the statistic's, for the message.

    Raises:
        CalibrationError: if there are more labels than the examples can have, more correct predictions than labels, a
            negative loss, or one that is smaller than its mistakes cost.
    """
    labels, correct, loss = float(sums["labels"]), sums["correct"], sums["loss"]
    if labels < 1:
        raise CalibrationError(f"{name}: {labels:g} labels")
    demand_rows(sums, sums["labels"], f"{name}: labels")
    if bool((loss < 0).any()) or bool(((correct < 0) | (correct > labels)).any()):
        raise CalibrationError(f"{name}: a negative loss, or more correct predictions than labels")
    if bool((loss < (labels - correct) * math.log(2) * (1 - 1e-6)).any()):
        raise CalibrationError(f"{name}: a loss below what that many mistakes cost")


def evaluate(model: nn.Module, state: State, batches: Iterable[Batch], beta: float = 1.0) -> Score:
    """Mean loss and accuracy of a model with the tensors of ``state``.

    Args:
        model: the module; neither its parameters nor its mode change.
        state: its state dict.
        batches: ``(inputs, labels)``.
        beta: factor on the logits.

    Raises:
        CalibrationError: if there are no examples, or outputs and labels do not fit.
    """
    statistic = Evaluation(beta)
    return statistic.finish(collect_sums(statistic, model, state, batches))


def logits_of(model: nn.Module, state: State, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """All logits, shape ``(n, classes)``, and labels, shape ``(n,)``, on the state's device.

    Raises:
        CalibrationError: if there are no batches, or outputs and labels do not fit.
    """
    with mode_of(model):
        pairs = [logits_and_labels(model, state, batch) for batch in demand_batches(batches)]
    if not pairs:
        raise CalibrationError("there are no batches")
    return torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs])


def ensemble_logits(logits: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The weighted mean of the members' logits, each of shape ``(n, classes)`` (as Git Re-Basin's Figure 5).

    Raises:
        CalibrationError: if there is no member, the shapes differ, or the weights do not sum to a positive number.
    """
    if not logits:
        raise CalibrationError("an ensemble needs at least one member")
    if len({tuple(member.shape) for member in logits}) > 1:
        raise CalibrationError(f"members' shapes differ: {', '.join(str(tuple(member.shape)) for member in logits)}")
    if not all(has_mean(member) for member in logits):
        raise CalibrationError("the members' logits are integers where floats are needed")
    shares = torch.ones(len(logits)) if weights is None else torch.tensor(list(weights), dtype=torch.float64)
    if len(shares) != len(logits) or bool((shares < 0).any()) or not 0 < float(shares.sum()) < float("inf"):
        raise CalibrationError(f"{len(logits)} members need as many weights, none negative, with a positive sum")
    shares = (shares / shares.sum()).to(logits[0])
    return torch.einsum("m,mnc->nc", shares, torch.stack(list(logits)))


def ensemble_log_probabilities(logits: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The log of the weighted mean of the members' probabilities, shape ``(n, classes)``.

    Raises:
        CalibrationError: as :func:`ensemble_logits`.
    """
    ensemble_logits(logits, weights)  # refuses what cannot be used
    top = ensemble_logits([torch.log_softmax(member, 1) for member in logits], weights)
    # The mean of probabilities relative to the geometric mean, so that nothing underflows.
    relative = [(torch.log_softmax(member, 1) - top) for member in logits]
    highest = torch.stack(relative).max(0).values
    mean = ensemble_logits([torch.exp(member - highest) for member in relative], weights)
    return top + highest + torch.log(mean)
