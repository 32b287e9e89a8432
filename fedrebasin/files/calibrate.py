"""What is done to a merged model with data: new running statistics, a temperature, and figures on the rest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fedrebasin.calibration import batch_norms, fit_temperature, recalibrate_batch_norm
from fedrebasin.errors import MergeError
from fedrebasin.sums import evaluate, logits_of

#: Called with what is at work, how much is done, and of how much; None where nobody knows.
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, eq=False)
class Data:
    """Batches of inputs and labels for calibration and judgement.

    Args:
        name: as it was given.
        training: what running statistics are taken from.
        held_out: what inverse temperatures are fitted on; no figure is taken on it.
        reported: what figures are taken on.
        shape: of an example input with two samples, for the tracer, such as ``2,3,32,32`` or ``int64:2,16``; "" where
            nothing is traced.
    """

    name: str
    training: list[tuple[Tensor, Tensor]]
    held_out: list[tuple[Tensor, Tensor]]
    reported: list[tuple[Tensor, Tensor]]
    shape: str = ""

    @property
    def tokens(self) -> bool:
        """Whether every place of an example has a label, as in language models: the loss is log perplexity then."""
        return any(labels.dim() > 1 for _, labels in self.reported[:1])

    def counts(self) -> dict[str, int]:
        """Number of examples of each kind."""
        kinds = {"training": self.training, "held_out": self.held_out, "reported": self.reported}
        return {name: sum(len(labels) for _, labels in batches) for name, batches in kinds.items()}


@dataclass(frozen=True)
class Calibration:
    """What was done with data, and how good the merged model is on the part that nothing was fitted on.

    Args:
        data: as it was given.
        examples: that the figures are taken on.
        batch_norms: layers whose running statistics were taken anew.
        accuracy: in [0, 1].
        loss: mean NLL in nats.
        beta: inverse temperature, fitted on other examples; it is not folded into the weights.
        calibrated_loss: mean NLL of ``beta * logits``.
        accuracy_before: before BatchNorm was recalibrated.
        loss_before: likewise.
    """

    data: str
    examples: int
    batch_norms: int
    accuracy: float
    loss: float
    beta: float
    calibrated_loss: float
    accuracy_before: float
    loss_before: float


def calibrated(
    model: nn.Module, state: Mapping[str, Tensor], data: Data, progress: Progress
) -> tuple[dict[str, Tensor], Calibration]:
    """New running statistics from the training part, beta from the held-out part, figures on the rest.

    Args:
        model: the architecture.
        state: the merged model.
        data: batches.
        progress: is told.

    Raises:
        MergeError: if there are too few examples.
    """
    if not data.reported or not data.held_out:
        raise MergeError(f"data {data.name}: too few test examples to fit a temperature and report on others")
    model = model.eval()
    count = len(batch_norms(model))
    progress("calibration", 0, 3)
    before = evaluate(model, state, data.reported)
    progress("calibration", 1, 3)
    done = recalibrate_batch_norm(model, state, data.training) if count else dict(state)
    progress("calibration", 2, 3)
    after = evaluate(model, done, data.reported) if count else before
    beta = fit_temperature(*logits_of(model, done, data.held_out)).beta
    calibrated = evaluate(model, done, data.reported, beta)
    progress("calibration", 3, 3)
    examples = data.counts()["reported"]
    return done, Calibration(
        data.name,
        examples,
        count,
        *(after.accuracy, after.loss, beta, calibrated.loss),
        *(before.accuracy, before.loss),
    )
