"""Probes: why a round's merge worked or failed, as floats in Flower's ``Result`` by round.

Give them to any aligned strategy: ``Aligned(..., probes=(BarrierProbe(model, batches), AlignmentProbe()))``. Each runs
every k rounds and changes nothing; one that raises is reported by the strategy and never ends a round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean

import torch
from torch import Tensor, nn

from fedrebasin import (
    CalibrationError,
    Evaluation,
    Permutation,
    RebasinError,
    State,
    barrier_value,
    commutativity,
    feature_connectivity,
    fixed_points,
    interpolate,
    loss_barrier,
    reciprocal_orthogonality,
    weight_spectra,
)

from .federated import summed
from .round import Round

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Schedule:
    """When a probe runs, and how long it may.

    Args:
        every: run in rounds that this divides.
        seconds: start no further measurement that would, as long as the last one took, end after this; None for no
            limit. The first one always runs to its end.
    """

    every: int = field(default=1, kw_only=True)
    seconds: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.every < 1 or (self.seconds is not None and not self.seconds > 0):
            raise RebasinError(f"every {self.every}, seconds {self.seconds}: both must be positive")

    def due(self, round_: Round) -> bool:
        """Whether this is one of the probe's rounds."""
        return round_.server_round % self.every == 0

    def affordable(self, pairs: Sequence[tuple[State, State]]) -> Iterable[tuple[State, State]]:
        """The pairs for which there is time."""
        started = time.perf_counter()
        for done, pair in enumerate(pairs):
            spent = time.perf_counter() - started
            if self.seconds is not None and done and spent * (done + 1) / done > self.seconds:
                return
            yield pair


@dataclass(frozen=True)
class BarrierProbe(_Schedule):
    """The loss barrier between clients' models, after the alignment where there is one (Git Re-Basin, Definition 2.2).

    Args:
        model: the architecture; neither its parameters nor its mode change.
        batches: ``(inputs, labels)`` on the server, a list or a DataLoader; None asks the round's clients, who evaluate
            the points of the path on their own data and return sums.
        points: positions on each path, both ends included.
        max_pairs: of clients, in the order of the replies.
        timeout: seconds to wait for clients' answers at each point.
    """

    model: nn.Module | None = None
    batches: Batches | None = None
    points: int = 5
    max_pairs: int = 1
    timeout: float = 600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.batches is None) != (self.model is None):
            raise RebasinError("BarrierProbe needs a model and batches, or neither of them to ask the clients")

    def __call__(self, round_: Round) -> Mapping[str, float]:
        """``barrier`` (mean over the pairs), ``barrier-largest``, ``barrier-pairs``."""
        if not self.due(round_):
            return {}
        values = [self._barrier(round_, a, b) for a, b in self.affordable(_pairs(round_, self.max_pairs))]
        if not values:
            return {}
        return {"barrier": fmean(values), "barrier-largest": max(values), "barrier-pairs": float(len(values))}

    def _barrier(self, round_: Round, a: State, b: State) -> float:
        if self.model is not None and self.batches is not None:
            return loss_barrier(self.model.to(round_.device), a, b, self.batches, self.points).value
        lams = torch.linspace(0, 1, self.points, dtype=torch.float64).tolist()
        return barrier_value(self._loss_on_clients(round_, interpolate(a, b, lam)) for lam in lams)

    def _loss_on_clients(self, round_: Round, state: State) -> float:
        sums, left_out = summed(round_, Evaluation(), state, self.timeout)
        if left_out:
            # Points of one path must be taken on the same data.
            raise CalibrationError(f"{left_out} of {len(round_.replies)} clients evaluated no point of the path")
        return Evaluation().finish(sums).loss


