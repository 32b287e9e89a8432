"""Calibrators: what is done to the aggregate after the inner strategy, on server data or on sums from the clients."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fedrebasin.calibration import (
    fit_temperature,
    fold_correction,
    interpolated_moments,
    recalibrate_batch_norm,
    repair,
    repairable_weights,
    with_moments,
)
from fedrebasin.errors import RebasinError
from fedrebasin.running import mode_of
from fedrebasin.state import State
from fedrebasin.sums import EXAMPLES, BatchNormMoments, PreActivationMoments, Temperature, TemperatureCurve, logits_of

from ..sums import Question, encode_sums
from .gathering import TIMEOUT, alike, each, summed
from .judges import FitsMoments, FitsTargets, FitsTemperature
from .proportion import votes
from .round import Calibrated, Round, need_merge

#: Pairs of inputs and class labels, iterated anew in every round; labels are not needed where nothing is predicted.
Batches = Iterable[Any]


class _OnDataOrSums(ABC):
    """A calibrator that works on server data where it was given some, else on sums from the clients."""

    model: nn.Module | None
    batches: Batches | None
    needs_all: ClassVar[bool] = False
    needs_whole: ClassVar[bool] = True
    robust: ClassVar[bool] = True

    @property
    def private(self) -> bool:
        """Whether only the aggregate and server data are read."""
        return self.batches is not None and not self.needs_all

    def __post_init__(self) -> None:
        if self.batches is not None and self.model is None:
            raise RebasinError(f"{type(self).__name__} with batches needs model=, the architecture to run on them")

    def __call__(self, round_: Round) -> Calibrated:
        """Calibrate the round's aggregate.

        Raises:
            CalibrationError: if there are no data or no answers, or what they give cannot be used.
        """
        if self.model is None or self.batches is None:
            return self.from_sums(round_)
        return self.on_data(round_, self.model, self.batches)

    @abstractmethod
    def on_data(self, round_: Round, model: nn.Module, batches: Batches) -> Calibrated:
        """With the server's own data."""

    @abstractmethod
    def from_sums(self, round_: Round) -> Calibrated:
        """Without."""


@dataclass(frozen=True)
class TemperatureCalibration(_OnDataOrSums):
    """The inverse temperature ``beta`` that minimises the loss of ``beta * logits`` (LEWC, section 3.1).

    The model stays as it is; ``beta`` is reported with the loss before and after, and kept on the strategy.
    Found on the data that the clients trained on, where a merged model that makes no error has no finite best ``beta``:
    one typical example then counts as an error.

    Args:
        model: the architecture, needed with ``batches``; its own parameters are neither read nor changed.
        batches: server data; without them the clients are asked for their losses at 81 temperatures, summed.
        timeout: seconds to wait for the clients.
    """

    model: nn.Module | None = None
    batches: Batches | None = None
    timeout: float = TIMEOUT
    rewrites_weights: ClassVar[bool] = False

    def on_data(self, round_: Round, model: nn.Module, batches: Batches) -> Calibrated:
        """Fit ``beta`` to the aggregate's logits."""
        return self._found(round_, fit_temperature(*logits_of(model, round_.state, batches)), 0)

    def from_sums(self, round_: Round) -> Calibrated:
        """Fit ``beta`` to the sums of the clients' losses."""
        statistic = TemperatureCurve()
        judge = FitsTemperature(statistic)
        sums, left_out = summed(round_, statistic, round_.state, self.timeout, judge=judge)
        return self._found(round_, statistic.finish(_with_one_error(sums, statistic)), left_out)

    def _found(self, round_: Round, fitted: Temperature, left_out: int) -> Calibrated:
        metrics = {"beta": fitted.beta, "nll": fitted.nll_before, "nll-calibrated": fitted.nll_after}
        return Calibrated(round_.state, {**metrics, "temperature-left-out": float(left_out)})


@dataclass(frozen=True)
class BatchNormRecalibration(_OnDataOrSums):
    """BatchNorm's running statistics measured anew on the merged model (Git Re-Basin, appendix A.4).

    Args:
        model: the architecture, needed with ``batches``; its own parameters are neither read nor changed.
        batches: server data; without them the clients send the moments of every BatchNorm's inputs as sums.
        timeout: seconds to wait for the clients.
    """

    model: nn.Module | None = None
    batches: Batches | None = None
    timeout: float = TIMEOUT
    rewrites_weights: ClassVar[bool] = False  # running statistics are buffers

    def on_data(self, round_: Round, model: nn.Module, batches: Batches) -> Calibrated:
        """Replace the aggregate's running statistics by those on server data."""
        return Calibrated(recalibrate_batch_norm(model, round_.state, batches))

    def from_sums(self, round_: Round) -> Calibrated:
        """Replace the aggregate's running statistics by the clients', pooled."""
        if not any(key.endswith("running_mean") for key in round_.state):
            return Calibrated(round_.state)
        state, left_out = _recalibrated(round_, round_.state, self.timeout)
        return Calibrated(state, {"batch-norm-left-out": float(left_out)})


