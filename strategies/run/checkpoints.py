"""Checkpoints: the folder that a run is written down in after each round, and picked up from."""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedrebasin import Permutation, PermutationSpec
from fedrebasin.errors import one_line
from fedrebasin.spec import json as spec_json

from ..flower import log
from ..replies import to_state
from ..traits import unwrap
from . import checkpoint as files
from . import inner_state, random_state
from .checkpoint import Checkpoint, CheckpointError
from .lock import locked
from .run import Run


@dataclass
class Checkpoints:
    """Where the runs of a strategy are kept.

    Args:
        folder: of the checkpoints.
        strategy: the inner strategy, as it is before the first round.
    """

    folder: Path
    strategy: Strategy

    def __post_init__(self) -> None:
        self._declared = inner_state.at_start(self.strategy)
        self._settings = inner_state.plain_settings(self.strategy)
        self._warned: set[str] = set()

    @contextmanager
    def opened(self, run: Run, initial: ArrayRecord, resume: bool) -> Iterator[ArrayRecord]:
        """Hold the folder for a run, and give the model that it begins with.

        Args:
            run: it has seen the form of the model.
            initial: the model that it would begin with.
            resume: whether it goes on from the newest whole checkpoint, where there is one.

        Raises:
            CheckpointError: if the folder cannot be written, is held or was used by another run, or its checkpoint is
                of another model, spec, strategy or newer format, or none is whole.
        """
        with ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.folder))
                with tempfile.TemporaryFile(dir=self.folder) as file:
                    file.write(b"1")
            except BlockingIOError:
                raise CheckpointError(f"{self.folder}: another run is writing there; use another folder") from None
            except OSError as error:
                raise CheckpointError(f"{self.folder}: checkpoints cannot be written: {one_line(error)}") from None
            for begun in self.folder.glob(".round-*.partial"):  # by a process that was killed: the folder is held
                shutil.rmtree(begun, ignore_errors=True)
            if not resume:
                self._refuse_another_run()
            yield self._resume(run, initial) if resume else initial

    def write(self, run: Run, server_round: int, arrays: ArrayRecord) -> None:
        """Write down a run after a round that gave these arrays.

        Raises:
            CheckpointError: if the folder cannot be written.
        """
        late, other = inner_state.undeclared(self.strategy, self._declared), inner_state.unwritten(self.strategy)
        missing = dict.fromkeys(late, "has it from its first round only")
        missing |= dict.fromkeys(other, "has to keep it as a dict of NumPy arrays")
        for where, why in missing.items():
            if where not in self._warned:
                self._warned.add(where)
                log(WARNING, "%s is not in checkpoints: the strategy %s", where, why)
        inner, form = inner_state.capture(self.strategy, self._declared)
        known: dict[str, Tensor] = {}
        for node_id, permutation in ({} if run.frames is None else run.frames.by_node).items():
            # Nodes may have the same one, and a file holds no tensor twice.
            known |= {f"{node_id}/{name}": index.clone() for name, index in permutation.items()}
        files.write(
            self.folder,
            Checkpoint(
                server_round,
                {"global": to_state(arrays), "inner": inner, "frames": known},
                {"inner": form, "beta": run.beta},
                run.metrics,
                random_state.capture(),
                self._made_by(run),
            ),
        )

    def _refuse_another_run(self) -> None:
        for path in files.newest_first(self.folder)[:1]:
            try:
                made_by = files.read(path).made_by
                whose = "a run of 0.1" if made_by is None else f"run {made_by['run']}"
            except Exception:  # whatever is wrong with it, it is not this run's
                whose = "another run"
            raise CheckpointError(
                f"{self.folder}: holds checkpoints of {whose}, the last {path.name}: "
                "resume=True goes on with it, a new run needs another folder"
            )

    def _resume(self, run: Run, initial: ArrayRecord) -> ArrayRecord:
        """Bring a new run to where the newest whole checkpoint left an old one; the model that it goes on with."""
        apply = files.read_newest(self.folder, lambda found: self._build(run, found))
        return initial if apply is None else apply()

    def _build(self, run: Run, found: Checkpoint) -> Callable[[], ArrayRecord]:
        """What resumes a run from a checkpoint when it is called, once all of it was looked at."""
        if not run.arrays:
            raise CheckpointError("the model that it is of has to be given to start: initial_arrays, an ArrayRecord")
        model = {key: form.shape for key, form in run.template.forms.items()}
        theirs = {key: tuple(tensor.shape) for key, tensor in found.tensors.get("global", {}).items()}
        if different := _differing(theirs, model):
            raise CheckpointError(f"a checkpoint of another model (it differs in {', '.join(different[:5])})")
        identity = run.identity if found.made_by is None else self._checked_identity(run, found.made_by)
        had = self._settings if found.made_by is None else dict(found.made_by["settings"])
        changed = _differing(had, self._settings)
        for section in ("global", "inner"):
            for key, tensor in found.tensors.get(section, {}).items():
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise ValueError(f"{key}: not finite")
        arrays = run.template.encode(found.tensors["global"])
        beta = found.settings["beta"]
        if beta is not None and not (isinstance(beta, int | float) and 0 < float(beta) < float("inf")):
            raise ValueError(f"beta {beta!r}")
        values = inner_state.rebuild(found.tensors.get("inner", {}), found.settings["inner"], self._declared, model)
        metrics = {number: dict(MetricRecord(dict(entries))) for number, entries in found.metrics.items()}
        by_node = _permutations(run.spec, found.tensors.get("frames", {}))
        restore_generators = random_state.restorer(found.random_state)

        def apply() -> ArrayRecord:
            if found.made_by is None:
                log(
                    WARNING,
                    "%s: written by 0.1, which noted neither run, spec nor strategy and has a checksum of the arrays "
                    "only: that they are the same, and that round, metrics, numbers and random state are whole, "
                    "could not be verified",
                    self.folder,
                )
            for where in changed:
                before, now = had.get(where), self._settings.get(where)
                log(WARNING, "%s: the run had %s=%r, it goes on with %r", self.folder, where, before, now)
            inner_state.restore(self.strategy, values)
            if run.frames is not None and run.spec is not None:
                run.frames.by_node = by_node
            restore_generators()
            run.identity, run.done, run.beta, run.metrics = identity, found.server_round, beta, dict(metrics)
            log(INFO, "resumed from %s after round %d", self.folder, found.server_round)
            return arrays

        return apply

    def _made_by(self, run: Run) -> dict[str, Any]:
        """Whose checkpoint it is: the run, its spec, the strategies and their settings."""
        return {
            "run": run.identity,
            "spec": _digests(run.spec),
            "strategies": [type(layer).__qualname__ for layer in unwrap(self.strategy)],
            "settings": self._settings,
        }

    def _checked_identity(self, run: Run, theirs: Mapping[str, Any]) -> str:
        """The run that a checkpoint is of, if spec and strategies are those of this one."""
        ours = self._made_by(run)
        if theirs["strategies"] != ours["strategies"]:
            names = [" around ".join(map(str, made_by["strategies"])) for made_by in (theirs, ours)]
            raise CheckpointError(f"a checkpoint of another strategy ({names[0]} instead of {names[1]})")
        if different := _differing(theirs["spec"], ours["spec"]):
            raise CheckpointError(f"a checkpoint of another spec (it differs in the groups {', '.join(different[:5])})")
        if not re.fullmatch("[0-9a-f]{16}", theirs["run"]):
            raise ValueError(f"run {theirs['run']!r}")
        return str(theirs["run"])


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    nothing = object()
    return sorted(key for key in {*a, *b} if a.get(key, nothing) != b.get(key, nothing))


def _digests(spec: PermutationSpec | None) -> dict[str, str]:
    """A checksum of each group of a spec; none where there is no spec."""
    groups = [] if spec is None else spec_json.encode(spec)["groups"]
    for group in groups:
        group["axes"].sort(key=json.dumps)
    return {group["name"]: hashlib.sha256(json.dumps(group).encode()).hexdigest() for group in groups}


def _permutations(spec: PermutationSpec | None, tensors: Mapping[str, Tensor]) -> dict[int, Permutation]:
    by_node: dict[int, dict[str, Tensor]] = {}
    for key, index in tensors.items():
        node_id, _, name = key.partition("/")
        by_node.setdefault(int(node_id), {})[name] = index
    return {} if spec is None else {node_id: Permutation(spec, indices) for node_id, indices in by_node.items()}
