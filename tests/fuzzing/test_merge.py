"""Checkpoint files that are given to ``merge``: averaged with others, or refused."""

import io
import json
import random
import zipfile
from collections import OrderedDict

import safetensors.torch
import torch

from fedrebasin import merge_files
from fedrebasin.files import load_checkpoint
from tests.fuzzing.engine import Target, assert_nothing_found
from tests.fuzzing.mutating import mutate_bytes, mutate_document

SHAPES = {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (2, 4), "2.bias": (2,)}


def make(seed):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def seeds():
    state = make(1)
    turned = {**state, "0.weight": make(2)["0.weight"].T.contiguous().T}
    return [
        safetensors.torch.save(state),
        safetensors.torch.save(state, metadata={"format": "pt"}),
        saved(OrderedDict(state)),
        saved({"model": turned, "epoch": 3}),
        saved(OrderedDict(state), _use_new_zipfile_serialization=False),
    ]


def mutate(data, rng):
    """The header of a safetensors file or a member of a zip file, with lengths and checksums made right again."""
    if rng.random() < 0.25:
        return mutate_bytes(data, rng)
    if data[8:9] == b"{":
        length = int.from_bytes(data[:8], "little")
        header = mutate_document(data[8 : 8 + length], rng)
        return len(header).to_bytes(8, "little") + header + data[8 + length :]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            members = {name: packed.read(name) for name in packed.namelist()}
    except Exception:
        return mutate_bytes(data, rng)
    name = rng.choice([name for name in members if name.endswith("data.pkl")] * 3 + list(members))
    members[name] = mutate_bytes(members[name], rng)
    if rng.random() < 0.1:
        del members[rng.choice(list(members))]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return buffer.getvalue()


def check_in(folder):
    other = folder / "other.safetensors"
    other.write_bytes(safetensors.torch.save(make(0)))

    def check(data):
        path, out = folder / "given", folder / "merged.safetensors"
        path.write_bytes(data)
        out.unlink(missing_ok=True)
        method = random.Random(data).choice(("weight-matching", "average", "merge-many"))
        try:
            merge_files([other, path], out, method=method)
        finally:
            left = {one.name for one in folder.iterdir()}
            assert left <= {"other.safetensors", "given", "merged.safetensors"}, left
        merged = load_checkpoint(out).state
        assert {key: tuple(tensor.shape) for key, tensor in merged.items()} == SHAPES
        assert not any(torch.isnan(tensor).any() for tensor in merged.values())

    return check


def target_in(folder):
    return Target("merge", seeds, check_in(folder), mutate)


def test_a_file_is_merged_or_refused(tmp_path):
    assert_nothing_found(target_in(tmp_path), cases=300)


def is_whole(data):
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            return packed.testzip() is None
    except Exception:
        return False


def test_members_are_packed_again(tmp_path):
    """Or else every change inside a zip file would be caught by its checksums."""
    rng = random.Random(0)
    changed = [mutate(seeds()[2], rng) for _ in range(40)]
    assert sum(is_whole(data) for data in changed) > 20
    assert json.loads(mutate(seeds()[0], random.Random(4))[8:].split(b"}}")[0] + b"}}")
