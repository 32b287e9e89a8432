"""Files that are whole or not there, and JSON without NaN."""

import json
import math
import os
import subprocess
import sys

import pytest

from fedrebasin import writing
from fedrebasin.writing import finite, json_text, write_text, written_atomically


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_takes_its_name_when_it_is_whole(tmp_path, durable):
    path = tmp_path / "a.json"
    path.write_text("old")
    with written_atomically(path, durable) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", [False, True])
def test_a_folder_replaces_the_one_before(tmp_path, durable):
    path = tmp_path / "round-000001"
    path.mkdir()
    (path / "old").touch()
    with written_atomically(path, durable) as partial:
        (partial / "inside").mkdir(parents=True)
        (partial / "inside" / "new").write_text("1")
    assert [one.name for one in sorted(path.rglob("*"))] == ["inside", "new"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", [False, True])
def test_what_fails_leaves_all_as_it_was(tmp_path, folder):
    path = tmp_path / "a"
    path.write_text("old")

    def fail():
        with written_atomically(path) as partial:
            partial.mkdir() if folder else partial.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_without_a_form_become_null_and_tuples_lists():
    content = {"a": (1.5, math.nan, [math.inf, -math.inf]), 2: {"b": True, "c": None, "d": "text"}}
    assert finite(content) == {"a": [1.5, None, [None, None]], "2": {"b": True, "c": None, "d": "text"}}
    assert json.loads(json_text(content)) == finite(content)
    assert json_text({"a": [1]}) == '{\n "a": [\n  1\n ]\n}\n'


def test_a_symbolic_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("old")
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "elsewhere").read_text() == "old"
    assert (tmp_path / "a").read_text() == "new"
    assert not (tmp_path / "a").is_symlink()


def begun_by(path, process, machine=None):
    """What such a process leaves when it is killed."""
    begun = path.with_name(f".{path.name}.{machine or writing._machine()}-{process}.partial")
    begun.write_text("half")
    return begun


def dead():
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("other", [False, True])
def test_what_a_killed_process_left_is_removed(tmp_path, other):
    path, folder = tmp_path / "results.json", tmp_path / ".round-1.x.partial"
    begun = begun_by(tmp_path / "report.html" if other else path, dead())
    folder.mkdir()
    write_text(path, "new")
    assert not begun.exists()
    assert folder.exists()


def test_what_is_of_others_stays(tmp_path):
    path = tmp_path / "a"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    kept = [
        begun_by(path, os.getppid()),
        begun_by(path, dead(), machine="0" * 8),
        tmp_path / ".a.partial",
        tmp_path / "a.123.partial",
        tmp_path / f".a.{dead()}.partial",
    ]
    for file in kept[2:]:
        file.touch()
    link = path.with_name(f".{path.name}.{writing._machine()}-{dead()}.partial")
    link.symlink_to(elsewhere)
    write_text(path, "new")
    assert all(file.exists() for file in kept)
    assert not link.is_symlink()
    assert (elsewhere / "kept").exists()


@pytest.mark.parametrize("durable", [False, True])
def test_a_link_in_the_way_of_the_temporary_is_not_followed(tmp_path, durable):
    path, target = tmp_path / "a", tmp_path / "outside"
    target.write_text("theirs")
    path.with_name(f".a.{writing._machine()}-{os.getpid()}.partial").symlink_to(target)
    with written_atomically(path, durable) as partial:
        partial.write_text("ours")
    assert target.read_text() == "theirs"
    assert (path.read_text(), path.is_symlink()) == ("ours", False)
