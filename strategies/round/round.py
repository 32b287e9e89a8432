"""Round: what calibrators and probes get to see of one round of training, what they give back, what they may demand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from flwr.serverapp import Grid
from torch import Tensor

from fedrebasin import CalibrationError, Merge, PermutationSpec
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
        grid: to send queries to clients; None where no round was configured.
        device: where the server computes.
        query_type: the message type under which clients answer queries.
        robust: whether the inner strategy expects attackers: sums that contradict the others' are left out then.
        aggregate: what the inner strategy makes of the replies' models if they are aligned like this, by states and
            alignments in the order of ``replies``; None where that is their mean.
    """

    server_round: int
    spec: PermutationSpec | None
    global_state: State
    replies: tuple[Reply, ...]
    merge: Merge | None
    state: State
    grid: Grid | None
    device: torch.device
    query_type: str = QUERY
    robust: bool = False
    aggregate: Callable[[Merge], State] | None = None


@dataclass(frozen=True)
class Calibrated:
    """The state dict after a calibration, what to report of it, and the models where they were aligned anew."""

    state: State
    metrics: Mapping[str, float] = field(default_factory=dict)
    merge: Merge | None = None


class Calibrator(Protocol):
    """Corrects the aggregate: BatchNorm statistics, variance, temperature.

    What it demands it says by attributes, which are read when the strategy is made:

    - ``rewrites_weights`` (True where it is not said): whether parameters change, and not only buffers. Strategies that
      keep state, see :class:`fedrebasin.strategies.traits.Traits`, never see what is done to their aggregate.
    - ``needs_all`` (False): whether it reads the clients' aligned models, so that there must be some.
    - ``needs_whole`` (False): whether it runs the model, none of whose arrays may stay with the clients then.
    - ``private`` (False): whether it takes nothing from the clients but the aggregate, so that noise covers it.
    - ``robust`` (False): whether what one client says cannot own it, as a robust strategy inside expects; sums that
      come by ``summed`` or ``each`` are compared with the others'.
    """

    def __call__(self, round_: Round) -> Calibrated:
        """Calibrate the round's aggregate."""
        ...


class Probe(Protocol):
    """Looks at a round and returns floats for Flower's ``Result``; it changes nothing.

    One that has ``asks_clients = True`` shows clients other clients' models, which privacy does not allow; one that has
    ``needs_whole = True`` runs the model, none of whose arrays may stay with the clients then.
    """

    def __call__(self, round_: Round) -> Mapping[str, float]:
        """Measure the round."""
        ...


def need_merge(round_: Round, who: str) -> tuple[Merge, PermutationSpec]:
    """The round's aligned models, and their spec.

    Raises:
        CalibrationError: if the aligner leaves everything as it is, so that there are none.
    """
    if round_.merge is None or round_.spec is None:
        raise CalibrationError(f"{who} needs aligned models: use an aligner other than Identity")
    return round_.merge, round_.spec


def need_models(round_: Round, who: str) -> list[Mapping[str, Tensor]]:
    """The clients' models, in the order of the replies: aligned where the round aligned them.

    Raises:
        CalibrationError: if they were let go of as they came.
    """
    if round_.merge is not None:
        return list(round_.merge.states)
    states: list[Mapping[str, Tensor]] = [reply.state for reply in round_.replies]
    if not all(states):
        raise CalibrationError(f"{who} needs the clients' models, which streaming lets go of: use streaming=False")
    return states
