"""Kinds of nets that people have: symmetries on paper are found, and hold for every checkpoint before any check."""

from __future__ import annotations

import pytest
import torch

from fedrebasin import MergeMany, Permutation, PermutationSpec, WeightMatching
from fedrebasin.tracing import trace
from tests.tracing.kinds import KINDS, random_checkpoint


@pytest.mark.parametrize("name", KINDS)
def test_the_symmetries_on_paper_are_found(name: str) -> None:
    kind = KINDS[name]
    torch.manual_seed(0)
    spec = trace(kind.make(), kind.inputs)
    assert spec.checked
    assert spec.log10_symmetries == pytest.approx(kind.log10)
    assert not [row for row in spec.unpermuted if "check" in row.reason or "no rule" in row.reason]


@pytest.mark.parametrize("name", KINDS)
def test_every_checkpoint_of_the_architecture_keeps_its_function(name: str) -> None:
    kind = KINDS[name]
    torch.manual_seed(0)
    model = kind.make().double().eval()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in kind.inputs)
    spec = trace(model, inputs, check=False)
    for seed in range(5):
        state = random_checkpoint(model, seed)
        moved = Permutation.random(spec, torch.Generator().manual_seed(seed)).apply(state)
        with torch.no_grad():
            before, after = (torch.func.functional_call(model, each, inputs) for each in (state, moved))
        torch.testing.assert_close(before, after)


def test_blocks_that_cannot_be_had_are_named() -> None:
    kind = KINDS["shuffled groups with a shortcut"]
    rows = [row for row in trace(kind.make(), kind.inputs).unpermuted if "two places" in row.reason]
    assert ("g.weight", 0) in {(row.key, row.dim) for row in rows}
    assert {row.operator for row in rows} == {"aten.add.Tensor"}


def test_uneven_units_survive_json_and_are_said(tmp_path) -> None:
    kind = KINDS["one unit as a gate"]
    spec = trace(kind.make(), kind.inputs)
    (group,) = spec.groups.values()
    assert str(group.axes[0]) == "a.weight[0: (5 of 6)]"
    spec.save(tmp_path / "spec.json")
    assert PermutationSpec.load(tmp_path / "spec.json") == spec


def test_uneven_units_are_matched() -> None:
    kind = KINDS["two units as gates"]
    model = kind.make()
    spec, a = trace(model, kind.inputs), model.state_dict()
    planted = [Permutation.random(spec, torch.Generator().manual_seed(seed)) for seed in range(3)]
    for member in planted:
        assert WeightMatching()(spec, reference=a, candidate=member.apply(a)).permutation == member.inverse()
    merged = MergeMany()(spec, [member.apply(a) for member in planted]).merged
    with torch.no_grad():
        torch.testing.assert_close(torch.func.functional_call(model, merged, kind.inputs), model(*kind.inputs))
