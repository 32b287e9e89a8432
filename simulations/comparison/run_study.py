"""Runs comparisons one after the other, in several processes or on a Ray cluster; continues after an interruption."""

import multiprocessing
import queue
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing
from typing import Any

from fedrebasin import RebasinError
from fedrebasin.devices import pick_device

from ..app import Progress, demand_choices
from ..config import SimulationConfig
from ..engines import demand_resources
from ..report import Comparison, Study, usable_cores
from .compare import DEFAULT_STRATEGIES
from .on_ray import on_ray
from .task import Task, run_task

POLL_SECONDS = 0.2


def run_study(
    configs: Sequence[SimulationConfig],
    strategies: Sequence[str] = DEFAULT_STRATEGIES,
    *,
    engine: str = "inline",
    client_resources: Mapping[str, float] | None = None,
    ray: str | None = None,
    jobs: int = 0,
    known: Study | None = None,
    finished: Callable[[Study], None] | None = None,
    progress: Progress | None = None,
) -> Study:
    """Compare the strategies in every configuration; what is known is not run again.

    In each configuration clients are trained once for all strategies. A comparison that lacks some of the strategies
    trains its clients again, for those strategies only. Numbers depend neither on ``jobs`` nor ``ray`` nor on what was
    known.

    Args:
        configs: each once.
        strategies: names, each once; see :func:`make_strategy`.
        engine: ``inline`` or ``flower``; the latter uses all cores by itself, so that comparisons follow each other.
        client_resources: ``num_cpus`` and ``num_gpus`` of a client in Flower's engine, see :func:`on_engine`, or of a
            comparison on a Ray cluster (default: one core, and one GPU where clients would train on one here).
        ray: address of a Ray cluster: ``auto``, or ``HOST:PORT``. Each comparison is a task there; with engine
            ``flower`` each client instead, and comparisons follow each other.
        jobs: comparisons that run at the same time, each in a process with one thread; 0 for one a core, and for one
            only where clients train on a GPU. A script that uses several keeps its call behind
            ``if __name__ == "__main__":``, since the processes import it.
        known: comparisons that are there already.
        finished: called after each comparison with everything that is known by then: the place to save it.
        progress: called with who is at work, how much is done, and of how much.

    Returns:
        the comparisons that were asked for; ``known`` ones of other configurations or strategies are left out.

    Raises:
        RebasinError: if an option is not allowed or a comparison fails.
    """
    demand_choices(strategies, engine)
    demand_resources(engine, client_resources, ray)
    if jobs < 0:
        raise RebasinError(f"jobs {jobs}: it must be positive, or 0 for one a core")
    if jobs and ray is not None:
        raise RebasinError(f"jobs {jobs}: on a Ray cluster as many comparisons run at a time as it has room for")
    study = known or Study(())
    in_flower = {"client_resources": client_resources, "ray": ray} if engine == "flower" else {}
    tasks = _tasks(study, configs, strategies, {"engine": engine, **in_flower})
    workers = min(len(tasks), 1 if engine != "inline" else jobs or _workers(configs))
    run: Generator[Comparison]
    if tasks and engine == "inline" and ray is not None:
        resources = {"num_cpus": 1.0, "num_gpus": float(_train_on_gpu(configs))} | dict(client_resources or {})
        run = on_ray(tasks, ray, resources, progress)
    else:
        run = _one_by_one(tasks, progress) if workers <= 1 else _side_by_side(tasks, workers, progress)
    with closing(run):  # whatever is raised meanwhile ends what has not finished
        for comparison in run:
            study = study.with_(comparison)
            if finished is not None:
                finished(study)
    return study.only(configs, strategies)


def _tasks(
    study: Study,
    configs: Sequence[SimulationConfig],
    strategies: Sequence[str],
    how: Mapping[str, Any],
) -> list[Task]:
    tasks = []
    for number, config in enumerate(configs, 1):
        found = study.find(config)
        missing = tuple(name for name in strategies if found is None or name not in found.strategies)
        if missing:
            label = f"{number}/{len(configs)} " if len(configs) > 1 else ""
            tasks.append(Task(config, missing, how, label))
    return tasks


def _train_on_gpu(configs: Sequence[SimulationConfig]) -> bool:
    return any(config.device == "cuda" or pick_device(config.device).type == "cuda" for config in configs)


def _workers(configs: Sequence[SimulationConfig]) -> int:
    return 1 if _train_on_gpu(configs) else usable_cores()


def _one_by_one(tasks: Sequence[Task], progress: Progress | None) -> Generator[Comparison]:
    for task in tasks:
        yield run_task(task, progress)


def _side_by_side(tasks: Sequence[Task], workers: int, progress: Progress | None) -> Generator[Comparison]:
    """The comparisons as they finish; however this ends, no process is left.

    joblib would not do: its processes do not import the script, so that they know nothing that it has registered, and
    what they report would need a queue all the same.
    """
    context = _context()
    messages = context.Queue()
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(messages,))
    try:
        pending: set[Future[Comparison]] = {executor.submit(_work, task) for task in tasks}
        while pending:
            done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            _pass_on(messages, progress)
            for future in done:
                yield future.result()
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    executor.shutdown()


def _context() -> Any:
    """Processes forked off one that has imported everything and has no threads; spawned where nothing can be forked."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fedrebasin.simulations.comparison"])
    return context


def _pass_on(messages: Any, progress: Progress | None) -> None:
    while True:
        try:
            message = messages.get_nowait()
        except queue.Empty:
            return
        if progress is not None:
            progress(*message)


_messages: Any = None


def _start_worker(messages: Any) -> None:
    global _messages
    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process is interrupted as well, and ends this one


def _work(task: Task) -> Comparison:
    def report(who: str, done: int, total: int) -> None:
        _messages.put((who, done, total))

    try:
        return run_task(task, report)
    except RebasinError as error:
        raise RebasinError(str(error)) from None  # a subclass might not survive the way to another process
