"""What a calibrator or a probe needs of a round, or a clear refusal."""

from __future__ import annotations

from fedrebasin.errors import CalibrationError
from fedrebasin.merging import Merge
from fedrebasin.spec import PermutationSpec
from fedrebasin.state import State

from .round import Round


def need_merge(round_: Round, who: str) -> Merge:
    """The round's aligned models.

    Raises:
        CalibrationError: if the aligner leaves everything as it is, so that there are none.
    """
    if round_.merge is None:
        raise CalibrationError(f"{who} needs aligned models: use an aligner other than Identity")
    return round_.merge


def need_models(round_: Round, who: str) -> list[State]:
    """The clients' models, in the order of the replies: aligned where the round aligned them.

    Raises:
        CalibrationError: if they were let go of as they came.
    """
    if round_.merge is not None:
        return list(round_.merge.states)
    states: list[State] = [reply.state for reply in round_.replies]
    if not all(states):
        raise CalibrationError(f"{who} needs the clients' models, which streaming lets go of: use streaming=False")
    return states


def need_spec(round_: Round, who: str) -> PermutationSpec:
    """The permutation spec.

    Raises:
        CalibrationError: if the strategy was given none.
    """
    if round_.spec is None:
        raise CalibrationError(f"{who} needs the permutation spec: give the strategy spec=")
    return round_.spec
