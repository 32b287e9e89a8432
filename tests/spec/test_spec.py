import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedrebasin import Axis, Group, Permutation, PermutationSpec, SpecError
from fedrebasin.spec import Factor, Layout, Unpermuted

MLP = {
    "0.weight": ("P_0", None),
    "0.bias": ("P_0",),
    "2.weight": (None, ("P_0", 4)),
    "2.bias": (None,),
}


def mlp_state(units=5):
    return {
        "0.weight": torch.randn(units, 3),
        "0.bias": torch.randn(units),
        "2.weight": torch.randn(2, 4 * units),
        "2.bias": torch.randn(2),
    }


def nested(heads, size):
    """One packed projection: heads move as blocks, and the units in each head on their own."""
    blocks, units = Factor(0, heads, size), Factor(0, size)
    return PermutationSpec(
        {
            "heads": Group("heads", heads, (Axis("w", 0, Layout((blocks,), (units,))),)),
            "units": Group("units", size, (Axis("w", 0, Layout((blocks, units))),), parent="heads"),
        },
        {"w": (heads * size, 2)},
    )


def test_sizes_come_from_the_state_dict():
    spec = PermutationSpec.from_axes(MLP)
    with pytest.raises(SpecError, match="no size yet"):
        spec.shape("P_0")
    assert spec.bind(mlp_state(5)).shape("P_0") == (5,)
    assert spec.bind(mlp_state(7)).shape("P_0") == (7,)
    assert PermutationSpec.from_axes(MLP, like=mlp_state(7)) == spec.bind(mlp_state(7))


def test_the_spec_of_the_paper_keeps_the_function():
    spec, state = PermutationSpec.from_axes(MLP), mlp_state()
    spec = spec.bind(state)
    moved = Permutation.random(spec, torch.Generator().manual_seed(0)).apply(state)
    x = torch.randn(6, 3)

    def forward(s):
        hidden = torch.relu(x @ s["0.weight"].T + s["0.bias"])
        features = hidden[:, :, None] * torch.tensor([1.0, 2.0, 3.0, 4.0])
        return features.flatten(1) @ s["2.weight"].T + s["2.bias"]

    assert torch.allclose(forward(state), forward(moved), atol=1e-5)
    assert not torch.equal(state["0.weight"], moved["0.weight"])


def test_all_misfits_are_reported_at_once():
    spec = PermutationSpec.from_axes(MLP).bind(mlp_state())
    state = mlp_state()
    del state["2.bias"]
    state |= {"0.weight": torch.randn(4, 3), "extra": torch.randn(2), "counter": torch.tensor(3)}
    with pytest.raises(SpecError) as error:
        spec.bind(state)
    text = str(error.value)
    assert "2.bias: missing from the state dict" in text
    assert "0.weight: shape (4, 3) where the spec has (5, 3)" in text
    assert "extra: shape (2,) is not in the spec" in text
    assert "counter" not in text
    assert "\n" not in text


def test_unequal_axes_of_one_group_are_misfits():
    state = mlp_state() | {"2.weight": torch.randn(2, 21)}
    misfits = PermutationSpec.from_axes(MLP).misfits(state)
    assert any(text.startswith("2.weight[1]: the layout has levels (6,)") for text in misfits)
    assert PermutationSpec.from_axes({"w": ("P", "P")}).misfits({"w": torch.zeros(3, 4)}) == [
        "w[1]: shape (3, 4) has 4 units where the group has 3"
    ]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"w": "P"}, r"w: 'P' must be a sequence"),
        ({"w": (3,)}, r"w\[0\]: 3 must be a group's name"),
        ({"w": (("P", 0),)}, r"w\[0\]"),
        ({"w": (("P", "Q"),)}, r"w\[0\]"),
    ],
)
def test_malformed_notation_is_refused(axes, message):
    with pytest.raises(SpecError, match=message):
        PermutationSpec.from_axes(axes)


def test_groups_must_nest():
    axis = (Axis("w", 0),)
    with pytest.raises(SpecError, match="'b', which is not in the spec"):
        PermutationSpec({"a": Group("a", 2, axis, parent="b")}, {"w": (2,)})
    with pytest.raises(SpecError, match="lies in its own blocks"):
        PermutationSpec(
            {"a": Group("a", 2, axis, parent="b"), "b": Group("b", 2, axis, parent="a")},
            {"w": (2,)},
        )


