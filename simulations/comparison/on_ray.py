"""Comparisons as tasks of a Ray cluster."""

import platform
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from fedrebasin import RebasinError
from fedrebasin.errors import one_line, reason

from ..app import Progress, silent
from ..engines import connected, demand_room
from ..report import Comparison
from .task import Task, run_task


def on_ray(
    tasks: Sequence[Task], address: str, resources: Mapping[str, float], progress: Progress | None
) -> Generator[Comparison]:
    """The comparisons as they finish, each in a process of the cluster; however this ends, none goes on there.

    One whose process or node is lost begins again elsewhere, which Ray sees to, three times at most.

    Args:
        tasks: with engine ``inline``.
        address: of the cluster, see :func:`connected`.
        resources: ``num_cpus`` and ``num_gpus`` of each.
        progress: told how many are finished.

    Raises:
        RebasinError: if there is no such cluster, none of its nodes has room, or a comparison fails.
    """
    report = progress or silent
    with connected(address) as ray:
        demand_room(ray, resources)
        submit = ray.remote(_run_there).options(**resources).remote
        pending = {submit(task): task for task in tasks}
        try:
            while pending:
                report("comparisons on Ray", len(tasks) - len(pending), len(tasks))
                (done,), _ = ray.wait(list(pending), num_returns=1)
                yield _result(ray, done, pending.pop(done))
        finally:
            for one in pending:
                ray.cancel(one, force=True)


def _run_there(task: Task) -> Comparison:
    try:
        return run_task(task)
    except Exception as error:
        raise RebasinError(f"{task.label}on {platform.node()}: {reason(error)}") from error


def _result(ray: Any, done: Any, task: Task) -> Comparison:
    try:
        comparison: Comparison = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise RebasinError(reason(error.cause)) from error
    except ray.exceptions.RayError as error:  # of the process or its node
        raise RebasinError(f"{task.label}on Ray: {one_line(error)}") from error
    return comparison
