"""Which key of one model is which of another: wrappers as they are found in the world, and a mismatch in one line."""

import pytest
import torch
from torch import nn

from fedrebasin import Permutation, PermutationSpec, SpecError, WeightMatching
from fedrebasin.keys import likely_rename, pair, plain, shared_prefix
from tests.zoo import same

KEYS = ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize(
    ("keys", "like", "prefix"),
    [
        (["module.a", "module.b"], None, "module."),
        (["_orig_mod.a", "_orig_mod.b"], None, "_orig_mod."),
        (["module._orig_mod.a"], None, "module._orig_mod."),
        (["module.a", "b"], None, ""),
        (["model.a", "model.b"], None, ""),
        (["model.a", "model.b"], ["a", "b"], "model."),
        (["model.a", "model.b"], ["model.a", "model.b"], ""),
        (["module.model.a"], ["model.a"], "module."),
        ([], None, ""),
    ],
)
def test_common_prefixes(keys, like, prefix):
    assert shared_prefix(keys, like) == prefix


#: What a key is called in the module, and what wrappers, trainers and their files call it.
WRAPPED = [
    ("layer1.0.conv1.weight", "module.layer1.0.conv1.weight"),  # DistributedDataParallel, AveragedModel
    ("layer1.0.conv1.weight", "_orig_mod.layer1.0.conv1.weight"),  # torch.compile
    ("layer1.0.conv1.weight", "module._orig_mod.layer1.0.conv1.weight"),  # both
    ("layer1.0.conv1.weight", "_orig_mod.module.layer1.0.conv1.weight"),
    ("layer1.0.conv1.weight", "layer1.0._orig_mod.conv1.weight"),  # a compiled block
    ("layer1.0.conv1.weight", "_fsdp_wrapped_module.layer1._fsdp_wrapped_module.0.conv1.weight"),
    ("layer1.0.conv1.weight", "layer1.0._checkpoint_wrapped_module.conv1.weight"),
    ("fc.weight", "model.fc.weight"),  # Lightning: self.model = ...
    ("h.0.attn.c_attn.weight", "base_model.model.h.0.attn.c_attn.base_layer.weight"),  # PEFT, the frozen base
    (
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
    ),
    ("base_model.model.emb.lora_embedding_A", "base_model.model.emb.lora_embedding_A.default"),
    ("base_model.model.q.lora_magnitude_vector", "base_model.model.q.lora_magnitude_vector.default.weight"),  # DoRA
    ("base_model.model.q.lora_E", "base_model.model.q.lora_E.default"),  # AdaLoRA
    ("base_model.model.q.ia3_l", "base_model.model.q.ia3_l.default"),  # IA3
    ("base_model.model.q.hada_w1_a", "base_model.model.q.hada_w1_a.default"),  # LoHa
    ("base_model.model.score.weight", "base_model.model.score.modules_to_save.default.weight"),
]


@pytest.mark.parametrize(("name", "key"), WRAPPED, ids=[key for _, key in WRAPPED])
def test_wrappers_of_the_world(name, key):
    others = ["bias" if name.startswith("base_model.") else "x.y.bias"]
    prefix = shared_prefix([key], [name])
    names, keys = [name, *others], [key, *(prefix + one for one in others)]
    assert pair(names, keys) == dict(zip(names, keys, strict=True))
    assert pair(keys, names) == dict(zip(keys, names, strict=True))


def test_a_key_without_wrappers_stays():
    for key in ("lora_A.weight", "x.lora_A.weight", "my_orig_mod.weight", "base_layers.0.weight", "module.x"):
        assert plain(key) == key


def test_arrays_without_names_are_paired_by_position():
    names = [f"l{index}.weight" for index in range(12)]
    numbers = sorted(str(index) for index in range(12))  # "10" before "2"
    assert pair(names, numbers) == {name: str(index) for index, name in enumerate(names)}
    assert pair(names, numbers[:-1]) is None
    assert pair(names, names[:3]) == {name: name for name in names[:3]}
    assert pair([str(index) for index in range(4)], KEYS) == dict(zip("0123", KEYS, strict=True))


def test_two_ways_are_refused():
    adapters = [f"x.lora_A.{name}.weight" for name in ("default", "mine")]
    with pytest.raises(SpecError, match=r"could be 'x.lora_A.default.weight' or 'x.lora_A.mine.weight'"):
        pair(["x.lora_A.weight"], adapters)
    with pytest.raises(SpecError, match="could be"):
        pair(["a", "model.a"], ["model.model.a"])


