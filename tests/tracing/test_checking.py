"""The check of a traced spec: wrong groups are found, right ones are kept, whatever the model does to its numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedrebasin import PermutationSpec, SpecError, register_rule, trace
from fedrebasin.tracing import largest_change
from tests.tracing.nets import Apply, mlp
from tests.tracing.oracle import example


def test_a_wrong_rule_is_found_by_the_check_and_the_group_dropped() -> None:
    @torch.library.custom_op("fedrebasin_tests::liar", mutates_args=())
    def liar(x: Tensor) -> Tensor:
        return x * torch.arange(x.shape[-1])

    @liar.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    @register_rule("fedrebasin_tests.liar")
    def _rule(call, x):
        return x.axes

    model = mlp(nn.ReLU(), nn.Linear(6, 5), Apply(liar), after=5)
    believed = trace(model, example((4, 3)), check=False)
    assert [group.size for group in believed.groups.values()] == [6, 5]
    with pytest.raises(SpecError, match="changes the function"):
        believed.check(model, example((4, 3)))
    spec = trace(model, example((4, 3)))
    assert [group.size for group in spec.groups.values()] == [6]
    assert spec.checked
    assert any("check" in row.reason and row.key == "2.weight" for row in spec.unpermuted)


class WithTable(nn.Module):
    """A table in single precision that the state dict does not hold, as position tables often are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), persistent=False)
        self.mix, self.read, self.out = nn.Linear(5, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.read(x) + self.mix(self.table).sum(0)))


def test_tables_outside_of_the_state_dict_are_checked_in_float64_too() -> None:
    model = WithTable()
    spec = trace(model, torch.randn(2, 4))
    assert spec.checked
    assert [group.size for group in spec.groups.values()] == [6]
    assert model.table.dtype == torch.float32


class Rooted(nn.Module):
    """The square root of each output and of what is moved: of negative numbers there is none."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.first, self.out, self.shift = nn.Linear(4, 6), nn.Linear(6, 8), shift

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(self.out(torch.relu(self.first(x))) - self.shift)


def test_entries_that_are_not_finite_hide_no_change() -> None:
    model = Rooted()
    spec = trace(model, torch.randn(5, 4))
    assert spec.checked
    assert [group.size for group in spec.groups.values()] == [6]
    wrong = PermutationSpec.from_axes(
        {"first.weight": ("P", None), "first.bias": (None,), "out.weight": (None, "P"), "out.bias": (None,)},
        like=model.state_dict(),
    )
    assert largest_change(wrong, model, torch.randn(5, 4), members=2, seed=0) > 1e-3


def test_outputs_none_of_which_is_finite_prove_nothing() -> None:
    with pytest.raises(SpecError, match=r"not finite.*check=False"):
        trace(Rooted(shift=1e9), torch.randn(5, 4))
    assert not trace(Rooted(shift=1e9), torch.randn(5, 4), check=False).checked


class Chaotic(nn.Module):
    """Every step of the logistic map doubles an error: rounding is blown up by 2 to the power of ``steps``."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.first, self.second, self.out = nn.Linear(3, 20), nn.Linear(20, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.second(torch.relu(self.first(x))))
        for _ in range(self.steps):
            x = 4 * x * (1 - x)
        return self.out(x)


def test_a_network_that_blows_up_rounding_keeps_its_groups() -> None:
    model, x = Chaotic(30), torch.randn(4, 3)
    spec = trace(model, x)
    assert largest_change(spec, model, x, members=2, seed=0) > 1e-9
    assert sorted(group.size for group in spec.groups.values()) == [8, 20]
    assert not any("failed" in lost.reason for lost in spec.unpermuted)
    spec.check(model, x)
    still = {key: (None,) * tensor.dim() for key, tensor in model.state_dict().items()}
    wrong = PermutationSpec.from_axes({**still, "first.weight": ("P", None), "first.bias": ("P",)})
    with pytest.raises(SpecError, match="changes the function"):
        wrong.check(model, x)


class OnlySingle(nn.Module):
    """Fails in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise RuntimeError("no kernel for double")
        return self.layer(x)


def test_a_model_that_cannot_be_checked_says_what_to_do() -> None:
    with pytest.raises(SpecError, match=r"OnlySingle cannot be run in float64.*no kernel.*check=False"):
        trace(OnlySingle(), torch.randn(1, 3))