@given(units=st.integers(1, 40))
def test_symmetries_are_counted(units):
    spec = PermutationSpec.from_axes(MLP, like=mlp_state(units))
    assert spec.log10_symmetries == pytest.approx(math.log10(math.factorial(units)))


@given(heads=st.integers(1, 8), size=st.integers(1, 8))
def test_a_wreath_product_is_counted(heads, size):
    expected = math.log10(math.factorial(heads)) + heads * math.log10(math.factorial(size))
    assert nested(heads, size).log10_symmetries == pytest.approx(expected)
    assert nested(heads, size).freeze(["units"]).log10_symmetries == pytest.approx(math.log10(math.factorial(heads)))


def test_paper_table_1():
    """Git Re-Basin, Table 1: an MLP with three hidden layers of 512 has 10^3498 symmetries."""
    axes = {f"{i}.bias": (f"P_{i}",) for i in range(3)}
    spec = PermutationSpec.from_axes(axes, like={key: torch.zeros(512) for key in axes})
    assert spec.log10_symmetries == pytest.approx(3499.6, abs=0.1)


def test_parameters_vote_and_buffers_do_not():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    spec, state = PermutationSpec.trace(model, torch.zeros(1, 3, 2, 2)), model.state_dict()
    assert spec.voting(state) == tuple(key for key in spec.shapes if key in dict(model.named_parameters()))
    assert set(spec.voting(state)) == set(dict(model.named_parameters()))
    assert spec.freeze(spec.groups).voting(state) == spec.voting(state)


def test_what_votes_is_of_the_state_that_is_given():
    spec, state = (
        PermutationSpec.from_axes({**MLP, "steps": ("P_0",), "mean": ("P_0",)}, statistics=["mean"]),
        mlp_state(),
    )
    state |= {"steps": torch.zeros(5, dtype=torch.int64), "mean": torch.zeros(5)}
    assert spec.voting(state) == tuple(MLP)
    assert spec.voting({"2.bias": state["2.bias"], "other": torch.zeros(1)}) == ("2.bias",)


def test_frozen_groups_do_not_move():
    spec = PermutationSpec.from_axes(MLP, like=mlp_state()).freeze(["P_0"])
    assert Permutation.random(spec, torch.Generator()).is_identity
    assert spec.coverage == 0.0
    with pytest.raises(SpecError, match="no group nope to freeze; the spec has P_0"):
        spec.freeze(["nope"])


def test_coverage_is_the_share_of_parameters_that_move():
    assert PermutationSpec.from_axes(MLP, like=mlp_state(5)).coverage == pytest.approx(60 / 62)
    layout = Layout((Factor(0, 3),), start=((0, 1),))
    spec = PermutationSpec({"a": Group("a", 3, (Axis("w", 0, layout),))}, {"w": (6, 2)})
    assert spec.coverage == pytest.approx(0.5)


def test_json_is_lossless(tmp_path):
    spec = PermutationSpec(
        nested(3, 4).freeze(["heads"]).groups,
        {"w": (12, 2)},
        statistics=frozenset({"m"}),
        unpermuted=(Unpermuted("w", 1, "an output", "linear"),),
        checked=True,
    )
    spec.save(tmp_path / "spec.json")
    loaded = PermutationSpec.load(tmp_path / "spec.json")
    assert loaded == spec
    assert loaded.checked
    for name in ("missing.json", "text.json", "list.json"):
        (tmp_path / "text.json").write_text("{")
        (tmp_path / "list.json").write_text("[1, 2]")
        with pytest.raises(SpecError, match=f"{name}: not a permutation spec"):
            PermutationSpec.load(tmp_path / name)


def test_a_spec_prints_its_groups_and_what_stays():
    spec = PermutationSpec(nested(3, 4).groups, {"w": (12, 2)}, unpermuted=(Unpermuted("w", 1, "an output", "linear"),))
    text = str(spec)
    assert "2 groups" in text
    assert "3x4 units" in text
    assert "w[0: (3)x(4)]" in text
    assert "w[1]: an output (linear)" in text
    assert "sizes not known yet" in str(PermutationSpec.from_axes(MLP))
