from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrebasin import Permutation, PermutationSpec, SpecError
from fedrebasin.spec.axis import move_units
from fedrebasin.spec.moving import gathered
from tests.zoo import ZOO, State, attention, few_examples, mlp, recurrent, same, state_of

specs = st.sampled_from(sorted(ZOO)).map(ZOO.__getitem__)
seeds = st.integers(0, 2**31)


def drawn(spec: PermutationSpec, seed: int) -> Permutation:
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


@few_examples
@given(specs, seeds, seeds)
def test_composition_is_one_application_after_the_other(spec: PermutationSpec, p: int, q: int) -> None:
    state, first, second = state_of(spec, p), drawn(spec, p), drawn(spec, q)
    assert same(second.compose(first).apply(state), second.apply(first.apply(state)))


@few_examples
@given(specs, seeds)
def test_the_inverse_undoes(spec: PermutationSpec, seed: int) -> None:
    state, p = state_of(spec, seed), drawn(spec, seed)
    identity = Permutation.identity(spec)
    assert same(p.inverse().apply(p.apply(state)), state)
    assert p.compose(p.inverse()) == identity == p.inverse().compose(p)
    assert p.inverse().inverse() == p


@few_examples
@given(specs, seeds, seeds, seeds)
def test_members_form_a_group(spec: PermutationSpec, p: int, q: int, r: int) -> None:
    a, b, c = drawn(spec, p), drawn(spec, q), drawn(spec, r)
    identity = Permutation.identity(spec)
    assert a.compose(b).compose(c) == a.compose(b.compose(c))
    assert a.compose(identity) == a == identity.compose(a)
    assert a.compose(b).inverse() == b.inverse().compose(a.inverse())


@few_examples
@given(specs, seeds)
def test_applying_moves_entries_and_changes_none(spec: PermutationSpec, seed: int) -> None:
    state, p = state_of(spec, seed), drawn(spec, seed)
    before = {key: tensor.clone() for key, tensor in state.items()}
    moved = p.apply(state)
    assert same(state, before)
    for key in state:
        assert torch.equal(moved[key].flatten().sort().values, state[key].flatten().sort().values)


@few_examples
@given(specs, seeds)
def test_fixed_points_count_what_agrees(spec: PermutationSpec, seed: int) -> None:
    p = drawn(spec, seed)
    everything = {name: Permutation.identity(spec)[name].numel() for name in spec.groups}
    assert p.fixed_points(p) == everything
    assert p.fixed_points() == p.inverse().fixed_points()
    assert (p.fixed_points() == everything) == p.is_identity


@few_examples
@given(specs, seeds)
def test_a_unit_stays_or_moves(spec: PermutationSpec, seed: int) -> None:
    p = drawn(spec, seed)
    moved, fixed = p.units_moved(), p.fixed_points()
    assert all(moved[name] + fixed[name] == p[name].numel() for name in spec.groups)
    assert not any(Permutation.identity(spec).units_moved().values())