@dataclass(frozen=True)
class ConnectivityProbe(_Schedule):
    """Whether the halfway model's features follow LLFC or LEWC, and the conditions of both.

    Args:
        model: the architecture.
        batches: on the server, with or without labels, a list or a DataLoader; a few hundred examples do.
        max_pairs: of clients, in the order of the replies.
    """

    model: nn.Module
    batches: Iterable[Tensor | tuple[Tensor, Tensor]]
    max_pairs: int = 1

    def __call__(self, round_: Round) -> Mapping[str, float]:
        """Means over the pairs.

        Returns:
            ``feature-cosine``: at lam = 1/2 the cosines of both laws are one, the mean over layers, and
            ``feature-cosine-last`` that of the logits; ``feature-baseline``: the cosine of the two models' own
            features; ``llfc-coefficient`` and ``lewc-coefficient``: the logits' length relative to each law's sum;
            ``commutativity``: LLFC's Dist_com, the mean over layers; ``reciprocal-ratio``: LEWC's norm ratio, the mean
            over the layers after the first.
        """
        if not self.due(round_):
            return {}
        model = self.model.to(round_.device)
        rows = [self._measure(model, a, b) for a, b in self.affordable(_pairs(round_, self.max_pairs))]
        return {key: fmean(row[key] for row in rows) for key in rows[0]} if rows else {}

    def _measure(self, model: nn.Module, a: State, b: State) -> dict[str, float]:
        layers = feature_connectivity(model, a, b, self.batches)
        last = layers[-1]
        distances = [layer.dist_com for layer in commutativity(model, a, b, self.batches)]
        ratios = [layer.ratio.mean for layer in reciprocal_orthogonality(model, a, b, self.batches)]
        return {
            "feature-cosine": fmean(layer.cosine.mean for layer in layers),
            "feature-cosine-last": last.cosine.mean,
            "feature-baseline": fmean(layer.baseline.mean for layer in layers),
            "llfc-coefficient": last.coefficient.mean,
            "lewc-coefficient": last.coefficient.mean * 2.0 ** (last.depth - 1),
            "commutativity": fmean(distances),
            "reciprocal-ratio": fmean(ratios[1:] or ratios),
        }


class AlignmentProbe:
    """What the alignment did, and whether it settles: fixed points against the round before.

    Args:
        every: run in rounds that this divides.
    """

    def __init__(self, every: int = 1) -> None:
        self._schedule = _Schedule(every=every)
        self._last: dict[int, Permutation] = {}

    def __call__(self, round_: Round) -> Mapping[str, float]:
        """Floats about the round's permutations.

        Returns:
            ``similarity-least``: the smallest cosine of an aligned model with what it was aligned to; ``spread`` and
            ``spread-unaligned``: the root mean square distance of the models to their mean over the mean's length,
            after and before the alignment; ``fixed-share``: units that stay in place, in [0, 1]; ``fixed-since-last``:
            units that the permutation sends where the client's last one sent them. Empty without an alignment.
        """
        if round_.server_round == 1:
            self._last.clear()
        if round_.merge is None or not self._schedule.due(round_):
            return {}
        alignments = round_.merge.alignments
        now = {reply.node_id: a.permutation for reply, a in zip(round_.replies, alignments, strict=True)}
        measured = {
            "similarity-least": min(alignment.similarity for alignment in alignments),
            "spread": _spread(round_.merge.states),
            "spread-unaligned": _spread([reply.state for reply in round_.replies]),
            "fixed-share": fmean(fixed_points(permutation).share for permutation in now.values()),
        }
        known = [node_id for node_id in now if node_id in self._last]
        if known:
            measured["fixed-since-last"] = fmean(fixed_points(now[k], self._last[k]).share for k in known)
        self._last.update(now)
        return measured


@dataclass(frozen=True)
class SpectrumProbe(_Schedule):
    """The stable rank of every layer's weights: of the aggregate, and the mean over the clients (LLFC, Figure 20).

    Args:
        model: tells which tensors are weights of layers.
        clients: how many clients' models to look at.
    """

    model: nn.Module
    clients: int = 4

    def __call__(self, round_: Round) -> Mapping[str, float]:
        """``stable-rank-KEY`` of the aggregate and ``stable-rank-clients-KEY``."""
        if not self.due(round_):
            return {}
        measured = {
            f"stable-rank-{key}": spectrum.stable_rank
            for key, spectrum in weight_spectra(self.model, round_.state).items()
        }
        states = [reply.state for reply in round_.replies[: self.clients]]
        ranks = [weight_spectra(self.model, state) for state in states]
        for key in ranks[0] if ranks else ():
            measured[f"stable-rank-clients-{key}"] = fmean(found[key].stable_rank for found in ranks)
        return measured


def _pairs(round_: Round, count: int) -> list[tuple[State, State]]:
    """Pairs of the clients' models, aligned where the round aligned them, on the round's device."""
    states = [reply.state for reply in round_.replies] if round_.merge is None else list(round_.merge.states)
    chosen = list(combinations(range(len(states)), 2))[:count]
    used = {
        k: {key: tensor.to(round_.device) for key, tensor in states[k].items()} for k in {k for p in chosen for k in p}
    }
    return [(used[i], used[j]) for i, j in chosen]


def _spread(states: Sequence[State]) -> float:
    keys = [key for key, tensor in states[0].items() if tensor.is_floating_point()]
    squares, length = 0.0, 0.0
    for key in keys:
        stacked = torch.stack([state[key].double().cpu() for state in states])
        mean = stacked.mean(0)
        squares += float((stacked - mean).square().sum()) / len(states)
        length += float(mean.square().sum())
    return math.sqrt(squares / length) if length else 0.0
