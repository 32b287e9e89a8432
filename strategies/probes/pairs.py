"""Probes of pairs of clients' models: why a round's merge worked or failed, as floats in Flower's ``Result`` by round.

Give them to any aligned strategy: ``Aligned(..., probes=(BarrierProbe(), ConnectivityProbe()))``. Each runs every k
rounds and changes nothing; one that raises is reported by the strategy and never ends a round. They work on server data
or, without any, on the clients', who get both models of a pair in one request and return sums.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, islice
from statistics import fmean
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from fedrebasin.analysis import Barrier, Halfway, HalfwayConnectivity, PathEvaluation, loss_barrier
from fedrebasin.devices import at_hand, move
from fedrebasin.errors import RebasinError
from fedrebasin.state import State
from fedrebasin.sums import Statistic, collect_sums

from ..round import TIMEOUT, Round, need_models, summed
from .schedule import Schedule

Batches = Iterable[tuple[Tensor, Tensor]]
Found = TypeVar("Found")


@dataclass(frozen=True)
class _OfPairs(Schedule):
    """A probe of pairs of models, on server data where it was given some, else on sums from the clients."""

    model: nn.Module | None = None
    batches: Iterable[Any] | None = None
    needs_whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.batches is None) != (self.model is None):
            name = type(self).__name__
            raise RebasinError(f"{name} needs a model and batches, or neither of them to ask the clients")
        check_batches(self.batches, type(self).__name__)

    @property
    def asks_clients(self) -> bool:
        """Whether pairs of models are sent to the round's clients."""
        return self.batches is None

    def _pairs(self, round_: Round, count: int) -> Iterator[tuple[State, State]]:
        """Pairs of the clients' models, aligned where the round aligned them, on its device, as there is time."""
        states = need_models(round_, type(self).__name__)
        for i, j in self.affordable(islice(combinations(range(len(states)), 2), count)):
            yield move(states[i], round_.device), move(states[j], round_.device)


def check_batches(batches: Iterable[Any] | None, who: str) -> None:
    """Refuse batches that only the first round could read.

    Raises:
        RebasinError: if they are an iterator.
    """
    if isinstance(batches, Iterator):
        raise RebasinError(f"{who} reads its batches in every round: give a list or a DataLoader, not an iterator")


def _check_counts(max_pairs: int, examples: int | None) -> None:
    if max_pairs < 1 or (examples is not None and examples < 1):
        raise RebasinError(f"max_pairs {max_pairs}, examples {examples}: both must be at least 1")


def _asked(
    round_: Round, statistic: Statistic[Found], a: State, timeout: float, examples: int | None
) -> tuple[Found, int]:
    """What the clients' sums say of A and the model that the statistic carries, and how many clients were left out."""
    sums, left_out = summed(round_, statistic, a, timeout, examples)
    return statistic.finish(sums), left_out


@dataclass(frozen=True)
class BarrierProbe(_OfPairs):
    """The loss barrier between clients' models, after the alignment where there is one (Git Re-Basin, Definition 2.2).

    Args:
        model: the architecture; neither its parameters nor its mode nor its device change.
        batches: ``(inputs, labels)`` on the server, a list or a DataLoader; None asks the round's clients, who evaluate
            the points of the path on their own data and return sums: one round trip for each pair.
        points: positions on each path, both ends included.
        max_pairs: of clients, in the order of the replies.
        timeout: seconds to wait for clients' answers about a pair; ``seconds`` decides whether it is asked about.
        examples: how many are enough of each client: it reads no further batch then; None for all.

    Raises:
        RebasinError: if there is only one of model and batches, or a number is too small.
    """

    model: nn.Module | None = None
    batches: Batches | None = None
    points: int = 5
    max_pairs: int = 1
    timeout: float = TIMEOUT
    examples: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points < 2:
            raise RebasinError(f"points {self.points}: a path has at least its two ends")
        _check_counts(self.max_pairs, self.examples)

    def __call__(self, round_: Round) -> Mapping[str, float]:
        """``barrier`` (mean over the pairs), ``barrier-largest``, ``barrier-pairs``: how many there was time for.

        Where clients were asked also ``barrier-left-out``: how many of them gave no usable sums; all points of a path
        are taken on the data of the others.

        Raises:
            CalibrationError: if the round holds no models, or no client gave sums.
        """
        if not self.due(round_):
            return {}
        found = [self._barrier(round_, a, b) for a, b in self._pairs(round_, self.max_pairs)]
        values = [barrier.value for barrier, _ in found]
        measured = {"barrier-pairs": float(len(found))}
        if found:
            measured |= {"barrier": fmean(values), "barrier-largest": max(values)}
        if found and self.asks_clients:
            measured["barrier-left-out"] = float(max(left_out for _, left_out in found))
        return measured

    def _barrier(self, round_: Round, a: State, b: State) -> tuple[Barrier, int]:
        if self.model is None or self.batches is None:
            return _asked(round_, PathEvaluation(b, self.points), a, self.timeout, self.examples)
        with at_hand(self.model, a, round_.device):
            return loss_barrier(self.model, a, b, self.batches, self.points), 0


