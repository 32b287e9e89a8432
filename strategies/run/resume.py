"""Journal: what an aligned strategy writes down after each round, and how it picks a run up again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.common import log
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from fedrebasin import Permutation, PermutationSpec

from ..replies import Template, to_state
from . import checkpoint as files
from . import inner_state
from .frames import Frames


@dataclass
class Journal:
    """Checkpoints of one run.

    Args:
        folder: where they are written.
        strategy: the inner strategy, as it is before the first round.
    """

    folder: Path
    strategy: Strategy
    metrics: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._at_start = inner_state.numbers_of(self.strategy)

    def write(
        self,
        server_round: int,
        arrays: ArrayRecord,
        metrics: MetricRecord | None,
        frames: Frames | None,
        beta: float | None,
    ) -> None:
        """Write down a finished round.

        Raises:
            CheckpointError: if the folder cannot be written.
        """
        if metrics is not None:
            self.metrics[server_round] = dict(metrics)
        inner, form = inner_state.capture(self.strategy, self._at_start)
        known: dict[str, Tensor] = {}
        for node_id, permutation in ({} if frames is None else frames.by_node).items():
            known |= {f"{node_id}/{name}": index for name, index in permutation.items()}
        files.write(
            self.folder,
            files.Checkpoint(
                server_round,
                {"global": to_state(arrays), "inner": inner, "frames": known},
                {"inner": form, "beta": beta},
                self.metrics,
                files.random_state(),
            ),
        )

    def resume(
        self, initial: ArrayRecord, spec: PermutationSpec | None, frames: Frames | None
    ) -> tuple[int, ArrayRecord, float | None]:
        """Pick the run up where the newest whole checkpoint left it.

        Returns:
            the last finished round (0 if there is no checkpoint), its global model, and beta.

        Raises:
            CheckpointError: if the checkpoint is of another model, or none is whole.
        """
        template = Template.of(initial)
        found = files.read_newest(self.folder, {key: form.shape for key, form in template.forms.items()})
        if found is None:
            return 0, initial, None
        inner_state.restore(self.strategy, found.tensors.get("inner", {}), found.settings["inner"])
        if frames is not None and spec is not None:
            by_node: dict[int, dict[str, Tensor]] = {}
            for key, index in found.tensors.get("frames", {}).items():
                node_id, _, name = key.partition("/")
                by_node.setdefault(int(node_id), {})[name] = index
            frames.by_node = {node_id: Permutation(spec, indices) for node_id, indices in by_node.items()}
        files.restore_random_state(found.random_state)
        self.metrics = dict(found.metrics)
        log(INFO, "resumed from %s after round %d", self.folder, found.server_round)
        return found.server_round, template.encode(found.tensors["global"]), found.settings["beta"]

    def completed(self, result: Result, done: int, last: ArrayRecord) -> Result:
        """Flower's result of the rounds after a resume, with those before it and with the rounds' true numbers."""
        for record in (
            result.train_metrics_clientapp,
            result.evaluate_metrics_clientapp,
            result.evaluate_metrics_serverapp,
        ):
            shifted = {number + done: metrics for number, metrics in record.items()}
            record.clear()
            record.update(shifted)
        for number in range(1, done + 1):
            if number in self.metrics:
                result.train_metrics_clientapp[number] = MetricRecord(dict(self.metrics[number]))
        if not result.arrays:
            result.arrays = last
        return result
