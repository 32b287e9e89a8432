"""How a client's units go with a reference model's on the client's data: activation matching without server data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedrebasin.affine import AffineCall, watch
from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, State, mode_of
from fedrebasin.spec import PermutationSpec
from fedrebasin.sums.algebra import EXAMPLES, Sums, demand, demand_data

_PARTS = ("count", "own", "own_squares", "reference", "reference_squares", "cross")


def unit_places(model: nn.Module, state: State, batch: Batch, spec: PermutationSpec) -> dict[str, Tensor]:
    """Where each group's units are last seen: in the inputs of the last weight that reads them.

    (Simultaneous connectivity, Appendix A.) Groups that no plain product reads are left out, and so are groups of
    blocks: how well two blocks go together follows from the units inside them.

    Args:
        model: the module.
        state: its state dict.
        batch: any batch, to see what runs when.
        spec: the model's permutation spec.

    Returns:
        ``GROUP@WEIGHT`` -> which input channels (or features) belong to each unit, shape ``(units, m)``; the units of
        a nested group are those of all blocks, block by block.
    """
    spec = spec.bind(state)
    calls: dict[str, AffineCall] = {}

    def keep(call: AffineCall) -> None:
        calls.pop(call.weight, None)
        calls[call.weight] = call

    with mode_of(model):
        watch(model, state, batch, keep)
    places: dict[str, Tensor] = {}
    for name, group in spec.groups.items():
        readers = [
            (weight, axis) for weight in reversed(calls) for axis in group.axes if axis.key == weight and axis.dim > 0
        ]
        if not readers or spec.children(name):
            continue
        weight, axis = readers[0]
        marks = torch.full(state[weight].shape, -1, dtype=torch.long)
        shape = spec.shape(name)
        units = math.prod(shape)
        view = axis.view(marks)
        axis.write(marks, torch.arange(units).reshape(*shape, *[1] * (view.dim() - len(shape))).expand_as(view))
        blocks = marks.reshape(calls[weight].groups, -1, *marks.shape[1:])[:, 0]
        channels = (blocks if blocks.dim() == 2 else blocks.flatten(2)[..., 0]).flatten()
        own = (channels >= 0).nonzero().flatten()
        places[f"{name}@{weight}"] = own[channels[own].argsort(stable=True)].reshape(units, -1)
    return places


@dataclass(frozen=True)
class ActivationCorrelation:
    """Cross-correlation of a reference model's units with the client's own, by group (Git Re-Basin, section 3.1).

    Payload by group: ``GROUP.cross``, the sum of reference times own activation, shape ``(units, units)``; sums and
    sums of squares of both, shape ``(units,)``; ``GROUP.count``. Every position of an image or sequence counts.

    Args:
        places: as :func:`unit_places` returns it.
        reference: the reference model's state dict.
    """

    places: Mapping[str, Tensor]
    reference: State
    name: ClassVar[str] = "activation_correlation"
    batch_statistics: ClassVar[bool] = False

    def from_batch(self, model: nn.Module, state: State, batch: Batch) -> dict[str, Tensor]:
        """The sums of one batch, float64."""
        own, reference = (self._activations(model, each, batch) for each in (state, self.reference))
        sums: dict[str, Tensor] = {}
        if own.keys() != reference.keys():
            raise CalibrationError(f"{self.name}: units are seen in one of the two models only")
        for group, mine in own.items():
            theirs = reference[group]
            values = (
                torch.tensor(float(len(mine)), dtype=torch.float64, device=mine.device),
                mine.sum(0),
                mine.square().sum(0),
                theirs.sum(0),
                theirs.square().sum(0),
                theirs.T @ mine,
            )
            sums.update({f"{group}.{part}": value for part, value in zip(_PARTS, values, strict=True)})
        return sums

    def _activations(self, model: nn.Module, state: State, batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def take(call: AffineCall) -> None:
            for key, places in self.places.items():
                group, _, weight = key.rpartition("@")
                if weight == call.weight:
                    inputs = call.inputs if call.window is None else call.inputs.movedim(1, -1)
                    units = inputs[..., places.to(inputs.device)].movedim(-2, -1)
                    found[group] = units.reshape(-1, len(places)).double()

        watch(model, state, batch, take)
        return found

    def validate(self, sums: Sums) -> None:
        """Refuse sums that no data can have.

        Raises:
            CalibrationError: if an entry is missing, misshapen or not finite, or a correlation is larger than 1.
        """
        shapes: dict[str, tuple[int, ...] | None] = {}
        for key, places in self.places.items():
            group, units = key.rpartition("@")[0], len(places)
            shapes |= {f"{group}.{part}": (units,) for part in _PARTS}
            shapes |= {f"{group}.count": (), f"{group}.cross": (units, units)}
        demand(sums, shapes, self.name)
        if unknown := set(sums) - set(shapes) - {EXAMPLES}:
            raise CalibrationError(f"{self.name}: {sorted(unknown)[0]!r} was not asked for")
        for key in self.places:
            group = key.rpartition("@")[0]
            own, reference = sums[f"{group}.own_squares"], sums[f"{group}.reference_squares"]
            bound = torch.outer(reference.clamp(min=0), own.clamp(min=0)) * (1 + 1e-6)
            if bool((own < 0).any() or (reference < 0).any() or (sums[f"{group}.cross"].square() > bound).any()):
                raise CalibrationError(f"{self.name}: {group} has a correlation above 1, or negative squares")

    def finish(self, sums: Sums) -> dict[str, Tensor]:
        """Pearson's correlation by group: shape ``(reference's units, own units)``, 0 where a unit never varies."""
        demand_data(sums, self.name)
        found = {}
        for key in self.places:
            group = key.rpartition("@")[0]
            count, own, own_squares, reference, reference_squares, cross = (sums[f"{group}.{part}"] for part in _PARTS)
            covariance = cross - torch.outer(reference, own) / count
            spread = torch.outer(
                (reference_squares - reference.square() / count).clamp(min=0).sqrt(),
                (own_squares - own.square() / count).clamp(min=0).sqrt(),
            )
            varies = spread > 1e-9 * torch.outer(reference_squares.sqrt(), own_squares.sqrt()) + 1e-300
            found[group] = torch.where(varies, covariance / torch.where(varies, spread, 1.0), 0.0).clamp(-1, 1)
        return found
