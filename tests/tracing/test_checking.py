"""The check of a traced spec: wrong groups are found, right ones are kept, whatever the model does to its numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedrebasin import PermutationSpec, SpecError
from fedrebasin.tracing import largest_change, register_rule, trace
from fedrebasin.tracing.proof.members import revealing_members
from tests.tracing.nets import Apply, Branches, mlp
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
    assert largest_change(wrong, model, torch.randn(5, 4), seed=0).size > 1e-3


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
    assert largest_change(spec, model, x, seed=0).size > 1e-9
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
        self.layer, self.out = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise RuntimeError("no kernel for double")
        return self.out(self.layer(x).relu())


def test_a_model_without_float64_kernels_is_checked_in_its_own_precision() -> None:
    with pytest.warns(
        UserWarning, match=r"OnlySingle cannot be run in float64 \(.*no kernel for double\).*float32.*0\.001"
    ):
        spec = trace(OnlySingle(), torch.randn(2, 3))
    assert spec.checked
    assert [group.size for group in spec.groups.values()] == [5]
    wrong = PermutationSpec.from_axes(
        {"layer.weight": ("P", None), "layer.bias": (None,), "out.weight": (None, "P"), "out.bias": (None,)}
    )
    with pytest.warns(UserWarning, match="float32"), pytest.raises(SpecError, match="changes the function"):
        wrong.check(OnlySingle(), torch.randn(2, 3))


def test_a_model_that_cannot_be_checked_says_what_to_do() -> None:
    class Never(OnlySingle):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if type(x) is not Tensor else x.new_zeros(2).view(3, 4)

    with pytest.raises(SpecError, match=r"Never cannot be run with random parameters.*invalid.*check=False"):
        trace(Never(), torch.randn(1, 3))


def test_outputs_that_are_no_tensors_prove_nothing() -> None:
    class Silent(OnlySingle):
        def forward(self, x: Tensor) -> float | Tensor:
            return super().forward(x) if type(x) is not Tensor else 1.0

    with pytest.raises(SpecError, match="nothing can be checked"):
        trace(Silent(), torch.randn(1, 3))


@pytest.mark.parametrize("units", [2, 3, 4, 7])
@pytest.mark.parametrize("forgotten", ["0.weight", "0.bias", "2.weight"])
def test_a_forgotten_axis_is_found_for_every_seed(units: int, forgotten: str) -> None:
    """Zeros as inputs, as in a quick start, hide nothing."""
    model = nn.Sequential(nn.Linear(4, units), nn.ReLU(), nn.Linear(units, 2))
    axes = {"0.weight": ("P", None), "0.bias": ("P",), "2.weight": (None, "P"), "2.bias": (None,)}
    right = PermutationSpec.from_axes(axes)
    wrong = PermutationSpec.from_axes({**axes, forgotten: (None,) * len(axes[forgotten])})
    for seed in range(40):
        right.check(model, torch.zeros(1, 4), seed=seed)
        with pytest.raises(SpecError, match="changes the function"):
            wrong.check(model, torch.zeros(1, 4), seed=seed)


def test_units_that_allow_rotations_only_are_no_group() -> None:
    """Sums of neighbours around a ring: every rotation keeps the function, no swap does."""
    model = nn.Sequential(nn.Linear(4, 5), Apply(lambda x: (x * x.roll(1, -1)).sum(-1, keepdim=True)), nn.Linear(1, 1))
    wrong = PermutationSpec.from_axes(
        {"0.weight": ("P", None), "0.bias": ("P",), "2.weight": (None, None), "2.bias": (None,)}
    )
    for seed in range(20):
        with pytest.raises(SpecError, match="changes the function"):
            wrong.check(model, torch.zeros(2, 4), seed=seed)


def test_two_groups_that_must_move_together_are_told_apart() -> None:
    model = nn.Sequential(Branches(torch.mul, nn.Linear(4, 2), nn.Linear(4, 2)), Apply(lambda x: x.sum(-1)))
    keys = ["1", "0"]
    wrong = PermutationSpec.from_axes(
        {f"0.branches.{k}.{name}": (f"P{k}", None)[: 2 - (name == "bias")] for k in keys for name in ("weight", "bias")}
    )
    for seed in range(20):
        with pytest.raises(SpecError, match="changes the function"):
            wrong.check(model, torch.zeros(2, 4), seed=seed)


@pytest.mark.parametrize("sizes", [[2], [3], [2, 2, 2], [5, 2, 9]])
def test_every_part_moves_and_any_two_differ(sizes: list[int]) -> None:
    spec = PermutationSpec.from_axes(
        {f"{k}": (f"P{k}",) for k in range(len(sizes))}, like={f"{k}": torch.zeros(n) for k, n in enumerate(sizes)}
    )
    *runs, last = list(revealing_members(spec, torch.Generator().manual_seed(0)))
    runs = runs if max(sizes) > 2 else [*runs, last]
    assert len({tuple(run.fixed_points()[name] == 0 for run in runs) for name in spec.groups}) == len(sizes)
    for name in spec.groups:
        assert any(run.fixed_points()[name] == 0 for run in runs)
        assert all(run.fixed_points()[name] in (0, spec.shape(name)[0]) for run in runs)