@dataclass(frozen=True)
class Repair(_OnDataOrSums):
    """REPAIR (Jordan 2023): hidden units get the mean and spread of the clients' units, interpolated.

    Without server data each client measures its own aligned model on its own data, then all measure the merged one.

    Args:
        model: the architecture; its own parameters are neither read nor changed.
        example_inputs: any valid input, to see which layer follows which; not needed with ``batches``.
        batches: server data.
        timeout: seconds to wait for the clients.
    """

    model: nn.Module
    example_inputs: Any = None
    batches: Batches | None = None
    timeout: float = TIMEOUT
    rewrites_weights: ClassVar[bool] = True
    needs_all: ClassVar[bool] = True

    def on_data(self, round_: Round, model: nn.Module, batches: Batches) -> Calibrated:
        """Correct the aggregate's hidden units, all models being run on server data."""
        merge, spec = need_merge(round_, "REPAIR")
        shares = votes(round_)
        return Calibrated(repair(model, round_.state, merge.states, batches, spec, shares))

    def from_sums(self, round_: Round) -> Calibrated:
        """Correct the aggregate's hidden units by the moments that the clients measure."""
        merge, spec = need_merge(round_, "REPAIR")
        with mode_of(self.model):
            keys = repairable_weights(self.model, round_.state, self.example_inputs, spec)
        state, left_out = round_.state, 0
        if keys:
            plain = PreActivationMoments(keys)
            answers = list(
                each(
                    round_,
                    lambda at: Question(plain, encode_sums(merge.states[at])),
                    self.timeout,
                    judge=FitsTargets(plain),
                )
            )
            found = dict(alike(answers, "REPAIR"))
            left_out = len(round_.replies) - len(found)
            claimed = {at: round_.replies[at].num_examples for at in found}
            shares = {at: float(sums[EXAMPLES]) for at, sums in found.items()} if round_.robust else claimed
            targets = interpolated_moments([plain.finish(sums) for sums in found.values()], list(shares.values()))
            statistic = PreActivationMoments(keys, targets)
            sums, without = summed(round_, statistic, state, self.timeout, judge=FitsMoments(statistic))
            left_out = max(left_out, without)
            for key, current in statistic.finish(sums).items():
                state = {**state, **fold_correction(state, key, current, targets[key])}
        if any(key.endswith("running_mean") for key in state):
            state, without = _recalibrated(round_, state, self.timeout)
            left_out = max(left_out, without)
        return Calibrated(state, {"repair-left-out": float(left_out)})


def _recalibrated(round_: Round, state: State, timeout: float) -> tuple[State, int]:
    statistic = BatchNormMoments()
    sums, left_out = summed(round_, statistic, state, timeout, judge=FitsMoments(statistic))
    return with_moments(state, statistic.finish(sums)), left_out


def _with_one_error(sums: Mapping[str, Tensor], statistic: TemperatureCurve) -> dict[str, Tensor]:
    """The sums; if no example is misclassified, those with one more, typical example counted as wrong.

    Clients answer on the data that they trained on, where a good model may make no error at all: the best beta is then
    infinite, and one error on other data an infinite loss. What n examples without an error do say is that errors are
    rarer than about 1 in n (the rule of succession). The typical margin is read off the slope at the smallest beta,
    where every example's slope is its mean logit minus its own class's.
    """
    terms = sums["terms"].double()
    if float(terms[0, -1]) >= math.log(2):  # a misclassified example alone costs that much, whatever beta is
        return dict(sums)
    margin = -terms[1, 0] / sums["labels"]
    betas = torch.tensor(statistic.betas, dtype=torch.float64, device=terms.device)
    wrong = torch.sigmoid(betas * margin)
    error = torch.stack([softplus(betas * margin), margin * wrong, margin**2 * wrong * (1 - wrong)])
    return {**sums, "terms": terms + error, "labels": sums["labels"] + 1}
