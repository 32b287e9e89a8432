"""Numbers that have no mean of their own are refused with the reason; all others are averaged rightly."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fedrebasin import DataError, MergeError, SpecError
from fedrebasin.files import load_checkpoint, merge_files
from fedrebasin.spec import plain_stack
from tests.cli.pairs import pair


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def both(a, b):
    """The mean of two state dicts in files."""
    for name, state in (("a", a), ("b", b)):
        save_file(state, f"{name}.safetensors")
    merge_files(["a.safetensors", "b.safetensors"], "m.safetensors", method="average", force=True)
    return load_file("m.safetensors")


def int8(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


@pytest.mark.parametrize(
    ("weight", "scale"),
    [
        ("l.weight", "l.scale"),
        ("l.weight", "l.weight_scale"),
        ("l.weight", "l.SCB"),
        ("l.weight", "l.weight.absmax"),
        ("weight", "scale"),
    ],
)
def test_integers_with_scales_are_refused(weight, scale):
    a, b = ({weight: number, scale: size} for number, size in (int8(torch.randn(4, 6)) for _ in range(2)))
    with pytest.raises(DataError, match=rf"{weight} is int8 with {scale}: .* dequantise"):
        both(a, b)
    with pytest.raises(DataError, match="dequantise"):  # two copies, too: what is merged next may be another one
        both(a, a)


def test_packed_integers_and_eight_bit_floats_with_scales_are_refused():
    packed = {"l.qweight": torch.zeros(4, 6, dtype=torch.int32), "l.scales": torch.ones(4)}
    with pytest.raises(DataError, match=r"l\.qweight is int32, packed"):
        both(packed, packed)
    scaled = {"l.weight": torch.ones(4, 6).to(torch.float8_e4m3fn), "l.weight_scale_inv": torch.ones(1)}
    with pytest.raises(DataError, match=r"l\.weight is float8_e4m3fn with l\.weight_scale_inv"):
        both(scaled, scaled)


def test_integers_without_scales_are_what_they_were():
    """A mask and an index beside a learned temperature are no quantised weights."""
    state = {
        "attention.mask": torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8),
        "attention.logit_scale": torch.ones(2),
        "attention.index": torch.arange(4),
    }
    merged = both(state, {**state, "attention.logit_scale": 3 * torch.ones(2)})
    assert torch.equal(merged["attention.mask"], state["attention.mask"])
    assert torch.equal(merged["attention.logit_scale"], 2 * torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_narrow_floats_are_averaged_in_wide_ones_and_rounded_once(dtype):
    a, b = (torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    expected = ((a.double() + b.double()) / 2).to(dtype)
    assert torch.equal(both({"x": a}, {"x": b})["x"].float(), expected.float())


def test_complex_numbers_are_averaged_and_what_has_no_name_in_the_format_is_refused_first():
    a, b = (torch.randn(3, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    torch.save({"x": a}, "a.pt")
    torch.save({"x": b}, "b.pt")
    merge_files(["a.pt", "b.pt"], "m.safetensors", method="average")
    assert torch.allclose(load_file("m.safetensors")["x"], (a + b) / 2)
    for name, tensor in (("a", a), ("b", b)):
        torch.save({"x": tensor.to(torch.complex128)}, f"{name}.pt")
    with pytest.raises(DataError, match=r"x: torch\.complex128 cannot be written as safetensors"):
        merge_files(["a.pt", "b.pt"], "n.safetensors", method="average")


ADAPTER = {"base_model.model.q.lora_A.weight": torch.ones(2, 4), "base_model.model.q.lora_B.weight": torch.ones(4, 2)}


@pytest.mark.parametrize(
    "state",
    [
        ADAPTER,
        {"q.weight": torch.ones(4, 4), **ADAPTER},
        {"lora_unet_q.lora_down.weight": torch.ones(2, 4), "lora_unet_q.lora_up.weight": torch.ones(4, 2)},
    ],
)
def test_factors_of_adapters_are_refused(state):
    with pytest.raises(DataError, match="factor of an adapter: the mean of products is no product of means"):
        both(state, state)


def test_folders_of_adapters_and_of_quantised_models_are_refused(tmp_path):
    folder = tmp_path / "A"
    folder.mkdir()
    save_file({"x": torch.ones(2)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(DataError, match="an adapter without its base"):
        load_checkpoint(folder)
    (folder / "adapter_config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(DataError, match=r"quantised \(gptq\)"):
        load_checkpoint(folder)


class Words(nn.Module):
    """Layers whose order the alphabet has wrong."""

    def __init__(self, width=8):
        super().__init__()
        self.input, self.hidden, self.output = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.output(self.hidden(self.input(x).relu()).relu())


def test_an_order_of_layers_that_only_names_tell_is_refused():
    a, b, _ = pair(Words, (2, 8))
    save_file(a, "a.safetensors")
    save_file(b, "b.safetensors")
    torch.save(a, "a.pt")
    with pytest.raises(SpecError, match="hidden and input have one shape, and names do not say which comes first"):
        merge_files(["a.safetensors", "b.safetensors"], "m.safetensors")
    merge_files(["a.pt", "b.safetensors"], "m.safetensors")  # the order of the model itself
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    outputs = [torch.func.functional_call(Words(), state, (x,)) for state in (a, load_file("m.safetensors"))]
    assert torch.allclose(*outputs, atol=1e-5)


def chain(widths, names):
    pairs = itertools.pairwise(widths)
    return {f"{name}.weight": torch.zeros(b, a) for name, (a, b) in zip(names, pairs, strict=True)}


def order(spec):
    """The layers by the groups that join them."""
    return [tuple(axis.key.split(".")[0] for axis in group.axes) for group in spec.groups.values()]


def test_widths_decide_where_they_can():
    found = plain_stack(chain([3, 5, 7, 4], ["z", "y", "x"]), ordered=False)
    assert sorted(order(found)) == [("y", "x"), ("z", "y")]
    found = plain_stack(dict(sorted(chain([4, 4, 4, 4], ["l.2", "l.10", "l.11"]).items())), ordered=False)
    assert {axis.key for axis in found.groups["l.2.units"].axes} == {"l.2.weight", "l.10.weight"}


@pytest.mark.parametrize(
    ("widths", "names"),
    [
        ([4, 5, 4], ["a", "b"]),  # a circle: either may be first
        ([4, 4, 4], ["in", "out"]),
        ([3, 4, 5, 3, 6, 4], ["a", "b", "c", "d", "e"]),  # two ways round
        ([4, 4, 4, 4], ["encoder.0", "encoder.1", "decoder.0"]),
    ],
)
def test_more_than_one_order_is_refused(widths, names):
    with pytest.raises(SpecError, match=r"one shape|more than one order"):
        plain_stack(chain(widths, names), ordered=False)


def test_weights_of_infinite_sum_are_still_refused():
    with pytest.raises(MergeError, match="not a number"):
        both({"x": torch.tensor([torch.inf])}, {"x": torch.tensor([-torch.inf])})
