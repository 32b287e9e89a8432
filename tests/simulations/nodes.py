"""A data set that tells where it was loaded: for clusters, which a test steers through its folder."""

import itertools
import os
import signal
import time
from pathlib import Path

import ray

from fedrebasin.simulations import load_dataset

NAME = "tests.simulations.nodes:digits"


def digits(data_dir):
    """Leave a file with node and process; a process loads once, so these are the processes that work.

    Where a file ``die`` lies, they die; while ``hold`` lies there, those wait that come after the first.
    """
    folder = Path(data_dir)
    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
    number = _number(folder, f"{node} {os.getpid()}")
    if (folder / "die").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    while number and (folder / "hold").exists():
        time.sleep(0.05)
    return load_dataset("digits")


def _number(folder, text):
    for number in itertools.count():
        try:
            with open(folder / f"loaded-{number}", "x") as file:
                file.write(text)
            return number
        except FileExistsError:
            continue
    raise AssertionError


def loaded(folder):
    """The node and the process of every load so far."""
    return [tuple(path.read_text().split()) for path in sorted(Path(folder).glob("loaded-*"))]
