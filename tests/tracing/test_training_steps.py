"""Lightning modules: what is traced and proven is what trains them, and what they give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedrebasin import CoverageWarning, SpecError, TraceError
from fedrebasin.tracing import trace
from tests.tracing.oracle import example
from tests.tracing.test_usage import Autoencoder, sizes, through


class Metric(nn.Module):
    """As torchmetrics' metrics: looks at the numbers, which torch.export cannot, and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.seen.append(x)
        return x


class Lightning(Autoencoder):
    """What is Lightning's about a Lightning module; like those it can do little without a trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.metric = Metric()

    @property
    def trainer(self) -> Any:
        raise RuntimeError("there is no trainer")

    def log(self, *_: Any, **__: Any) -> None:
        self.trainer.log()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, _ = batch
        loss = functional.mse_loss(through(self, x), x)
        self.metric(loss)
        self.log("loss", loss.item(), prog_bar=True)
        return {"loss": loss}


def batch() -> tuple[Tensor, Tensor]:
    return example((3, 8)), torch.zeros(3, dtype=torch.long)


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_lightning_module_is_read_as_it_is_trained_and_as_it_is_called(kind, recwarn, caplog):
    model = Lightning()
    with caplog.at_level("INFO", "fedrebasin"):
        spec = trace(model, kind(batch()))
    (line,) = (record.getMessage() for record in caplog.records if record.name == "fedrebasin")
    assert line == "Lightning is a Lightning module: its training_step is traced, and its forward"
    assert spec.checked
    assert sizes(spec) == [12, 16]  # the encoder's outputs stay, since forward gives them
    assert not recwarn
    spec.check(model, kind(batch()))
    spec.check(model, batch()[0], forward=Autoencoder.forward)
    loose = trace(model, batch()[0], forward=through)
    with pytest.raises(SpecError, match="changes the function"):
        loose.check(model, batch())
    assert not model.metric.seen
    assert "log" not in vars(model)
    assert "forward" not in vars(model.metric)


def test_a_step_without_a_number_and_a_forward_that_takes_no_batch():
    class Other(Lightning):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.encoder(x) * mask.sum()

        def training_step(self, batch: dict[str, Tensor]) -> Any:
            return functional.mse_loss(through(self, batch["x"]), batch["x"])

    assert sizes(trace(Other(), {"x": batch()[0]})) == [3, 12, 16]
    assert sizes(trace(Other(), {"x": batch()[0], "mask": torch.ones(1)})) == [12, 16]


def test_what_a_training_step_writes_is_not_kept():
    class Momentum(Lightning):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            with torch.no_grad():
                for parameter in self.encoder.parameters():
                    parameter.mul_(0.9)
            return super().training_step(batch, batch_idx)

    model = Momentum()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert sizes(trace(model, batch())) == [12, 16]
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


class OnData(Lightning):
    """A step that torch.export cannot read."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)["loss"]
        return loss if loss > 0 else -loss


class ByHand(Lightning):
    """Manual optimisation."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.optimizers = self.trainer.optimizers


class Nothing(Lightning):
    """As a Lightning module is made: it has no step of its own."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None


@pytest.mark.parametrize(
    ("model", "inputs", "why"),
    [
        (Lightning(), example((3, 8)), "too many values to unpack"),
        (OnData(), batch(), "torch.export cannot read OnData"),
        (ByHand(), batch(), "there is no trainer"),
        (Nothing(), batch(), "gives no tensor"),
    ],
    ids=["inputs", "on data", "by hand", "nothing"],
)
def test_a_step_that_cannot_be_traced_is_told_with_what_it_leaves_unread(model, inputs, why):
    with pytest.warns(CoverageWarning, match=rf"{why}.*does not read decoder.0.weight; give a batch") as heard:
        spec = trace(model, inputs)
    assert "\n" not in str(heard[0].message)
    assert sizes(spec) == [16]
    assert "optimizers" not in vars(model)


def test_a_step_that_cannot_be_traced_is_no_matter_where_forward_reads_all(recwarn):
    class Whole(OnData):
        def forward(self, x: Tensor) -> Tensor:
            return through(self, x)

    assert sizes(trace(Whole(), batch())) == [3, 12, 16]
    assert not recwarn


def test_inputs_that_neither_takes_are_refused_in_a_line():
    with pytest.raises(
        TraceError, match=r"neither in training_step \(.*\) nor in forward \(.*\): give a batch"
    ) as told:
        trace(Lightning(), {"y": example((3, 8))})
    assert "\n" not in str(told.value)