@dataclass(frozen=True)
class ConnectivityProbe(_OfPairs):
    """Whether the halfway model's features follow LLFC or LEWC, and the conditions of both.

    Args:
        model: the architecture; neither its parameters nor its mode nor its device change.
        batches: on the server, with or without labels, a list or a DataLoader; a few hundred examples do. None asks the
            round's clients, who run both models and the halfway one on their own data and return sums: one round trip
            for each pair.
        max_pairs: of clients, in the order of the replies.
        timeout: seconds to wait for clients' answers about a pair; ``seconds`` decides whether it is asked about.
        examples: how many are enough of each client: it reads no further batch then; None for all.

    Raises:
        RebasinError: if there is only one of model and batches, or a number is too small.
    """

    model: nn.Module | None = None
    batches: Iterable[Tensor | tuple[Tensor, Tensor]] | None = None
    max_pairs: int = 1
    timeout: float = TIMEOUT
    examples: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_counts(self.max_pairs, self.examples)

    def __call__(self, round_: Round) -> Mapping[str, float]:
        """Means over the pairs.

        Returns:
            ``feature-cosine``: at lam = 1/2 the cosines of both laws are one, the mean over layers, and
            ``feature-cosine-last`` that of the logits; ``feature-baseline``: the cosine of the two models' own
            features; ``llfc-coefficient`` and ``lewc-coefficient``: the logits' length relative to each law's sum;
            ``commutativity``: LLFC's Dist_com, the mean over layers; ``reciprocal-ratio``: LEWC's norm ratio, the mean
            over the layers after the first; ``connectivity-pairs``: how many there was time for; and where clients were
            asked ``connectivity-left-out``: how many of them gave no usable sums.

        Raises:
            CalibrationError: if the round holds no models, no client gave sums, or no layer is linear.
        """
        if not self.due(round_):
            return {}
        found = [self._halfway(round_, a, b) for a, b in self._pairs(round_, self.max_pairs)]
        rows = [_summary(halfway) for halfway, _ in found]
        measured = {"connectivity-pairs": float(len(found))}
        if found:
            measured |= {key: fmean(row[key] for row in rows) for key in rows[0]}
        if found and self.asks_clients:
            measured["connectivity-left-out"] = float(max(left_out for _, left_out in found))
        return measured

    def _halfway(self, round_: Round, a: State, b: State) -> tuple[Halfway, int]:
        statistic = HalfwayConnectivity(b)
        if self.model is None or self.batches is None:
            return _asked(round_, statistic, a, self.timeout, self.examples)
        with at_hand(self.model, a, round_.device):
            return statistic.finish(collect_sums(statistic, self.model, a, self.batches)), 0


def _summary(found: Halfway) -> dict[str, float]:
    last = found.features[-1]
    ratios = [layer.ratio.mean for layer in found.orthogonality]
    return {
        "feature-cosine": fmean(layer.cosine.mean for layer in found.features),
        "feature-cosine-last": last.cosine.mean,
        "feature-baseline": fmean(layer.baseline.mean for layer in found.features),
        "llfc-coefficient": last.coefficient.mean,
        "lewc-coefficient": last.coefficient.mean * 2.0 ** (last.depth - 1),
        "commutativity": fmean(layer.dist_com for layer in found.distances),
        "reciprocal-ratio": fmean(ratios[1:] or ratios),
    }
