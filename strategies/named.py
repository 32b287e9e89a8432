"""The strategies by name: each is an alignment, and what is done to the aggregate, in front of any Flower strategy."""

from typing import Any, Literal, Unpack

from flwr.serverapp.strategy import Strategy
from torch import nn

from fedrebasin.matching import Matcher, WeightMatching
from fedrebasin.merging import Aligner, AlignTo, Identity, MergeMany
from fedrebasin.spec import PermutationSpec

from .aligned import Aligned
from .options import Options, calibrating
from .round import Calibrator, HeadRegression, RegMean, TemperatureCalibration

FROM_CLIENTS = TemperatureCalibration()


class FedRebasin(Aligned):
    """Git Re-Basin (section 3.2, Algorithm 1) in front of any Flower strategy.

    Args:
        strategy: the inner strategy (default: ``FedAvg()``).
        spec: the permutation spec of the model.
        matcher: how a pair is matched (default: ``WeightMatching()``).
        reference: ``"auto"`` (the global model if the clients measurably started from it, else their medoid) or
            ``"medoid"``.
        options: see :class:`Aligned`.

    Example: ``FedRebasin(FedAvg(fraction_train=0.5), spec=PermutationSpec.trace(model, example_inputs))``
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        spec: PermutationSpec,
        matcher: Matcher | None = None,
        reference: Literal["auto", "medoid"] = "auto",
        **options: Unpack[Options],
    ) -> None:
        aligner = AlignTo(WeightMatching() if matcher is None else matcher, reference=reference)
        super().__init__(strategy, spec=spec, aligner=aligner, **options)


class FedMergeMany(Aligned):
    """Git Re-Basin's MergeMany (Algorithm 3) in front of any Flower strategy: no model is the reference.

    Args:
        strategy: the inner strategy (default: ``FedAvg()``).
        spec: the permutation spec of the model.
        matcher: how a model is matched to the mean of the others (default: ``WeightMatching()``).
        options: see :class:`Aligned`.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        spec: PermutationSpec,
        matcher: Matcher | None = None,
        **options: Unpack[Options],
    ) -> None:
        aligner = MergeMany(WeightMatching() if matcher is None else matcher)
        super().__init__(strategy, spec=spec, aligner=aligner, **options)


class FedWideAvg(Aligned):
    """LEWC, sections 3 and 4: wide enough models can be averaged as they are, if the logits are scaled back.

    The accuracy is FedAvg's by construction, since a positive factor leaves the largest logit the largest; the loss is
    not. The factor ``beta`` is a metric of the round and ``strategy.beta`` afterwards; the arrays are FedAvg's.

    Args:
        strategy: the inner strategy (default: ``FedAvg()``).
        temperature: the calibrator that finds ``beta``: by default from the losses that the clients report, summed;
            ``TemperatureCalibration(model, batches)`` on server data; None leaves it to whoever evaluates the model,
            and the wrapper is transparent.
        options: see :class:`Aligned`; ``calibrators`` come before the temperature.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        temperature: Calibrator | None = FROM_CLIENTS,
        **options: Unpack[Options],
    ) -> None:
        after = () if temperature is None else (temperature,)
        super().__init__(strategy, aligner=Identity(), **calibrating(options, after=after))


class FedRegMean(Aligned):
    """RegMean (Jin 2023) behind an alignment: one round trip of Gram matrices, no data on the server.

    The clients answer through :func:`fedrebasin.strategies.register`.

    Args:
        strategy: the inner strategy (default: ``FedAvg()``); one that keeps state is refused.
        spec: the permutation spec of the model.
        aligner: how models are brought into agreement (default: ``MergeMany()``).
        regression: its settings.
        options: see :class:`Aligned`; ``calibrators`` follow the regression, such as ``BatchNormRecalibration()``.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        spec: PermutationSpec,
        aligner: Aligner | None = None,
        regression: RegMean | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            strategy,
            spec=spec,
            aligner=MergeMany() if aligner is None else aligner,
            **calibrating(options, before=[RegMean() if regression is None else regression]),
        )


class FedRidgeHead(Aligned):
    """A ridge head (Fed3R, Fani 2024) behind an alignment: one round trip of sums, and one for the temperature.

    The clients answer through :func:`fedrebasin.strategies.register`. Regression scores are far from probabilities:
    ``strategy.beta`` is what they are to be multiplied with.

    Args:
        strategy: the inner strategy (default: ``FedAvg()``); one that keeps state is refused.
        spec: the permutation spec of the model.
        model: the architecture; its own parameters are neither read nor changed.
        example_inputs: any valid input, to find the last layer.
        aligner: how models are brought into agreement (default: ``AlignTo()``).
        ridge: see :class:`HeadRegression`.
        temperature: what comes after the head (default: ``TemperatureCalibration()``).
        options: see :class:`Aligned`; ``calibrators`` come before the head, such as ``SequentialRegression(model,
            example_inputs)``.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        spec: PermutationSpec,
        model: nn.Module,
        example_inputs: Any,
        aligner: Aligner | None = None,
        ridge: float | None = None,
        temperature: Calibrator | None = None,
        **options: Unpack[Options],
    ) -> None:
        head = HeadRegression(model, example_inputs, ridge)
        last = TemperatureCalibration() if temperature is None else temperature
        super().__init__(strategy, spec=spec, aligner=aligner, **calibrating(options, after=[head, last]))
