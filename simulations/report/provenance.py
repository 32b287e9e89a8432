"""Where numbers come from: the versions, the machine and the time that they were found with."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version

import torch

import fedrebasin

PACKAGES = ("torch", "flwr", "numpy", "scipy")


@dataclass(frozen=True)
class Origin:
    """What a comparison was run with, besides its configuration.

    Args:
        started: in UTC, ISO 8601.
        device: that clients trained on, in words.
        machine: operating system, architecture and usable processor cores.
        engine: ``inline`` or ``flower``.
        versions: of Python, this package and those that numbers depend on.
    """

    started: str = ""
    device: str = ""
    machine: str = ""
    engine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def now(device: torch.device, engine: str) -> Origin:
        """Of a run that starts now on this machine."""
        cores = usable_cores()
        return Origin(
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            machine=f"{platform.system()} {platform.machine()}, {cores} core{'' if cores == 1 else 's'}",
            engine=engine,
            versions={
                "python": platform.python_version(),
                "fedrebasin": fedrebasin.__version__,
                **{package: version(package) for package in PACKAGES},
            },
        )


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
