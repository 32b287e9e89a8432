"""The statistics that a client is willing to answer, by name."""

from __future__ import annotations

from typing import Any

from fedrebasin.analysis import HalfwayConnectivity, PathEvaluation
from fedrebasin.calibration import BatchNormMoments, HeadSums, LayerRegression, PreActivationMoments, TemperatureCurve
from fedrebasin.sums import ActivationCorrelation, GramMatrices, Statistic

#: What each of them gives away is listed in the docs; none holds anything of a single example.
STATISTICS: tuple[type[Statistic[Any]], ...] = (
    ActivationCorrelation,
    BatchNormMoments,
    GramMatrices,
    HalfwayConnectivity,
    HeadSums,
    LayerRegression,
    PathEvaluation,
    PreActivationMoments,
    TemperatureCurve,
)
