"""A deployed federation on this machine: a SuperLink and three SuperNodes, with TLS and node authentication.

    python examples/deployment/federation.py up      # certificates, keys, SuperLink, three registered SuperNodes
    python examples/deployment/federation.py run     # the app of this folder; again after a crash: it goes on
    python examples/deployment/federation.py down

Everything lies in one folder (``--folder``, default ``build/deployment``): certificates, keys, logs, checkpoints.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from credentials import make_certificates, make_node_key

HERE = Path(__file__).resolve().parent
NODES = 3
PATIENCE = 240.0
SECONDS_TO_STOP = 20.0


class Deployment:
    """One federation.

    Args:
        folder: of all its files.
        port: of the SuperLink; the SuperNodes have the next ones.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder.resolve(), port
        self.pids = self.folder / "pids"
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(self.folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }

    def prepare(self) -> None:
        """Certificates, a key for each SuperNode, and the address for ``flwr``."""
        make_certificates(self.folder / "certificates")
        for node in range(NODES):
            make_node_key(self.folder / "keys" / f"node-{node}")
        self.pids.mkdir(parents=True, exist_ok=True)
        (self.folder / "flower").mkdir(exist_ok=True)
        (self.folder / "flower" / "config.toml").write_text(
            f'[superlink]\ndefault = "deployment"\n\n[superlink.deployment]\naddress = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{self.folder / "certificates" / "ca.crt"}"\n'
        )

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it answers; registered nodes outlast it in its database."""
        certificates = self.folder / "certificates"
        command = ["flower-superlink", "--host", "127.0.0.1", "--port", str(self.port), "--enable-supernode-auth"]
        command += [
            "--ssl-ca-certfile",
            str(certificates / "ca.crt"),
            "--ssl-certfile",
            str(certificates / "server.pem"),
        ]
        command += ["--ssl-keyfile", str(certificates / "server.key"), "--database", str(self.folder / "superlink.db")]
        self._start("superlink", command)
        trusted = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
        self._wait_for(lambda: urllib.request.urlopen(f"https://127.0.0.1:{self.port}/health", context=trusted))

    def register(self, node: int) -> None:
        """Let the SuperLink accept a SuperNode's key."""
        self.flwr("supernode", "register", str(self.folder / "keys" / f"node-{node}.pub"), "deployment", check=True)

    def start_supernode(self, node: int) -> None:
        """Start a SuperNode; it keeps trying until the SuperLink answers."""
        self._start(f"node-{node}", self.supernode_command(node, self.folder / "keys" / f"node-{node}"))

    def supernode_command(self, node: int, key: Path | None, encrypted: bool = True) -> list[str]:
        """How a SuperNode is started."""
        command = ["flower-supernode", "--superlink", f"127.0.0.1:{self.port}"]
        command += ["--host", "127.0.0.1", "--port", str(self.port + 1 + node)]
        command += ["--node-config", f"partition-id={node} num-partitions={NODES}"]
        root = str(self.folder / "certificates" / "ca.crt")
        command += ["--root-certificates", root] if encrypted else ["--insecure"]
        return command + (["--auth-supernode-private-key", str(key)] if key else [])

    def flwr(self, *arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run ``flwr`` with this federation's settings."""
        done = subprocess.run(["flwr", *arguments], env=self.environment, cwd=HERE, capture_output=True, text=True)
        if check and done.returncode:
            raise SystemExit(f"flwr {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done

    def run_command(self, *settings: str) -> list[str]:
        """How the app is run: ``settings`` are of its run config, such as ``rounds=6``."""
        chosen = " ".join([f"folder='{self.folder}'", *settings])
        return ["flwr", "run", str(HERE), "deployment", "--stream", "-c", chosen]

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop the SuperLink (``superlink``) or a SuperNode (``node-0``), with the apps that it runs."""
        path = self.pids / name
        if not path.exists():
            return
        group = int(path.read_text())
        path.unlink()
        deadline = time.monotonic() + SECONDS_TO_STOP
        for step in (how, signal.SIGKILL):
            try:
                os.killpg(group, step)
                while step != signal.SIGKILL and time.monotonic() < deadline:
                    os.killpg(group, 0)
                    time.sleep(0.2)
            except ProcessLookupError:
                return

    def up(self) -> None:
        """Everything that is needed, from nothing."""
        self.prepare()
        self.start_superlink()
        for node in range(NODES):
            self.register(node)
            self.start_supernode(node)

    def down(self) -> None:
        """Stop what was started."""
        for path in sorted(self.pids.glob("*")):
            self.stop(path.name)

    def log(self, name: str) -> str:
        """What the SuperLink or a SuperNode has written."""
        return (self.folder / f"{name}.log").read_text()

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("a") as output:
            process = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        (self.pids / name).write_text(str(process.pid))

    def _wait_for(self, ready: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                ready()
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        raise SystemExit(f"the SuperLink does not answer; see {self.folder / 'superlink.log'}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["up", "run", "down"])
    parser.add_argument("settings", nargs="*", help="of the run, such as rounds=6 local-epochs=10")
    parser.add_argument("--folder", type=Path, default=Path("build/deployment"))
    parser.add_argument("--port", type=int, default=42100)
    arguments = parser.parse_intermixed_args()
    deployment = Deployment(arguments.folder, arguments.port)
    if arguments.command == "up":
        deployment.up()
        print(f"A SuperLink at 127.0.0.1:{arguments.port} and {NODES} SuperNodes; logs in {arguments.folder}")
    elif arguments.command == "run":
        command = deployment.run_command(*arguments.settings)
        subprocess.run(command, env=deployment.environment, cwd=HERE, check=False)
        results = deployment.folder / "results.json"
        print(json.loads(results.read_text())["accuracies"] if results.exists() else "no results")
    else:
        deployment.down()


if __name__ == "__main__":
    main()
