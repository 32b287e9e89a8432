"""Merging by regression: weights that best reproduce the clients' own features, from sums that the clients send."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from logging import WARNING
from typing import Any, ClassVar

from flwr.app import ArrayRecord
from torch import nn

from fedrebasin import CalibrationError, Merge, ridge_head
from fedrebasin.calibration import RegressionMean, regressed_layer
from fedrebasin.running import mode_of
from fedrebasin.sums import GramMatrices, HeadSums, LayerRegression, add_sums
from fedrebasin.watching import affine_weights, head_weight

from ..flower import log
from ..sums import Question, encode_sums
from .gathering import TIMEOUT, Shapes, alike, each, shapes_of, usual_shapes
from .judges import FitsHead, FitsLayer
from .round import Calibrated, Round, need_merge


@dataclass(frozen=True)
class RegMean:
    """RegMean (Jin 2023): every linear map becomes the least-squares compromise of the clients' aligned maps.

    Each client takes Gram matrices of its own, aligned model on its own data; one client's are folded in and released
    before the next one is asked.

    Args:
        correlation: factor on what is off the Gram matrices' diagonals, in [0, 1].
        max_features: layers with more features than this send diagonals only.
        ridge: pull towards the average where the data say nothing.
        timeout: seconds to wait for each client.
    """

    correlation: float = 0.9
    max_features: int | None = None
    ridge: float = 1e-6
    timeout: float = TIMEOUT
    rewrites_weights: ClassVar[bool] = True
    needs_whole: ClassVar[bool] = True
    robust: ClassVar[bool] = True
    needs_all: ClassVar[bool] = True
    changes_features: ClassVar[bool] = True

    def __call__(self, round_: Round) -> Calibrated:
        """Solve for the weights.

        Raises:
            CalibrationError: if nothing was aligned, or no client answered.
            MergeError: if a Gram matrix is singular and the ridge is 0.
        """
        merge, _ = need_merge(round_, "RegMean")
        statistic = GramMatrices(self.max_features)
        folds: dict[Shapes, RegressionMean] = {}
        answered: Counter[Shapes] = Counter()
        for position, sums in each(round_, lambda at: Question(statistic, encode_sums(merge.states[at])), self.timeout):
            shapes = shapes_of(sums)
            fold = folds.get(shapes, RegressionMean(self.correlation, self.ridge))
            try:
                fold.add(merge.states[position], statistic.finish(sums))
            except Exception as error:  # a stranger's sums
                log(WARNING, "RegMean: left out node %d: %s", round_.replies[position].node_id, error)
                continue
            folds[shapes] = fold
            answered[shapes] += 1
        if not folds:
            raise CalibrationError("RegMean: no client sent Gram matrices")
        usual = usual_shapes(answered, "RegMean")
        left_out = len(round_.replies) - answered[usual]
        return Calibrated(folds[usual].finish(round_.state), {"regmean-left-out": float(left_out)})


@dataclass(frozen=True)
class SequentialRegression:
    """Layer by layer, the merged model's features regressed on the clients' pre-activations: a round trip a layer.

    Args:
        model: the architecture; its own parameters are neither read nor changed.
        example_inputs: any valid input, to see the order of the layers.
        ridge: pull towards the average, relative to the mean of each Gram matrix's diagonal.
        timeout: seconds to wait for the slowest client, each round trip.
    """

    model: nn.Module
    example_inputs: Any
    ridge: float = 1e-3
    timeout: float = TIMEOUT
    rewrites_weights: ClassVar[bool] = True
    needs_whole: ClassVar[bool] = True
    robust: ClassVar[bool] = True
    needs_all: ClassVar[bool] = True
    changes_features: ClassVar[bool] = True

    def __call__(self, round_: Round) -> Calibrated:
        """Fit one layer after the other.

        Raises:
            CalibrationError: if nothing was aligned, or no client answered.
        """
        merge, _ = need_merge(round_, "sequential regression")
        state, fewest = round_.state, len(round_.replies)
        with mode_of(self.model):
            weights = affine_weights(self.model, state, self.example_inputs)
        for weight in weights:
            model = encode_sums(state)
            judge = FitsLayer(state, weight, self.ridge)
            answers = list(each(round_, _about_layer(weight, model, merge), self.timeout, judge=judge))
            fitting = [sums for _, sums in alike(answers, f"sequential regression of {weight}")]
            fewest = min(fewest, len(fitting))
            state = regressed_layer(state, weight, reduce(add_sums, fitting), self.ridge)
        return Calibrated(state, {"seqreg-left-out": float(len(round_.replies) - fewest)})


def _about_layer(weight: str, model: ArrayRecord, merge: Merge) -> Callable[[int], Question]:
    return lambda position: Question(LayerRegression(weight, merge.states[position]), model)


@dataclass(frozen=True)
class HeadRegression:
    """The last layer in closed form: ridge regression of the classes on the merged features (Fed3R, Fani 2024).

    Its scores are no logits: put :class:`TemperatureCalibration` behind it.

    Args:
        model: the architecture; its own parameters are neither read nor changed.
        example_inputs: any valid input, to find the last layer.
        ridge: relative to the features' mean variance; None chooses it by closed-form leave-one-out.
        timeout: seconds to wait for each client.
    """

    model: nn.Module
    example_inputs: Any
    ridge: float | None = None
    timeout: float = TIMEOUT
    rewrites_weights: ClassVar[bool] = True
    needs_whole: ClassVar[bool] = True
    robust: ClassVar[bool] = True

    def __call__(self, round_: Round) -> Calibrated:
        """Solve for the last layer.

        Raises:
            CalibrationError: if the model does not end in a linear layer, or no client answered.
        """
        with mode_of(self.model):
            head = head_weight(self.model, round_.state, self.example_inputs)
        statistic = HeadSums(head, tuple(round_.state[head].shape))  # sums that do not fit it are refused
        model = encode_sums(round_.state)
        judge = FitsHead(round_.state, head, self.ridge)
        answers = list(each(round_, lambda _: Question(statistic, model), self.timeout, judge=judge))
        clients = [sums for _, sums in alike(answers, "the ridge head")]
        fitted = ridge_head(round_.state, head, clients, self.ridge)
        return Calibrated(
            fitted.state, {"ridge": fitted.ridge, "head-left-out": float(len(round_.replies) - len(clients))}
        )
