"""How a model is run when it is traced and proven: its outputs, its caches, a function of it."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedrebasin import PermutationSpec, SpecError, TraceError
from fedrebasin.tracing import trace
from fedrebasin.tracing.program import preserved
from tests.tracing.nets import Apply, mlp
from tests.tracing.oracle import example


@dataclass
class Output:
    """As libraries give it; torch.export knows nothing of it."""

    logits: Tensor
    hidden: Tensor | None = None
    loss: float = 0.0


class Holder:
    """An object that holds tensors, and itself."""

    def __init__(self, **found: Any) -> None:
        self.found, self.me = found, self


OUTPUTS = {
    "tuple": lambda logits, hidden: (logits, hidden),
    "dataclass": Output,
    "inside": lambda logits, hidden: {"first": [Output(logits)], "second": (Output(hidden),)},
    "object": lambda logits, hidden: Holder(logits=logits, hidden=hidden),
    "distribution": lambda logits, hidden: (torch.distributions.Normal(hidden, 1.0), logits),
}


class Net(nn.Module):
    """Two hidden layers, of which the second is an output too."""

    def __init__(self, give: Any = OUTPUTS["tuple"]) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 7), nn.Linear(7, 5), nn.Linear(5, 3)
        self.give = give

    def forward(self, x: Tensor) -> Any:
        hidden = self.second(torch.relu(self.first(x)))
        return self.give(self.head(hidden), hidden)


@pytest.mark.parametrize("give", OUTPUTS.values(), ids=OUTPUTS)
def test_every_tensor_that_comes_out_stays_whatever_it_comes_in(give):
    spec = trace(Net(give), example((3, 4)))
    assert spec.checked
    assert [group.size for group in spec.groups.values()] == [7]
    spec.check(Net(give), example((3, 4)))
    wrong = trace(Net(lambda logits, hidden: logits), example((3, 4)))
    with pytest.raises(SpecError, match="changes the function"):
        wrong.check(Net(give), example((3, 4)))


def test_keyword_inputs_in_any_mapping_are_varied_by_the_proof():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return self.head(self.body(x) * gate)

    x, gate = example((3, 4)), torch.ones(6)  # ones tell no units apart
    wrong = PermutationSpec.from_axes(
        {"body.weight": ("P", None), "body.bias": ("P",), "head.weight": (None, "P"), "head.bias": (None,)},
        Gated().state_dict(),
    )
    for inputs in ((x, gate), {"x": x, "gate": gate}, UserDict(x=x, gate=gate)):
        assert not trace(Gated(), inputs).groups
        with pytest.raises(SpecError, match="changes the function"):
            wrong.check(Gated(), inputs)


class Config:
    """What transformers keeps of a model, as far as it matters here."""

    def __init__(self, use_cache: bool) -> None:
        self.use_cache = use_cache


class Cached(nn.Module):
    """Gives what it remembers along with its output, if its configuration says so."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.net = Net(lambda logits, hidden: (logits, hidden) if config.use_cache else logits)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


@pytest.mark.parametrize("use_cache", [True, False])
def test_caches_are_switched_off_and_on_again(use_cache):
    config = Config(use_cache)
    model = nn.Sequential(Cached(config))  # one configuration may be many modules'
    model[0].net.config = config
    spec = trace(model, example((3, 4)))
    assert sorted(group.size for group in spec.groups.values()) == [5, 7]
    spec.check(model, example((3, 4)))
    assert config.use_cache is use_cache
    with pytest.raises(TraceError):
        trace(nn.Sequential(model, Apply(lambda x: x if x.sum() > 0 else -x)), example((3, 4)))
    assert config.use_cache is use_cache
    with preserved(model):
        assert not config.use_cache


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_loss_inside_is_read(reduction):
    class Labelled(Net):
        def forward(self, x: Tensor, labels: Tensor) -> Any:
            logits, _ = super().forward(x)
            return functional.cross_entropy(logits, labels, reduction=reduction), logits

    x, labels = example((5, 4)), torch.tensor([0, 1, 2, 1, 0])
    spec = trace(Labelled(), {"x": x, "labels": labels})
    assert sorted(group.size for group in spec.groups.values()) == [5, 7]


class Autoencoder(nn.Module):
    """Its forward is the encoder alone."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


def through(model: nn.Module, x: Tensor) -> Tensor:
    """All of an autoencoder."""
    return model.decoder(model.encoder(x))


def sizes(spec: PermutationSpec) -> list[int]:
    return sorted(group.size for group in spec.groups.values())


def test_a_function_of_the_model_is_read_and_proven_instead_of_its_forward():
    model, x = Autoencoder(), example((3, 8))
    assert sizes(trace(model, x)) == [16]
    spec = PermutationSpec.trace(model, x, forward=through)
    assert spec.checked
    assert spec.coverage > 0.9
    assert sizes(spec) == [3, 12, 16]  # what lies between the two has no order of its own
    spec.check(model, x, forward=through)
    with pytest.raises(SpecError, match="changes the function"):
        spec.check(model, x)
    assert sizes(trace(model, {"x": x}, forward=lambda model, x: (through(model, x), model(x)))) == [12, 16]


def test_a_function_of_a_state_dict_has_no_forward():
    spec = PermutationSpec.from_axes({"a": ("P",)})
    with pytest.raises(SpecError, match="forward= is for modules"):
        spec.check(lambda state: state["a"].sum(), {"a": torch.ones(3)}, forward=through)


def test_the_message_of_what_cannot_be_read_is_a_short_line():
    def fail(x: Tensor) -> Tensor:
        raise ValueError("word " * 1000 + "\nand more")

    with pytest.raises(TraceError, match=r"cannot read Sequential: ValueError: word.*from_axes") as told:
        trace(mlp(Apply(fail)), example((4, 3)))
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 400