@few_examples
@given(seeds)
def test_units_inside_blocks_move_with_them(seed: int) -> None:
    spec = attention(heads=3, size=4)
    state, p = state_of(spec, seed), drawn(spec, seed)
    state["out"] = torch.arange(12.0).expand_as(state["out"])
    places, found = torch.arange(12), p.apply(state)["out"][0].long()
    assert p.units_moved()["vo"] == int((found != places).sum())
    assert p.units_moved()["heads"] == int((found // 4 != places // 4).sum()) / 4


@few_examples
@given(seeds)
def test_units_follow_their_index(seed: int) -> None:
    spec = mlp(3, 4, 5, 2)
    state, p = state_of(spec, seed), drawn(spec, seed)
    moved = p.apply(state)
    assert torch.equal(moved["1.weight"], state["1.weight"][p["P_1"]][:, p["P_0"]])
    assert torch.equal(moved["0.bias"], state["0.bias"][p["P_0"]])


@few_examples
@given(seeds)
def test_blocks_move_first_and_rows_belong_to_their_new_places(seed: int) -> None:
    spec = attention(heads=3, size=2, width=4)
    state, p = state_of(spec, seed), drawn(spec, seed)
    moved = p.apply(state)["qkv"].reshape(3, 3, 2, 4)
    original = state["qkv"].reshape(3, 3, 2, 4)
    for block in range(3):
        for part, group in ((0, "qk"), (1, "qk"), (2, "vo")):
            expected = original[part, p["heads"][block]][p[group][block]]
            assert torch.equal(moved[part, block], expected)


@few_examples
@given(seeds)
def test_gates_move_together_and_both_axes_of_a_tensor_move(seed: int) -> None:
    spec = recurrent(units=4)
    state, p = state_of(spec, seed), drawn(spec, seed)
    index = p["hidden"]
    expected = state["state"].reshape(4, 4, 4)[:, index][:, :, index].reshape(16, 4)
    assert torch.equal(p.apply(state)["state"], expected)


def by_views(p: Permutation, state: State) -> State:
    """The definition: each group's units moved in every view of each of its axes, one after the other."""
    moved = {key: tensor.clone() for key, tensor in state.items()}
    for group in p.spec.outermost_first:
        for axis in group.axes:
            view = axis.view(moved[axis.key])
            view.copy_(move_units(view, p[group.name]))
    return moved


@few_examples
@given(specs, seeds)
def test_moves_one_after_the_other_are_the_permutation(spec: PermutationSpec, seed: int) -> None:
    state, p = state_of(spec, seed), drawn(spec, seed)
    moved = {key: tensor.clone() for key, tensor in state.items()}
    for axis, index in p.moves():
        axis.move(moved[axis.key], index)
    assert same(moved, p.apply(state))
    assert not list(Permutation.identity(spec).moves())


@few_examples
@given(specs, seeds)
def test_gathered_moves_are_the_moves_one_by_one(spec: PermutationSpec, seed: int) -> None:
    state, p = state_of(spec, seed), drawn(spec, seed)
    expected = by_views(p, state)
    assert same(p.apply(state), expected)
    strided = {key: tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor for key, tensor in state.items()}
    assert same(p.apply(strided), expected)
    assert same(strided, state)
    p.apply_in_place(strided)
    assert same(strided, expected)


@few_examples
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2), seeds)
def test_runs_of_neighbours_move_as_one(run: int, blocks: int, dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(blocks, generator=generator)
    positions = (order[:, None] * run + torch.arange(run)).flatten()
    shape = [2, 3, 2]
    shape[dim] = run * blocks
    tensor = torch.randn(shape, generator=generator)
    expected = tensor.index_select(dim, positions)
    assert torch.equal(gathered(tensor, dim, positions), expected)
    out = torch.empty_like(tensor)
    assert gathered(tensor, dim, positions, out=out) is out
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_large_tensors_move_as_small_ones(dtype: torch.dtype) -> None:
    size = 1100
    large = torch.arange(2 * size * size, dtype=torch.float64).remainder(251).to(dtype).view(size, 2 * size)
    spec = PermutationSpec.from_axes({"w": ("rows", "columns")})
    spec = spec.bind({"w": large})
    p = drawn(spec, 0)
    expected = large[p["rows"]][:, p["columns"]]
    state = {"w": large.clone()}
    p.apply_in_place(state)
    assert torch.equal(state["w"], expected)
    assert torch.equal(p.apply({"w": large})["w"], expected)


def test_random_members_leave_frozen_groups() -> None:
    spec = ZOO["frozen"]
    assert torch.equal(drawn(spec, 3)["heads"], torch.arange(3))


def test_a_dtype_and_tensors_of_no_group_are_kept() -> None:
    spec = mlp(3, 4, 2)
    state = state_of(spec, 0, torch.bfloat16)
    state["counter"] = torch.tensor(3)
    moved = drawn(spec, 1).apply(state)
    assert moved["counter"] is state["counter"]
    assert {tensor.dtype for key, tensor in moved.items() if key != "counter"} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("indices", "complaint"),
    [
        ({}, "has groups"),
        ({"P_0": torch.arange(3)}, "shape"),
        ({"P_0": torch.tensor([0, 1, 1, 2])}, "not a permutation"),
        ({"P_0": torch.tensor([0, 1, 2, 4])}, "not a permutation"),
    ],
)
def test_what_is_no_permutation_is_refused(indices: dict[str, torch.Tensor], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        Permutation(mlp(3, 4, 2), indices)


def test_permutations_of_different_specs_do_not_compose() -> None:
    with pytest.raises(SpecError, match="not of one spec"):
        drawn(mlp(3, 4, 2), 0).compose(drawn(mlp(3, 5, 2), 0))


def test_a_state_of_another_model_is_refused() -> None:
    with pytest.raises(SpecError, match=r"0\.weight"):
        drawn(mlp(3, 4, 2), 0).apply(state_of(mlp(3, 5, 2), 0))
