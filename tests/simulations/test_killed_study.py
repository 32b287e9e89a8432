"""SIGKILL at every step of a write: a study keeps every comparison that was finished, and goes on to all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "compatibility" / "written_by_0_1" / "results"

# One process forks every study: the imports are paid for once. Comparisons are made up, what is written is not.
FORKING = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
from fedrebasin.simulations import Study, expand, read_results, run_study, write_page, write_results

module = sys.modules["fedrebasin.simulations.comparison.task"]

folder, model, wanted = Path(sys.argv[1]), read_results(Path(sys.argv[2])).comparisons[0], json.loads(sys.argv[3])
CONFIGS = expand({"width": [8.0], "clients": [2], "seed": [0, 1, 2]})
NAMES = model.strategies


def dying(number, torn):
    \"\"\"Count the steps of writes, and end this process at one of them, a text torn in the middle if it is one.\"\"\"
    steps = 0

    def step(original, *arguments, **named):
        nonlocal steps
        steps += 1
        if steps == number:
            if torn and original is write:
                path, text = arguments[:2]
                with open(path, "w") as file:
                    file.write(text[: len(text) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    write, rename, unlink = Path.write_text, Path.replace, Path.unlink
    Path.write_text = lambda *a, **k: step(write, *a, **k)
    Path.replace = lambda *a, **k: step(rename, *a, **k)
    Path.unlink = lambda *a, **k: step(unlink, *a, **k)
    return lambda: steps


def study(out, told):
    \"\"\"What the command does with --out; it tells of each comparison before and after it was written down.\"\"\"

    def made(config, strategies, **_):
        os.write(told, f"trained {config.seed}\\n".encode())
        rows = tuple(replace(row, seed=config.seed) for row in model.rows)
        return replace(model, config=config, rows=rows)

    module.compare = made
    known = read_results(out) if (out / "results.json").exists() else Study(())

    def save(done):
        write_results(out, done)
        os.write(told, f"kept {done.comparisons[-1].config.seed}\\n".encode())

    done = run_study(CONFIGS, NAMES, jobs=1, known=known, finished=save)
    write_page(out, done)


def forked(out, number=0, torn=False):
    \"\"\"The lines that a process told, whether it was killed, and how many steps it took.\"\"\"
    reading, writing = os.pipe()
    if not (child := os.fork()):
        steps = dying(number, torn)
        try:
            study(out, writing)
            os.write(writing, f"steps {steps()}\\n".encode())
            os._exit(0)
        except BaseException as error:
            os.write(writing, f"error {error!r}\\n".encode())
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as file:
        lines = file.read().splitlines()
    _, status = os.waitpid(child, 0)
    return lines, os.WIFSIGNALED(status), status


out = folder / "whole"
out.mkdir()
lines, _, status = forked(out)
assert status == 0, lines
(steps,) = (int(line.split()[1]) for line in lines if line.startswith("steps"))
expected = (out / "results.json").read_text()
killed = 0
for number in [step for step in range(1, steps + 1) if wanted is None or step in wanted]:
    for torn in (False, True):
        out = folder / f"killed-{number}-{torn}"
        out.mkdir()
        (out / ".someone.else.partial").write_text("not ours")
        lines, was_killed, _ = forked(out, number, torn)
        assert was_killed, lines
        killed += 1
        kept = {line for line in lines if line.startswith("kept")}
        there = read_results(out).comparisons if (out / "results.json").exists() else ()
        assert len(there) >= len(kept), f"killed at step {number}: a finished comparison is lost"
        again, was_killed, status = forked(out)
        assert not was_killed and status == 0, again
        trained = {line for line in again if line.startswith("trained")}
        assert trained == {f"trained {config.seed}" for config in CONFIGS[len(there) :]}
        assert (out / "results.json").read_text() == expected
        assert {path.name for path in out.iterdir()} == {"results.json", "report.html", ".someone.else.partial"}
print(json.dumps({"steps": steps, "killed": killed}))
"""


def killed_at(tmp_path, steps):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FORKING, str(tmp_path), str(RESULTS), json.dumps(steps)]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
def test_a_study_killed_during_a_write_keeps_what_was_finished(tmp_path):
    found = killed_at(tmp_path, [6, 7, 14])
    assert found["killed"] == 6


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
def test_at_every_step(tmp_path):
    found = killed_at(tmp_path, None)
    assert found["killed"] == 2 * found["steps"] >= 24
