"""Two models side by side: what is measured of them layer by layer is a sum over the data.

A measure says what one batch adds and what the sums mean. The central functions (feature connectivity, commutativity,
reciprocal orthogonality) and the federated statistic are both made of measures, so that they share every sum.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from fedrebasin.analysis.barrier import demand_alike, interpolate
from fedrebasin.analysis.features import Recorded, layers_of, record_layers
from fedrebasin.analysis.streams import sums_over
from fedrebasin.analysis.weights import linear_part, owner_of
from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch
from fedrebasin.state import State
from fedrebasin.sums import EXAMPLES, ROWS_PER_EXAMPLE, Sums, demand

Found = TypeVar("Found", covariant=True)

#: Relative rounding that a bound between sums allows for.
SLACK = 1e-6


class Products(NamedTuple):
    """One layer's weights (without bias) on both models' features, each ``(examples, entries)`` in float64."""

    aa: Tensor
    ab: Tensor
    ba: Tensor
    bb: Tensor


@dataclass(eq=False)
class Pair:
    """One batch, run through A and B.

    Args:
        model: the module.
        a: state dict of A.
        b: state dict of B.
        batch: inputs, with or without labels.
        layers: names of modules to record.
        between: the merged model by position, kept for the next batch; one at a time, however many positions.

    Raises:
        MergeError: if the models differ in keys or shapes.
    """

    model: nn.Module
    a: State
    b: State
    batch: Batch
    layers: Sequence[str]
    between: dict[float, State] = field(default_factory=dict)
    of_a: dict[str, Recorded] = field(init=False)
    of_b: dict[str, Recorded] = field(init=False)
    _products: dict[str, Products | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        demand_alike(self.a, self.b)
        self.of_a, self.of_b = (record_layers(self.model, state, self.batch, self.layers) for state in (self.a, self.b))

    def merged(self, lam: float) -> dict[str, Recorded]:
        """What the model at ``lam`` between A (0) and B (1) computes."""
        if lam not in self.between:
            self.between.clear()
            self.between[lam] = interpolate(self.a, self.b, lam)
        return record_layers(self.model, self.between[lam], self.batch, self.layers)

    def products(self, layer: str) -> Products | None:
        """``W_A H_A``, ``W_A H_B``, ``W_B H_A``, ``W_B H_B``; None for a layer that is not linear in what it reads."""
        if layer not in self._products:
            parts = [
                linear_part(self.model, weights, layer, record[layer].inputs)
                for weights in (self.a, self.b)
                for record in (self.of_a, self.of_b)
            ]
            known = [part for part in parts if part is not None]
            self._products[layer] = Products(*known) if len(known) == len(parts) else None
        return self._products[layer]


class OfLayer(NamedTuple):
    """One layer's sums.

    Attributes:
        depth: its place in the order of execution, from 1.
        layer: its name.
        sums: float64.
    """

    depth: int
    layer: str
    sums: Tensor


class Measure(Protocol[Found]):
    """What is measured of a pair of models, layer by layer."""

    @property
    def part(self) -> str:
        """A word without dots: what the sums of a layer are called."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the sums of one layer."""
        ...

    def of(self, pair: Pair) -> dict[str, Tensor]:
        """What one batch adds, by layer, in float64; layers that the measure does not speak of are left out."""
        ...

    def fault(self, sums: Tensor, rows: float) -> str:
        """What is wrong with sums that no data of at most so many rows can have; empty if nothing is."""
        ...

    def finish(self, layers: Sequence[OfLayer]) -> tuple[Found, ...]:
        """What the sums mean, in order of execution.

        Raises:
            CalibrationError: if there is no layer.
        """
        ...


def measure_pair(
    measure: Measure[Found],
    model: nn.Module,
    a: State,
    b: State,
    batches: Iterable[Batch],
    layers: Sequence[str] | None,
) -> tuple[Found, ...]:
    """One measure of two models, streamed over batches that are read once; all layers by default.

    Raises:
        CalibrationError: if there is no data, or no layer that the measure speaks of ran.
    """
    names = layers_of(model) if layers is None else tuple(layers)
    between: dict[float, State] = {}

    def of_batch(batch: Batch) -> dict[str, Tensor]:
        return sums_of_batch((measure,), Pair(model, a, b, batch, names, between))

    total = sums_over(model, batches, of_batch)
    return measure.finish(by_layer(total, measure.part))


