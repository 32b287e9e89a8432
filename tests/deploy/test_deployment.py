"""``examples/deployment``: what is refused, and what survives."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 900.0
ROUNDS = 4

pytestmark = pytest.mark.deploy


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(ROOT / "examples" / "deployment"))
    try:
        import federation
    finally:
        sys.path.pop(0)
    return federation


@pytest.fixture(scope="module")
def deployment(example, tmp_path_factory):
    running = example.Deployment(tmp_path_factory.mktemp("deployment"), free_ports(8))
    try:
        running.up()
        yield running
    finally:
        running.down()
        assert not list(running.pids.iterdir())


def free_ports(count):
    """The first of so many free ports in a row."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, each in enumerate(sockets):
                each.bind(("127.0.0.1", first + offset))
        except (OSError, OverflowError):
            continue
        finally:
            for each in sockets:
                each.close()
        return first


def refusal(deployment, command):
    """The words with which a SuperNode that may not take part gives up."""
    path = deployment.folder / "refused.log"
    with path.open("w") as output:  # no pipe: processes that it has started would hold it open
        process = subprocess.Popen(
            command,
            env=deployment.environment,
            cwd=deployment.folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + PATIENCE
    try:
        while "Exit Code: " not in path.read_text() and time.monotonic() < deadline:
            time.sleep(0.5)
        time.sleep(1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    words = re.sub(r"\x1b\[[0-9;]*m", "", path.read_text()).partition("Exit Code: ")[2].split("\n")
    assert words[0] == "305", path.read_text()
    return " ".join(words[1:3])


def test_an_unregistered_node_is_refused(deployment, example, capsys):
    key = deployment.folder / "keys" / "stranger"
    example.make_node_key(key)
    words = refusal(deployment, deployment.supernode_command(4, key))
    with capsys.disabled():
        print(f"\nrefused: a node whose key is not registered: {words}")


def test_a_node_without_a_key_is_refused(deployment, capsys):
    words = refusal(deployment, deployment.supernode_command(4, None))
    with capsys.disabled():
        print(f"\nrefused: a node without a key: {words}")


def test_an_unencrypted_node_is_refused(deployment, capsys):
    command = [*deployment.supernode_command(4, None, encrypted=False), "--max-retries", "1"]
    words = refusal(deployment, command)
    with capsys.disabled():
        print(f"\nrefused: a node without encryption: {words}")


class Run:
    """``flwr run``, read line by line."""

    def __init__(self, deployment, *settings):
        self.lines = []
        self.process = subprocess.Popen(
            deployment.run_command(*settings),
            env=deployment.environment,
            cwd=deployment.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def until(self, pattern):
        """Read on to the first line that matches."""
        for line in self.process.stdout:
            self.lines.append(re.sub(r"\x1b\[[0-9;]*m", "", line.rstrip()))
            if re.search(pattern, self.lines[-1]):
                return self.lines[-1]
        raise AssertionError("\n".join(["the run ended before " + pattern, *self.lines[-40:]]))

    def end(self):
        """Read to the end."""
        self.lines += [re.sub(r"\x1b\[[0-9;]*m", "", line.rstrip()) for line in self.process.stdout]
        self.process.wait()


def test_a_killed_node_costs_a_round_its_timeout_and_a_killed_superlink_nothing(deployment, capsys):
    settings = ["local-epochs=3", "width=32.0"]
    whole = Run(deployment, "rounds=1", "round-timeout=900.0", *settings)
    whole.until("Sampled 3 nodes")
    started = time.monotonic()
    whole.until("aggregate_train: Received")
    timeout = max(20.0, 2 * (time.monotonic() - started))  # twice what a round takes on this machine
    whole.end()

    settings += [f"rounds={ROUNDS}", f"round-timeout={timeout}"]
    run = Run(deployment, *settings)
    run.until("resumed from .* after round 1")
    run.until("Sampled 3 nodes")
    deployment.stop("node-2", signal.SIGKILL)
    killed = time.monotonic()
    run.until(rf"\[ROUND 2/{ROUNDS - 1}\]")
    waited = time.monotonic() - killed
    checkpoints = deployment.folder / "checkpoints"
    assert max(path.name for path in checkpoints.glob("round-*")) == "round-000002"
    deployment.stop("superlink", signal.SIGKILL)
    run.process.kill()
    run.end()

    deployment.start_superlink()
    again = Run(deployment, *settings)
    resumed = again.until("resumed from .* after round 2")
    again.end()
    results = json.loads((deployment.folder / "results.json").read_text())
    assert sorted(map(int, results["rounds"])) == list(range(1, ROUNDS + 1)), again.lines[-30:]
    accuracies = {int(number): accuracy for number, accuracy in results["accuracies"].items()}
    assert accuracies[ROUNDS] > 0.3, "it learns"
    assert waited < 3 * timeout
    with capsys.disabled():
        print(f"\nsurvived: a SuperNode killed in round 2, which ended after {waited:.0f} s with the two others")
        print(f"survived: the SuperLink killed in round 3: {resumed}; rounds 3 and 4 went on with two nodes")
        print(f"accuracies after the restart, from round 2: {accuracies}")
