"""Round: what calibrators and probes get to see of one round of training, and what they give back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from flwr.serverapp import Grid

from fedrebasin.merging import Merge
from fedrebasin.spec import PermutationSpec
from fedrebasin.state import State

from ..replies import Reply
from ..sums import QUERY


@dataclass(frozen=True)
class Round:
    """A finished aggregation, frozen.

    Args:
        server_round: Flower's round, from 1.
        spec: the permutation spec, or None where nothing is permuted.
        global_state: the model that the server sent out.
        replies: the replies that took part, in the order of ``merge.states``.
        merge: the aligned models; None where the aligner leaves everything as it is.
        state: the aggregate, in the global dtypes, on ``device``.
        grid: to send queries to clients.
        device: where the server computes.
        query_type: the message type under which clients answer queries.
    """

    server_round: int
    spec: PermutationSpec | None
    global_state: State
    replies: tuple[Reply, ...]
    merge: Merge | None
    state: State
    grid: Grid
    device: torch.device
    query_type: str = QUERY


@dataclass(frozen=True)
class Calibrated:
    """The state dict after a calibration, what to report of it, and the models where they were aligned anew."""

    state: State
    metrics: Mapping[str, float] = field(default_factory=dict)
    merge: Merge | None = None


class Calibrator(Protocol):
    """Corrects the aggregate: BatchNorm statistics, variance, temperature.

    ``rewrites_weights`` tells whether it changes more than buffers. Inner strategies that keep state never see what is
    done to their aggregate, so that such a calibrator refuses them.
    """

    @property
    def rewrites_weights(self) -> bool:
        """Whether parameters change, and not only buffers."""
        ...

    def __call__(self, round_: Round) -> Calibrated:
        """Calibrate the round's aggregate."""
        ...


class Probe(Protocol):
    """Looks at a round and returns floats for Flower's ``Result``; it changes nothing."""

    def __call__(self, round_: Round) -> Mapping[str, float]:
        """Measure the round."""
        ...
