"""SIGKILL at random moments of a run: it goes on to the model that it would have come to."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KILLS, ROUNDS = 20, 6

# One warm process that forks every server: the imports are paid for once.
FORKING = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from flwr.app import ArrayRecord
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned
from tests.strategies.helpers import CLIENTS, STRATEGIES, make_state
from tests.strategies.test_runs import SPEC, make_app

folder, kills, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)


def serve(checkpoints, result):
    random.seed(0)
    strategy = Aligned(
        STRATEGIES["FedAvgM"](), spec=SPEC, frame="client", checkpoint=checkpoints, resume=checkpoints is not None
    )
    grid = InlineGrid(make_app(own_order=True), CLIENTS)
    arrays = strategy.start(grid, ArrayRecord(dict(make_state(0))), num_rounds=rounds).arrays
    result.write_text(json.dumps({key: array.data.hex() for key, array in arrays.items()}))


def in_a_process_of_its_own(checkpoints, result):
    sys.stdout.flush()
    if child := os.fork():
        return child
    try:
        serve(checkpoints, result)
    finally:
        os._exit(0)


expected = folder / "expected"
started = time.perf_counter()
os.waitpid(in_a_process_of_its_own(None, expected), 0)
seconds = time.perf_counter() - started
rng, killed, resumed_at, runs = random.Random(1), 0, [], 0
while True:
    checkpoints, result = folder / f"run-{runs}", folder / f"result-{runs}"
    resumed_at.append(max((int(path.name[-6:]) for path in checkpoints.glob("round-*")), default=0))
    child = in_a_process_of_its_own(checkpoints, result)
    if killed < kills:
        time.sleep(rng.uniform(0.0, 0.7 * seconds))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed += os.WIFSIGNALED(status)
    if os.WIFSIGNALED(status):
        continue
    assert result.read_text() == expected.read_text(), f"run {runs} came to another model"
    assert not list(checkpoints.glob("round-*/*.tmp"))
    runs += 1
    if killed >= kills:
        break
print(json.dumps({"killed": killed, "runs": runs, "resumed_at": resumed_at, "seconds": seconds}))
"""


def test_a_run_killed_at_any_moment_goes_on_to_the_same_model(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FORKING, str(tmp_path), str(KILLS), str(ROUNDS)]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"] == KILLS
    assert found["runs"] >= 1
    assert len(set(found["resumed_at"])) > 2, "killed in different rounds"
