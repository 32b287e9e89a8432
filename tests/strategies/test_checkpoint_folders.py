"""A checkpoint folder belongs to one run, and a disk that is full leaves in it what was whole."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fedrebasin.strategies.run import checkpoint as files
from fedrebasin.strategies.run import lock
from flwr.serverapp.strategy import FedAvg

from fedrebasin.strategies import Aligned, CheckpointError
from tests.strategies.helpers import COMMON, make_state
from tests.strategies.test_checkpoint_faults import aligned, resumed
from tests.strategies.test_runs import SPEC, assert_same, make_app, run

ROOT = Path(__file__).resolve().parents[2]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def identity(folder, name):
    return json.loads((folder / name / files.META).read_text())["made-by"]["run"]


# -- whose folder it is --


def test_a_folder_that_holds_another_run_is_refused_and_left_as_it_is(tmp_path):
    app = make_app()
    run(aligned(tmp_path, frame="server"), make_state(0), rounds=5)
    before, holder = names(tmp_path), identity(tmp_path, "round-000005")
    with pytest.raises(
        CheckpointError, match=rf"holds checkpoints of run {holder}, the last round-000005: resume=True"
    ):
        run(aligned(tmp_path, frame="server"), make_state(1), rounds=3, app=app)
    assert not app.seen
    assert names(tmp_path) == before


def test_a_run_that_was_resumed_keeps_its_identity_and_two_runs_have_two(tmp_path):
    for folder in ("a", "b"):
        run(aligned(tmp_path / folder, "FedAvg"), make_state(0), rounds=1)
    run(aligned(tmp_path / "a", "FedAvg", resume=True), make_state(0), rounds=2)
    first, second = (identity(tmp_path / "a", f"round-00000{number}") for number in (1, 2))
    assert first == second != identity(tmp_path / "b", "round-000001")


def test_the_checkpoint_that_was_written_last_is_never_removed(tmp_path):
    """A strategy without a loop of its own, in a folder with later rounds of others."""
    run(aligned(tmp_path, "FedAvg"), make_state(0), rounds=5)
    newest = files.read(tmp_path / "round-000005")
    for number in (1, 2, 3):
        files.write(tmp_path, files.Checkpoint(number, newest.tensors, newest.settings, {}, newest.random_state, {}))
        assert f"round-00000{number}" in names(tmp_path)
    assert names(tmp_path) == ["round-000002", "round-000003", "round-000004", "round-000005"]


def test_rounds_are_counted_as_numbers(tmp_path):
    for number in (999_999, 1_000_000, 1_000_001):
        files.write(tmp_path, files.Checkpoint(number, {}, {}, {}, {}, {}))
    assert [path.name for path in files.newest_first(tmp_path)] == ["round-1000001", "round-1000000"]


def test_a_resume_past_the_rounds_that_are_asked_for_says_so(tmp_path, caplog):
    whole = run(aligned(tmp_path), make_state(0, width=24), rounds=3, app=make_app(own_order=True))
    assert_same(whole, resumed(tmp_path, rounds=2))
    assert "2 rounds were asked for and 3 are done: their model is the result" in caplog.text


def test_two_runs_at_once_are_kept_apart(tmp_path):
    class Second(FedAvg):
        def configure_train(self, *arguments):
            with pytest.raises(CheckpointError, match="another run is writing there"):
                run(aligned(tmp_path, "FedAvg", resume=True), make_state(0), rounds=1)
            tried.append(1)
            return super().configure_train(*arguments)

    tried: list[int] = []
    run(Aligned(Second(**COMMON), spec=SPEC, checkpoint=tmp_path), make_state(0), rounds=2)
    assert len(tried) == 2
    assert names(tmp_path) == ["round-000001", "round-000002"]


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from fedrebasin.strategies.run.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment, text=True
    ) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(CheckpointError, match="another run is writing there"):
                run(aligned(tmp_path, "FedAvg"), make_state(0), rounds=1)
        finally:
            os.kill(holder.pid, signal.SIGKILL)
    assert names(tmp_path) == [".lock"]
    run(aligned(tmp_path, "FedAvg"), make_state(0), rounds=1)
    assert names(tmp_path) == ["round-000001"]


@pytest.mark.parametrize("broken", ["no fcntl", "no locks"])
def test_where_there_are_no_locks_a_run_goes_on_without(tmp_path, monkeypatch, caplog, broken):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    if broken == "no fcntl":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "flock", flock)
    run(aligned(tmp_path, "FedAvg"), make_state(0), rounds=1)
    assert names(tmp_path) == ["round-000001"]
    assert ("no locks on this file system" in caplog.text) == (broken == "no locks")


# -- disks --


def test_a_folder_that_cannot_be_written_is_noticed_before_the_first_round(tmp_path):
    (tmp_path / "file").write_text("")
    app = make_app()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match="checkpoints cannot be written"):
            run(aligned(folder), make_state(0), rounds=1, app=app)
    assert not app.seen


def test_a_full_disk_is_noticed_before_the_first_round(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    app = make_app()
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(CheckpointError, match=r"checkpoints cannot be written: OSError.*No space left"):
        run(aligned(tmp_path), make_state(0), rounds=1, app=app)
    assert not app.seen
    assert names(tmp_path) == []


@pytest.mark.parametrize("room", [0, 100, 10_000])
def test_a_disk_that_fills_up_in_a_run_leaves_the_whole_checkpoints(tmp_path, monkeypatch, room):
    run(aligned(tmp_path), make_state(0, width=24), rounds=2, app=make_app(own_order=True))
    write_bytes = Path.write_bytes

    def full(path, data):
        write_bytes(path, data[:room])
        if len(data) > room:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(CheckpointError, match=r"the checkpoint cannot be written: OSError.*No space left"):
            resumed(tmp_path, rounds=3)
    assert names(tmp_path) == ["round-000001", "round-000002"]
    assert files.read_newest(tmp_path, lambda found: found.server_round) == 2


def test_what_a_killed_process_has_begun_is_removed(tmp_path):
    begun = tmp_path / ".round-000001.123.partial"
    begun.mkdir()
    (begun / files.ARRAYS).write_bytes(b"half")
    run(aligned(tmp_path, "FedAvg"), make_state(0), rounds=1)
    assert names(tmp_path) == ["round-000001"]
