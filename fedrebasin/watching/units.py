"""Where a group's units can be seen while a model runs."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedrebasin.running import Batch, mode_of
from fedrebasin.spec import Axis, PermutationSpec
from fedrebasin.state import State
from fedrebasin.watching.observer import watch
from fedrebasin.watching.products import Product

_OUTPUT, _SUM = ">", "+"  # after the weight in a place: its outputs are meant; the sum of a unit's channels is


class _Channels(NamedTuple):
    """What one use of a weight reads, or what it gives.

    Attributes:
        key: of the weight, as a place names it.
        start: the number of the first channel.
        units: by group the number of the unit that each channel belongs to, -1 for none.
    """

    key: str
    start: int
    units: dict[str, Tensor]

    def by_unit(self, group: str, count: int) -> Tensor | None:
        """The channels of each unit, shape ``(count, m)``; None if not every unit has as many, and one at least."""
        numbers = self.units.get(group, torch.zeros(0, dtype=torch.long))
        own = (numbers >= 0).nonzero().flatten()
        each = torch.bincount(numbers[own], minlength=count)
        if not len(own) or bool((each != each[0]).any()):
            return None
        return own[numbers[own].argsort(stable=True)].reshape(count, -1)

    def are_moved(self, channels: Tensor, others: Iterable[str]) -> bool:
        """Whether one of the other groups moves channels of one unit among each other."""
        found = (self.units[other][channels] for other in others if other in self.units)
        return any(bool((numbers != numbers[:, :1]).any()) for numbers in found)


def unit_places(model: nn.Module, state: State, batch: Batch, spec: PermutationSpec) -> dict[str, Tensor]:
    """Where each group's units are last seen: in what the last weight that reads them reads.

    (Simultaneous connectivity, Appendix A: a residual stream is matched by the last of its layers.) Units that no
    weight reads are seen in what the last weight that writes them gives. A place where another group moves the channels
    of one unit among each other (the heads of a group of queries share the units of their values) is avoided; where
    there is no other, the unit is the sum of its channels. Groups of blocks are left out where the units inside them
    are seen, from which it follows how well two blocks go together; so are groups that are never seen.

    Args:
        model: the module.
        state: its state dict.
        batch: any batch, to see what runs when.
        spec: the model's permutation spec.

    Returns:
        ``GROUP@WEIGHT`` -> which of the weight's inputs (for ``GROUP@WEIGHT>`` outputs, for ``GROUP@WEIGHT+`` and
        ``GROUP@WEIGHT>+`` added up) belong to each unit, shape ``(units, m)``; the units of a nested group are those of
        all blocks, block by block.
    """
    spec = spec.bind(state)
    uses: dict[tuple[str, int], Product] = {}

    def keep(use: Product) -> None:
        uses.pop((use.weight, use.start), None)
        uses[use.weight, use.start] = use

    with mode_of(model):
        watch(model, state, batch, use=keep)
    reads, writes = zip(*(_channels(use, spec) for use in reversed(uses.values())), strict=True) if uses else ((), ())
    places: dict[str, dict[str, Tensor]] = {}
    for name in spec.groups:
        others = spec.groups.keys() - {name, *(group.name for group in spec.ancestors(name))}
        summed: dict[str, Tensor] = {}
        for seen in (*reads, *writes):
            channels = seen.by_unit(name, math.prod(spec.shape(name)))
            if channels is None:
                continue
            if not seen.are_moved(channels, others):
                places[name] = {f"{name}@{seen.key}": channels + seen.start}
                break
            summed = summed or {f"{name}@{seen.key}{_SUM}": channels + seen.start}
        else:
            if summed:
                places[name] = summed
    covered = {parent.name for name in places for parent in spec.ancestors(name)}
    return {key: channels for name, found in places.items() if name not in covered for key, channels in found.items()}


def _channels(use: Product, spec: PermutationSpec) -> tuple[_Channels, _Channels]:
    """What a use of a weight reads and what it gives."""
    reads, writes = _Channels(use.weight, 0, {}), _Channels(use.weight + _OUTPUT, use.start, {})
    for name, axis in ((name, axis) for name, group in spec.groups.items() for axis in group.axes):
        if axis.key != use.weight:
            continue
        numbers = use.by_group(_numbers(axis, spec.shape(name), spec.shapes[axis.key]))
        while numbers.dim() > 3:  # a kernel's entries belong to one unit
            numbers = numbers.select(-1, 0)
        # Along a dimension without a stride all entries are one.
        some = numbers
        for dim in (dim for dim, stride in enumerate(numbers.stride()) if not stride):
            some = some.narrow(dim, 0, 1)
        for side, found, seen in ((1, reads, use.reads_units), (2, writes, True)):
            if seen and bool((some == some.narrow(side, 0, 1)).all()):
                own = numbers.select(side, 0).flatten()
                known = found.units.get(name, own)
                found.units[name] = torch.where(known < 0, own, known)
    return reads, writes


def _numbers(axis: Axis, units: tuple[int, ...], shape: tuple[int | None, ...]) -> Tensor:
    """The number of the unit that each entry of the axis's tensor belongs to, -1 for none; hardly any memory."""
    named = {axis.dim} if axis.layout is None else axis.layout.dims
    numbers = torch.full([size or 0 if dim in named else 1 for dim, size in enumerate(shape)], -1)
    view = axis.view(numbers)
    order = torch.arange(math.prod(units)).reshape(*units, *[1] * (view.dim() - len(units)))
    axis.write(numbers, order.expand_as(view))
    return numbers.expand(*(size or 0 for size in shape))


def unit_activations(model: nn.Module, state: State, batch: Batch, places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the units do where they are last seen, the model in the mode that it is in.

    Args:
        model: the module.
        state: its state dict.
        batch: what to run it on.
        places: as :func:`unit_places` returns them.

    Returns:
        by group float64, shape ``(units, n)``: every example, and every position of an image or sequence.
    """
    found: dict[str, Tensor] = {}
    asked = [(*key.rpartition("@")[::2], where, int(where.min()), int(where.max())) for key, where in places.items()]

    def take(use: Product) -> None:
        for group, key, where, first, last in asked:
            place = key.removesuffix(_SUM)
            if place == use.weight and use.reads_units and last < use.units_last(use.inputs).shape[-1]:
                values, channels = use.inputs, where
            elif place == use.weight + _OUTPUT and use.start <= first and last < use.start + use.rows:
                values, channels = use.output, where - use.start
            else:
                continue
            dim = 1 if use.is_convolution else values.dim() - 1
            own = values.index_select(dim, channels.flatten().to(values.device)).double()
            units = torch.unflatten(own, dim, channels.shape).movedim(dim, 0)
            found[group] = (units.sum(dim + 1) if key.endswith(_SUM) else units).reshape(len(units), -1)

    watch(model, state, batch, use=take)
    return found
