"""How the model halfway between two models computes, as one statistic that clients can send sums of."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fedrebasin.analysis.commutativity import Commutation, FeatureDistances
from fedrebasin.analysis.connectivity import FeatureLaw, LayerConnectivity
from fedrebasin.analysis.features import layers_of
from fedrebasin.analysis.orthogonality import Orthogonality, Reciprocity
from fedrebasin.analysis.pairs import Pair, by_layer, demand_layers, sums_of_batch
from fedrebasin.running import Batch
from fedrebasin.state import State
from fedrebasin.sums import Sums, demand_data

_FEATURES, _COMMUTATION, _RECIPROCITY = FeatureLaw(), Commutation(), Reciprocity()
_MEASURES = (_FEATURES, _COMMUTATION, _RECIPROCITY)


@dataclass(frozen=True)
class Halfway:
    """The features of the model at lam = 1/2, and the conditions of the laws that they may follow.

    Args:
        features: as :func:`fedrebasin.feature_connectivity` measures them under the linear law.
        distances: what data say of :func:`fedrebasin.commutativity`.
        orthogonality: as :func:`fedrebasin.reciprocal_orthogonality` measures it.
    """

    features: tuple[LayerConnectivity, ...]
    distances: tuple[FeatureDistances, ...]
    orthogonality: tuple[Orthogonality, ...]


@dataclass(frozen=True)
class HalfwayConnectivity:
    """LLFC's and LEWC's measures of the model halfway between two models, as a statistic of the first one.

    Payload by layer, ``DEPTH.LAYER.PART`` with the layer's place in the order of execution from 1: ``features``, shape
    ``(1, 6, 3)``; for layers that are linear in what they read also ``commutation``, shape ``(6,)``, and
    ``reciprocity``, shape ``(2, 3)``. All are sums over the examples of numbers that the central functions average, so
    that the statistic of the clients' sums is that of all their data together.

    Args:
        other: state dict of B; the model that the statistic is taken of is A.
    """

    other: State
    name: ClassVar[str] = "halfway_connectivity"
    batch_statistics: ClassVar[bool] = False

    def from_batch(self, model: nn.Module, state: State, batch: Batch) -> dict[str, Tensor]:
        """What one batch adds, float64.

        Raises:
            MergeError: if the models differ in keys or shapes.
        """
        return sums_of_batch(_MEASURES, Pair(model, state, self.other, batch, layers_of(model)))

    def validate(self, sums: Sums) -> None:
        """Refuse sums that no data can have.

        Raises:
            CalibrationError: if an entry is missing, unknown, misshapen or not finite, a cosine lies beyond 1, a length
                or a variance is negative, or a distance is longer than both sides.
        """
        demand_layers(sums, _MEASURES, self.other, self.name)

    def finish(self, sums: Sums) -> Halfway:
        """The measures, by layer in order of execution.

        Raises:
            CalibrationError: without data, or if no layer is linear in what it reads.
        """
        demand_data(sums, self.name)
        return Halfway(
            _FEATURES.finish(by_layer(sums, _FEATURES.part)),
            _COMMUTATION.finish(by_layer(sums, _COMMUTATION.part)),
            _RECIPROCITY.finish(by_layer(sums, _RECIPROCITY.part)),
        )