def sums_of_batch(measures: Iterable[Measure[object]], pair: Pair) -> dict[str, Tensor]:
    """What one batch adds to several measures: ``DEPTH.LAYER.PART`` -> sums. The depth keeps the order of execution."""
    depths = {layer: depth for depth, layer in enumerate(pair.of_a, 1)}
    return {
        f"{depths[layer]}.{layer}.{measure.part}": sums
        for measure in measures
        for layer, sums in measure.of(pair).items()
    }


def by_layer(sums: Sums, part: str) -> list[OfLayer]:
    """The sums of one measure in order of execution, on the CPU, whatever the order of the keys."""
    found = []
    for key, tensor in sums.items():
        depth, _, rest = key.partition(".")
        layer, _, of = rest.rpartition(".")
        if of == part:
            found.append(OfLayer(int(depth), layer, tensor.cpu()))
    return sorted(found, key=lambda each: each.depth)


def demand_layers(sums: Sums, measures: Sequence[Measure[object]], state: State, name: str) -> None:
    """Refuse a stranger's sums that no data can have.

    Args:
        sums: with ``examples``.
        measures: those that were asked for; the first one speaks of every layer.
        state: of either model: its keys tell which layers there can be.
        name: the statistic's, for the message.

    Raises:
        CalibrationError: naming the entry.
    """
    demand(sums, {EXAMPLES: ()}, name)
    by_part: Mapping[str, Measure[Any]] = {measure.part: measure for measure in measures}
    known = {owner_of(key) for key, tensor in state.items() if tensor.dim() >= 2}
    depths: dict[str, dict[str, int]] = {part: {} for part in by_part}
    rows = float(sums[EXAMPLES]) * ROWS_PER_EXAMPLE
    for key, tensor in sums.items():
        if key == EXAMPLES:
            continue
        depth, _, rest = key.partition(".")
        layer, _, part = rest.rpartition(".")
        if part not in by_part or not depth.isdecimal() or layer.partition("#")[0] not in known:
            raise CalibrationError(f"{name}: {key!r} was not asked for")
        if tuple(tensor.shape) != by_part[part].shape:
            raise CalibrationError(f"{name}: {key} has shape {tuple(tensor.shape)} instead of {by_part[part].shape}")
        if fault := by_part[part].fault(tensor.double(), rows):
            raise CalibrationError(f"{name}: {key}: {fault}")
        if layer in depths[part]:
            raise CalibrationError(f"{name}: {layer!r} has two depths")
        depths[part][layer] = int(depth)
    every = depths[measures[0].part]
    if not every or sorted(every.values()) != list(range(1, len(every) + 1)):
        raise CalibrationError(f"{name}: {measures[0].part} of the layers 1, 2, ... are missing")
    for part, found in depths.items():
        if not found.items() <= every.items():
            raise CalibrationError(f"{name}: {part} of layers that have no {measures[0].part}")


def spread_fault(sums: Tensor, rows: float) -> str:
    """What is wrong with sums of :func:`fedrebasin.analysis.streams.spread_sums`, shape ``(..., 3)``.

    Args:
        sums: float64.
        rows: how many values there can be at most.
    """
    count, total, squares = sums.unbind(-1)
    if not bool(((count >= 1) & (count <= rows)).all()):
        return f"a count below 1 or above {rows:g}"
    if bool((squares * count * (1 + SLACK) < total.square() * (1 - SLACK)).any()):
        return "a negative variance"
    return ""


def cosine_fault(sums: Tensor) -> str:
    """What is wrong with sums of cosines, shape ``(..., 3)``."""
    count, total, squares = sums.unbind(-1)
    beyond = (total.abs() > count * (1 + SLACK)) | (squares > count * (1 + SLACK))
    return "a cosine beyond 1" if bool(beyond.any()) else ""


def length_fault(sums: Tensor) -> str:
    """What is wrong with sums of lengths, shape ``(..., 3)``."""
    return "a negative length" if bool((sums[..., 1] < 0).any()) else ""


def distance_fault(difference: Tensor, x: Tensor, y: Tensor) -> str:
    """What is wrong with ``|x - y|^2``, ``|x|^2`` and ``|y|^2``, each summed over the data."""
    if bool((torch.stack([difference, x, y]) < 0).any()):
        return "a negative square"
    # the parallelogram law
    return "a distance longer than both sides" if bool(difference > 2 * (x + y) * (1 + SLACK)) else ""