def test_other_models_are_not_paired():
    assert pair(KEYS, ["module.conv.weight"]) is None
    assert pair(["encoder.weight"], ["decoder.weight"]) is None
    assert likely_rename(KEYS, ["module.conv.weight"]) == ""
    assert likely_rename(KEYS, KEYS[:2]) == ""


@pytest.mark.parametrize("prefix", ["net.", "backbone.body."])
def test_a_mismatch_names_the_likely_rename(prefix):
    longer = [prefix + key for key in KEYS]
    assert likely_rename(KEYS, [*longer, "criterion.weight"]) == (
        f"4 of 5 keys are likely the expected ones with '{prefix}' before them"
    )
    assert likely_rename(longer, KEYS) == f"4 of 4 keys are likely the expected ones without '{prefix}' before them"
    assert "'module.0.weight' is likely '0.weight'" in likely_rename(KEYS, [f"module.{key}" for key in KEYS])


def test_keys_from_anyone_cost_little():
    hostile = ["." * 100_000, "a." * 100_000, "lora_A." * 100_000 + "x", *(str(number) for number in range(100))]
    assert likely_rename(KEYS, hostile) == ""
    assert likely_rename(["a"], ["9" * 10_000]) == ""


def net():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


RENAMINGS = {
    "positions": lambda index, key: str(index),
    "compiled": lambda index, key: f"_orig_mod.{key}",
    "lightning": lambda index, key: f"model.{key}",
}


@pytest.mark.parametrize("rename", RENAMINGS.values(), ids=RENAMINGS)
@pytest.mark.parametrize("seed", range(3))
def test_renamed_then_aligned_is_aligned_then_renamed(rename, seed):
    torch.manual_seed(seed)
    spec = PermutationSpec.trace(net(), torch.zeros(2, 8))
    names = {key: rename(index, key) for index, key in enumerate(KEYS)}
    a, b = ({key: tensor.detach() for key, tensor in net().state_dict().items()} for _ in range(2))
    a2, b2 = ({names[key]: tensor for key, tensor in state.items()} for state in (a, b))
    other = spec.rename_like(a2)
    assert other == spec.rename(names)
    assert other.rename({new: old for old, new in names.items()}) == spec
    before = WeightMatching()(spec, a, b).permutation.apply(b)
    after = WeightMatching()(other, a2, b2).permutation.apply(b2)
    assert same({names[key]: tensor for key, tensor in before.items()}, after)
    assert not same(before, b)
    with pytest.raises(SpecError, match=r"is likely '0.weight' under another name \(spec.rename_like"):
        spec.bind(a2)


@pytest.mark.parametrize("wrapper", [torch.compile, torch.optim.swa_utils.AveragedModel, nn.DataParallel])
def test_the_keys_that_torchs_own_wrappers_make(wrapper):
    spec, state = PermutationSpec.trace(net(), torch.zeros(2, 8)), wrapper(net()).state_dict()
    assert set(KEYS).isdisjoint(state)
    bound = spec.rename_like(state).bind(state)
    assert [key.split(".", 1)[1] for key in bound.shapes] == KEYS


def test_a_spec_without_counters_is_paired_by_position_with_a_state_that_has_them():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    state = model.state_dict()
    axes = {key: ("P",) for key in state if key[0] in "01"}
    axes |= {"0.weight": ("P", None), "3.weight": (None, "P"), "3.bias": (None,)}
    del axes["1.num_batches_tracked"]
    axes = {key: axes[key] for key in state if key in axes}
    spec = PermutationSpec.from_axes(axes)
    numbered = {str(index): tensor for index, tensor in enumerate(state.values())}
    assert list(spec.rename_like(numbered).shapes) == ["0", "1", "2", "3", "4", "5", "7", "8"]
    moved = Permutation.random(spec.bind(state), torch.Generator().manual_seed(0)).apply(state)
    spec.rename_like(numbered).bind(numbered)
    assert not same(moved, state)


def test_renaming_refuses_what_is_not_there_and_two_of_a_name():
    spec = PermutationSpec.from_axes({"a": ("P",), "b": ("P",)})
    with pytest.raises(SpecError, match="no key 'c' to rename"):
        spec.rename({"c": "d"})
    with pytest.raises(SpecError, match="two keys would be called 'b'"):
        spec.rename({"a": "b"})
