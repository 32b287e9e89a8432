"""Checkpoints: what is read and written, what is refused, and what stays in memory."""

import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fedrebasin import DataError
from fedrebasin.files.checkpoints import load_checkpoint, save_checkpoint
from fedrebasin.files.mapped import MappedState


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(5, 3, generator=generator),
        "a.half": torch.randn(7, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
    }


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


WRITERS = {
    "safetensors": lambda path, state: save_file(state, path),
    "torch": lambda path, state: torch.save(state, path),
    "old torch": lambda path, state: torch.save(state, path, _use_new_zipfile_serialization=False),
    "state_dict": lambda path, state: torch.save({"epoch": 3, "state_dict": state}, path),
    "model": lambda path, state: torch.save({"model": state, "optimizer": {"lr": 0.1}}, path),
    "model_state_dict": lambda path, state: torch.save({"model_state_dict": state, "loss": torch.ones(2)}, path),
    "ours": lambda path, state: save_checkpoint(path, state),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_form_is_read(tmp_path, writer):
    path = tmp_path / "file"
    WRITERS[writer](path, tensors())
    checkpoint = load_checkpoint(path)
    assert same(tensors(), dict(checkpoint.state))
    checkpoint.state.release()
    assert same(tensors(), dict(checkpoint.state))


def test_what_is_written_is_a_safetensors_file_with_its_metadata(tmp_path):
    path = save_checkpoint(tmp_path / "x.safetensors", tensors(), metadata={"made": "by hand"})
    assert same(tensors(), load_file(path))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"made": "by hand"}


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_text("before")

    def pieces(key):
        yield tensors()[key]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, tensors(), pieces)
    with pytest.raises(DataError, match="bytes where"):
        save_checkpoint(path, tensors(), lambda key: [tensors()[key]] * 2)
    with pytest.raises(DataError, match="announced"):
        save_checkpoint(path, tensors(), lambda key: [tensors()[key].double()])
    assert os.listdir(tmp_path) == ["x.safetensors"]
    assert path.read_text() == "before"


def test_prefixes_are_taken_off(tmp_path):
    torch.save({f"module.{key}": tensor for key, tensor in tensors().items()}, tmp_path / "a.pt")
    checkpoint = load_checkpoint(tmp_path / "a.pt").without_prefix()
    assert checkpoint.prefix == "module."
    assert same(tensors(), dict(checkpoint.state))


def test_wrappers_of_single_modules_are_taken_out(tmp_path):
    names = list(tensors())
    torch.save({f"module._orig_mod.{key}": tensor for key, tensor in tensors().items()}, tmp_path / "a.pt")
    checkpoint = load_checkpoint(tmp_path / "a.pt").without_prefix([f"model.{key}" for key in names])
    assert checkpoint.prefix == "module._orig_mod."
    assert checkpoint.renamed == (names[0], f"model.{names[0]}")
    assert same({f"model.{key}": tensor for key, tensor in tensors().items()}, dict(checkpoint.state))


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("how", ["pickle", "torch", "old torch", "inside"])
def test_a_pickle_is_refused_and_never_run(tmp_path, how):
    path, trace = tmp_path / "trap.pt", tmp_path / "was-run"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Trap(trace)))
    else:
        content = {"state_dict": {"a": torch.ones(2), "b": Trap(trace)}} if how == "inside" else Trap(trace)
        torch.save(content, path, _use_new_zipfile_serialization=how != "old torch")
    with pytest.raises(DataError, match="refused, and nothing in it was run") as caught:
        load_checkpoint(path)
    assert how == "pickle" or "it asks for" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Trap(trace))).close()
    assert trace.exists()  # the trap works


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither a safetensors file nor"),
        (b"no checkpoint at all", "neither a safetensors file nor"),
        (b"\x10\0\0\0\0\0\0\0" + b'{"a": [[[[[[[[[[', "not a readable safetensors file"),
        (b"\xff\xff\xff\xff\0\0\0\0" + b'{"a"', "not a readable safetensors file"),
        (b"PK\x03\x04 and then nothing", "cannot be read as a torch checkpoint"),
        (b"\x80\x02", "cannot be read as a torch checkpoint"),
    ],
)
def test_a_damaged_file_gets_one_line(tmp_path, content, message):
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_cut_off_files_are_refused(tmp_path):
    save_file(tensors(), tmp_path / "a.safetensors")
    torch.save(tensors(), tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(DataError, match=name):
            load_checkpoint(path)


@pytest.mark.parametrize("content", [{"a": 1, "b": {"c": 2}}, [1, 2], {}, torch.ones(3)])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DataError, match="no state dict"):
        load_checkpoint(tmp_path / "a.pt")


def test_missing_files_folders_and_sparse_tensors(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(DataError, match="a folder"):
        load_checkpoint(tmp_path)
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "a.pt")
    with pytest.raises(DataError, match="sparse"):
        load_checkpoint(tmp_path / "a.pt")


def test_entries_that_are_no_tensors_are_named(tmp_path):
    torch.save({"a": torch.ones(2), "version": 3}, tmp_path / "a.pt")
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint.dropped == ("version",)
    assert list(checkpoint.state) == ["a"]


def test_tensors_in_ordinary_memory_are_never_let_go(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(tensors(), path)
    state = MappedState(tensors(), path, window=1)
    for _ in range(3):
        assert same(tensors(), dict(state))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_only_a_window_of_a_file_stays_in_memory(tmp_path):
    count, paths = 24, [tmp_path / form for form in ("safetensors", "torch")]
    for path in paths:
        WRITERS[path.name](path, {f"{k}": torch.full((2**20,), float(k)) for k in range(count)})
    script = (
        "import sys, torch\n"
        "from fedrebasin.files import load_checkpoint\n"
        "def resident():\n"
        "    return 4096 * int(open('/proc/self/statm').read().split()[1])\n"
        "for path in sys.argv[1:]:\n"
        "    state = load_checkpoint(path).state\n"
        "    state._window = 2**23\n"
        "    float(torch.ones(2**20).sum())\n"
        "    before = largest = resident()\n"
        f"    for k in 2 * list(range({count})):\n"
        "        assert float(state[str(k)].sum()) == k * 2**20\n"
        "        largest = max(largest, resident())\n"
        "    print(largest - before)\n"
    )
    command = [sys.executable, "-c", script, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert max(map(int, done.stdout.split())) < 2**25  # of the 96 MiB in each file
