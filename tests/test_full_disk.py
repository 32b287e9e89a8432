"""A disk that fills up: what was there stays, nothing torn and nothing begun is left, and the error is the disk's."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fedrebasin.simulations.papers.result import Chart, Line, Record, Result
from fedrebasin.simulations.report import draw_paths, write_experiment, write_page, write_picture, write_results

from fedrebasin import merge_files
from fedrebasin.files import save_checkpoint
from fedrebasin.simulations import read_results
from tests.cli.pairs import write_mlps

resource = pytest.importorskip("resource", reason="Windows limits no files")
RESULTS = Path(__file__).parent / "compatibility" / "written_by_0_1" / "results"
STATE = {"0.weight": torch.ones(50, 40)}


@contextmanager
def room_for(size):
    """The operating system writes no more than so many bytes to a file, torn in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


STUDY = read_results(RESULTS)
PATHS = STUDY.comparisons[0].paths
RECORD = Record(
    *("name", "title", "source", "small"),
    {"seeds": [0], "recipe": {"dataset": "digits"}},
    *(1.0, 1.0, "cpu"),
    Result((), (), (Chart("title", "x", "y", (Line("a", (0.0, 1.0), (1.0, 2.0)),)),)),
)
WRITERS = {
    "record": RECORD.write,
    "experiment": lambda folder: write_experiment(folder, RECORD),
    "results": lambda folder: write_results(folder, STUDY),
    "page": lambda folder: write_page(folder, STUDY),
    "picture": lambda folder: write_picture(folder, STUDY),
    "paths": lambda folder: draw_paths(PATHS, folder, ("a", "b")),
    "checkpoint": lambda folder: folder.mkdir(exist_ok=True) or save_checkpoint(folder / "a.safetensors", STATE),
}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path, name, there):
    WRITERS[name](tmp_path / "first")
    written = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    folder = tmp_path / "out"
    folder.mkdir()
    for file in written if there else ():
        (folder / file).write_bytes(b"old")
    size = min(map(len, written.values()))
    assert size > 100
    for room in (0, 100, size - 1):
        with room_for(room), pytest.raises(OSError, match="File too large"):
            WRITERS[name](folder)
        assert {path.read_bytes() for path in folder.iterdir()} == ({b"old"} if there else set())
    with room_for(max(map(len, written.values()))):
        WRITERS[name](folder)
    assert {path.name for path in folder.iterdir()} == written.keys()


def test_a_merge_leaves_no_half_of_a_file(tmp_path):
    write_mlps(tmp_path)
    paths, out = [tmp_path / "a.safetensors", tmp_path / "b.pt"], tmp_path / "out" / "m.safetensors"
    out.parent.mkdir()
    for room in (0, 100, 500):
        with room_for(room), pytest.raises(OSError, match="File too large"):
            merge_files(paths, out)
        assert not list(out.parent.iterdir())
    merge_files(paths, out)
    assert list(out.parent.iterdir()) == [out]
