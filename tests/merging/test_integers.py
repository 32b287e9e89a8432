"""Integer and bool tensors move with their units and are never averaged; odd floats are."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedrebasin import AlignTo, CycleConsistent, Identity, MergeError, MergeMany, Permutation, PermutationSpec, average
from fedrebasin.cli import main
from fedrebasin.merging import cosine, started_from
from fedrebasin.merging.in_pieces import MeanInPieces

AXES = {
    "0.weight": ("P", None),
    "0.mask": ("P", None),
    "on": ("P",),
    "2.weight": (None, "P"),
}
SPEC = PermutationSpec.from_axes(AXES, statistics=["0.mask", "on"])


def masked(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "0.weight": torch.randn(6, 4, generator=generator),
        "0.mask": torch.rand(6, 4, generator=generator) < 0.5,
        "on": torch.randint(-9, 9, (6,), generator=generator, dtype=torch.int8),
        "2.weight": torch.randn(3, 6, generator=generator),
        "steps": torch.tensor(seed),
    }


def copies(count, seed):
    """One model with its units in several orders, counters of its own in each."""
    state = masked(seed)
    spec, generator = SPEC.bind(state), torch.Generator().manual_seed(seed)
    moved = [Permutation.random(spec, generator).apply(state) for _ in range(count - 1)]
    return spec, [state, *({**one, "steps": torch.tensor(100 + k)} for k, one in enumerate(moved))]


ALIGNERS = {
    "reference": AlignTo(reference=0),
    "medoid": AlignTo(),
    "merge-many": MergeMany(),
    "cycle-consistent": CycleConsistent(),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ALIGNERS)
def test_equal_integers_move_with_their_units(name, seed):
    spec, states = copies(3, seed)
    merge = ALIGNERS[name](spec, states)
    for key in ("0.mask", "on"):
        assert merge.merged[key].dtype == states[0][key].dtype
        assert all(torch.equal(state[key], merge.merged[key]) for state in merge.states)
    assert int(merge.merged["steps"]) == seed


@pytest.mark.parametrize("name", ALIGNERS)
def test_integers_that_differ_are_refused_with_their_key(name):
    spec, states = copies(3, 0)
    states[1]["0.mask"] = states[1]["0.mask"].clone()
    states[1]["0.mask"][2, 1] ^= True
    with pytest.raises(MergeError, match=r"^0\.mask: \d+ of 24 entries of model \d .* bool tensors are not averaged"):
        ALIGNERS[name](spec, states)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64, torch.bool])
def test_the_plain_mean_refuses_as_well(dtype):
    a = {"w": torch.ones(2), "n": torch.tensor([0, 1, 1]).to(dtype)}
    b = {"w": torch.zeros(2), "n": torch.tensor([1, 1, 0]).to(dtype)}
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(MergeError, match=rf"^n: 2 of 3 entries of model 2 are not the first model's, and {kind} "):
        average([a, b])
    assert torch.equal(average([a, {**b, "n": a["n"].clone()}])["n"], a["n"])


@pytest.mark.parametrize("based", [False, True])
def test_pieces_move_and_refuse_like_the_whole(based):
    spec, states = copies(3, 4)
    back = AlignTo(reference=states[0])(spec, states)
    permutations = [alignment.permutation for alignment in back.alignments]
    mean = MeanInPieces(states[1:], permutations[1:], None, states[0] if based else None)
    (mask,) = mean("0.mask")
    assert torch.equal(mask.reshape(6, 4), states[0]["0.mask"])
    states[2]["on"] = states[2]["on"] + 1
    with pytest.raises(MergeError, match=r"^on: 6 of 6 entries of model 2 .* int8 tensors"):
        list(mean("on"))


def test_the_command_refuses_and_leaves_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    spec, states = copies(2, 1)
    spec.save("spec.json")
    for name, state in zip("ab", states, strict=True):
        save_file(state, f"{name}.safetensors")
    command = ["merge", "a.safetensors", "b.safetensors", "--spec", "spec.json", "-o", "m.safetensors"]
    for method in ("weight-matching", "merge-many", "cycle-consistent"):
        assert main([*command, "--method", method, "--force"]) == 0
        merged = load_file("m.safetensors")
        assert torch.equal(merged["0.mask"].sum(0), states[0]["0.mask"].sum(0))
        assert merged["0.mask"].dtype == torch.bool
    (tmp_path / "m.safetensors").unlink()
    save_file({**states[1], "0.mask": ~states[1]["0.mask"]}, "b.safetensors")
    capsys.readouterr()
    for method in ("weight-matching", "merge-many", "average"):
        assert main([*command, "--method", method]) == 2
        assert "0.mask: " in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "m.safetensors").exists()


ODD = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]


@pytest.mark.parametrize("dtype", ODD, ids=str)
def test_every_float_has_a_mean_and_a_cosine(dtype):
    values = [torch.tensor([[1.0, -2.0, 0.5], [4.0, 8.0, 0.0]]), torch.tensor([[3.0, 2.0, 1.5], [4.0, 0.0, 1.0]])]
    values = [value + 1j * value.flip(0) if dtype.is_complex else value for value in values]
    a, b = ({"0.weight": value.to(dtype)} for value in values)
    assert torch.equal(average([a, b])["0.weight"].to(values[0].dtype), (values[0] + values[1]) / 2)
    spec = PermutationSpec.from_axes({"0.weight": (None, "P")}, like=a)
    assert cosine(spec, a, a) == pytest.approx(1)
    swap = Permutation(spec, {"P": torch.tensor([2, 0, 1])})
    assert torch.equal(swap.apply(a)["0.weight"].to(values[0].dtype), values[0][:, [2, 0, 1]])
    pieces = torch.cat(list(MeanInPieces([a, b], [swap, swap])("0.weight"))).reshape(2, 3)
    assert torch.equal(pieces.to(values[0].dtype), ((values[0] + values[1]) / 2)[:, [2, 0, 1]])
    assert started_from(spec, a, [a, a]) or not spec.voting(a)


@pytest.mark.parametrize("size", [1e30, 3e38, 1e-40])
@pytest.mark.parametrize("weights", [None, [1e308, 1e308], [1e30, 1e30], [1e-308, 1e-308]])
def test_neither_large_values_nor_large_weights_overflow(size, weights):
    state = {"w": torch.full((3,), size)}
    assert torch.equal(average([state, state], weights)["w"], state["w"])
    assert torch.equal(torch.cat(list(MeanInPieces([state, state], [None, None], weights)("w"))), state["w"])
    largest = {"w": torch.full((2,), 1.7e308, dtype=torch.float64)}
    assert torch.equal(average([largest] * 2, weights)["w"], largest["w"])


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        (torch.nn.LazyLinear(3).state_dict(), "weight has no shape yet: run the lazy module once"),
        ({"w": torch.ones(2), "extra": "text"}, "extra is of type str where a tensor is needed"),
        ({"w": torch.zeros(2, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, "w cannot be averaged: Not"),
    ]
    if hasattr(torch, "float4_e2m1fn_x2")
    else [],
)
def test_what_has_no_mean_is_named(state, complaint):
    with pytest.raises(MergeError, match=complaint) as caught:
        average([state, state])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("aligner", [Identity(), AlignTo(), MergeMany(), CycleConsistent()])
def test_an_aligner_without_models_says_so(aligner):
    with pytest.raises(MergeError, match="no model"):
        aligner(SPEC, [])
