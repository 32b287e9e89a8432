"""A spec of a part of a model: what may still move, what is frozen, and why."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fedrebasin import Permutation, PermutationSpec, SpecError, WeightMatching
from fedrebasin.spec import coverage_gaps


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))


def normed():
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4))


def attention():
    return nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)


#: The model, its inputs, the keys that are sent, the groups that are torn, and how many are whole.
PARTS = {
    "body": (mlp, (3, 6), lambda key: key[0] in "02", {"2": "4.weight"}, 1),
    "first layer": (mlp, (3, 6), lambda key: key[0] == "0", {"0": "2.weight"}, 0),
    "head": (mlp, (3, 6), lambda key: key[0] == "4", {"2": "2.weight"}, 0),
    "without a norm": (normed, (3, 1, 6, 6), lambda key: key[0] != "1", {"0": "1.weight"}, 0),
    "without statistics": (normed, (3, 1, 6, 6), lambda key: "running" not in key, {"0": "1.running_mean"}, 0),
    "without a counter": (normed, (3, 1, 6, 6), lambda key: "tracked" not in key, {}, 1),
    "attention": (
        attention,
        (2, 5, 16),
        lambda key: "in_proj" in key,
        dict.fromkeys(("self_attn.in_proj_weight", "self_attn.in_proj_weight:units/2"), "self_attn.out_proj.weight"),
        1,
    ),
}


@pytest.fixture(params=PARTS.values(), ids=PARTS)
def case(request):
    """The model, random numbers for it, inputs, its spec, the part, and what is said of that."""
    make, shape, sent, torn, whole = request.param
    torch.manual_seed(0)
    model, inputs = make().eval(), torch.randn(shape)
    state = {
        key: torch.rand_like(tensor) + 0.5 if tensor.is_floating_point() else tensor
        for key, tensor in model.state_dict().items()
    }
    part = {key: tensor for key, tensor in state.items() if sent(key)}
    return model, inputs, state, PermutationSpec.trace(model, inputs), part, torn, whole


def whole_member(spec, member):
    """The member of the whole spec that moves what a member of the part does."""
    identity = Permutation.identity(spec)
    return Permutation(spec, {name: member[name] if name in member else identity[name] for name in spec.groups})


def test_what_is_torn_and_what_is_whole(case):
    _, _, _, spec, part, torn, whole = case
    assert spec.torn(part) == torn
    frozen = spec.restrict(part)
    assert {name for name, group in frozen.groups.items() if group.frozen} == set(torn)
    assert sum(not group.frozen for group in frozen.groups.values()) == whole
    assert set(frozen.shapes) == set(part)
    free = spec.restrict(part, freeze_torn=False)
    assert not any(group.frozen for group in free.groups.values())
    assert set(free.groups) == set(frozen.groups)
    assert (frozen.checked, free.checked) == (True, not torn)
    assert frozen.bind(part) == frozen


def test_a_member_of_the_part_is_the_whole_specs_with_the_rest_in_place(case):
    model, inputs, state, spec, part, _, _ = case
    restricted = spec.restrict(part)
    for seed in range(3):
        member = Permutation.random(restricted, torch.Generator().manual_seed(seed))
        moved, whole = member.apply(part), whole_member(spec, member).apply(state)
        assert set(moved) == set(part)
        assert all(torch.equal(moved[key], whole[key]) for key in part)
        assert all(torch.equal(state[key], whole[key]) for key in state if key not in part)
        before, after = (functional_call(model, each, (inputs,)) for each in (state, {**state, **moved}))
        assert torch.allclose(before, after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [mlp, attention])
@pytest.mark.parametrize("seed", range(4))
def test_any_keys_make_a_part_that_still_fits_the_rest(make, seed):
    generator = torch.Generator().manual_seed(seed)
    model, inputs = make().eval(), torch.randn((3, 6) if make is mlp else (2, 5, 16), generator=generator)
    state = {key: torch.rand(tensor.shape, generator=generator) for key, tensor in model.state_dict().items()}
    spec = PermutationSpec.trace(model, inputs, check=False)
    part = {key: state[key] for key in state if torch.rand(1, generator=generator) < 0.7}
    restricted = spec.restrict(part)
    for name, group in spec.groups.items():
        inside = {axis.key in part for axis in group.axes}
        assert (name in spec.torn(part)) == (inside == {True, False})
        assert (name in restricted.groups) == (True in inside)
    moved = Permutation.random(restricted, generator).apply(part)
    before, after = (functional_call(model, each, (inputs,)) for each in (state, {**state, **moved}))
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-5)


def test_torn_groups_that_move_in_the_part_fit_the_rest_once_they_are_moved_back(case):
    model, inputs, state, spec, part, torn, _ = case
    free = spec.restrict(part, freeze_torn=False)
    member = Permutation.random(free, torch.Generator().manual_seed(1))
    moved = member.apply(part)
    assert all(torch.equal(member.inverse().apply(moved)[key], part[key]) for key in part)
    if torn:
        before, after = (functional_call(model, each, (inputs,)) for each in (state, {**state, **moved}))
        assert not torch.allclose(before, after, rtol=1e-3, atol=1e-3)


def test_the_part_alone_tells_torn_units_apart():
    spec = PermutationSpec.trace(mlp(), torch.zeros(1, 6))
    torch.manual_seed(0)
    part = {key: torch.randn_like(tensor) for key, tensor in mlp().state_dict().items() if key[0] in "02"}
    member = Permutation.random(spec.restrict(part, freeze_torn=False), torch.Generator().manual_seed(0))
    assert WeightMatching()(member.spec, reference=part, candidate=member.apply(part)).permutation == member.inverse()


def test_the_spec_of_the_part_says_what_was_frozen_and_is_kept_in_a_file(tmp_path):
    spec = PermutationSpec.trace(mlp(), torch.zeros(1, 6)).restrict([f"{n}.{kind}" for n in (0, 2) for kind in KINDS])
    assert "2.weight[0], 2.bias[0]: tied to 4.weight, which is left out" in str(spec)
    spec.save(tmp_path / "spec.json")
    assert PermutationSpec.load(tmp_path / "spec.json") == spec
    assert "tied to 1.weight" in coverage_gaps(PermutationSpec.trace(normed(), torch.zeros(2, 1, 6, 6)).restrict(CONV))


KINDS = ("weight", "bias")
CONV = [f"{n}.{kind}" for n in (0, 4) for kind in KINDS]


def test_all_keys_restrict_nothing():
    spec = PermutationSpec.trace(normed(), torch.zeros(2, 1, 6, 6))
    assert spec.restrict(spec.shapes) == spec
    assert spec.restrict(normed().state_dict()).groups == spec.groups


def test_groups_that_were_frozen_are_not_torn():
    spec = PermutationSpec.trace(mlp(), torch.zeros(1, 6)).freeze(["2"])
    assert spec.torn(["0.weight", "2.weight"]) == {"0": "0.bias"}


def test_a_spec_without_sizes_takes_them_from_the_part():
    axes = {"a": ("P", None), "b": ("Q", "P"), "c": (None, "Q")}
    spec = PermutationSpec.from_axes(axes).restrict(["a", "b"], freeze_torn=False)
    bound = spec.bind({"a": torch.zeros(4, 2), "b": torch.zeros(5, 4)})
    assert (bound.shape("P"), bound.shape("Q")) == ((4,), (5,))


def test_keys_that_are_not_in_the_spec_are_refused():
    spec = PermutationSpec.from_axes({"body.a": ("P", None), "body.b": (None, "P")})
    with pytest.raises(SpecError, match=r"no key 'a' to restrict the spec to: 2 of 2 keys .* without 'body.'"):
        spec.restrict(["a", "b"])
    with pytest.raises(SpecError, match="no keys to restrict"):
        spec.restrict([])
    with pytest.raises(SpecError, match="no key 'n'"):
        spec.restrict(["body.a", "n"])
    counted = {"body.a": torch.zeros(2, 2), "n": torch.tensor(3)}
    assert set(spec.restrict(counted).shapes) == {"body.a"}


def test_a_tied_key_that_is_sent_under_its_other_name_is_not_left_out():
    axes = {"in.weight": (None, "P"), "out.weight": ("P", None), "again.weight": ("P", None)}
    spec = replace(PermutationSpec.from_axes(axes), tied=(("out.weight", "again.weight"),))
    sent = {"in.weight": torch.zeros(3, 5), "again.weight": torch.zeros(5, 3)}
    assert spec.torn(sent) == {}
    part = spec.restrict(sent).bind(sent)
    assert [axis.key for axis in part.groups["P"].axes] == ["in.weight", "again.weight"]
    assert not part.groups["P"].frozen
