"""Checkpoints: the folder that a run is written down in after each round, and picked up from."""

from __future__ import annotations

from dataclasses import dataclass
from logging import INFO
from pathlib import Path

from flwr.app import ArrayRecord
from flwr.common import log
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedrebasin import Permutation

from ..replies import to_state
from . import checkpoint as files
from . import inner_state
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
        self._at_start = inner_state.numbers_of(self.strategy)

    def write(self, run: Run, server_round: int, arrays: ArrayRecord) -> None:
        """Write down a run after a round that gave these arrays.

        Raises:
            CheckpointError: if the folder cannot be written.
        """
        inner, form = inner_state.capture(self.strategy, self._at_start)
        known: dict[str, Tensor] = {}
        for node_id, permutation in ({} if run.frames is None else run.frames.by_node).items():
            known |= {f"{node_id}/{name}": index for name, index in permutation.items()}
        files.write(
            self.folder,
            files.Checkpoint(
                server_round,
                {"global": to_state(arrays), "inner": inner, "frames": known},
                {"inner": form, "beta": run.beta},
                run.metrics,
                files.random_state(),
            ),
        )

    def resume(self, run: Run, initial: ArrayRecord) -> ArrayRecord:
        """Bring a new run to where the newest whole checkpoint left an old one.

        Args:
            run: it has seen the form of the model; nothing is done to it if there is no checkpoint.
            initial: the model that the run would begin with.

        Returns:
            the model that it goes on with.

        Raises:
            CheckpointError: if the checkpoint is of another model, or none is whole.
        """
        found = files.read_newest(self.folder, {key: form.shape for key, form in run.template.forms.items()})
        if found is None:
            return initial
        inner_state.restore(self.strategy, found.tensors.get("inner", {}), found.settings["inner"])
        if run.frames is not None and run.spec is not None:
            by_node: dict[int, dict[str, Tensor]] = {}
            for key, index in found.tensors.get("frames", {}).items():
                node_id, _, name = key.partition("/")
                by_node.setdefault(int(node_id), {})[name] = index
            run.frames.by_node = {node_id: Permutation(run.spec, indices) for node_id, indices in by_node.items()}
        files.restore_random_state(found.random_state)
        run.done, run.beta, run.metrics = found.server_round, found.settings["beta"], dict(found.metrics)
        log(INFO, "resumed from %s after round %d", self.folder, found.server_round)
        return run.template.encode(found.tensors["global"])
