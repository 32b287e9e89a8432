"""Where a group's units can be seen while a model runs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedrebasin.running import Batch, State, mode_of
from fedrebasin.spec import Axis, PermutationSpec
from fedrebasin.watching.observer import watch
from fedrebasin.watching.products import Product

_OUTPUT = ">"  # after the weight in a place: the units are its outputs


def unit_places(model: nn.Module, state: State, batch: Batch, spec: PermutationSpec) -> dict[str, Tensor]:
    """Where each group's units are last seen: in what the last weight that reads them reads.

    (Simultaneous connectivity, Appendix A: a residual stream is matched by the last of its layers.) Units that no
    weight reads are seen in what the last weight that writes them gives. Groups of blocks are left out where the units
    inside them are seen, from which it follows how well two blocks go together; so are groups that are never seen.

    Args:
        model: the module.
        state: its state dict.
        batch: any batch, to see what runs when.
        spec: the model's permutation spec.

    Returns:
        ``GROUP@WEIGHT`` -> which of the weight's inputs (or, for ``GROUP@WEIGHT>``, outputs) belong to each unit, shape
        ``(units, m)``; the units of a nested group are those of all blocks, block by block.
    """
    spec = spec.bind(state)
    uses: dict[tuple[str, int], Product] = {}

    def keep(product: Product) -> None:
        key = product.weight, product.start
        uses.pop(key, None)
        uses[key] = product

    with mode_of(model):
        watch(model, state, batch, use=keep)
    places: dict[str, tuple[str, Tensor]] = {}
    for name, group in spec.groups.items():
        for use, axis in ((use, axis) for use in reversed(uses.values()) for axis in group.axes):
            if axis.key != use.weight:
                continue
            inputs, outputs = _places(use, axis, state[axis.key], spec.shape(name))
            if inputs is not None:
                places[name] = use.weight, inputs
                break
            if outputs is not None:
                places.setdefault(name, (use.weight + _OUTPUT, outputs))
    covered = {parent.name for name in places for parent in spec.ancestors(name)}
    return {f"{name}@{key}": where for name, (key, where) in places.items() if name not in covered}


def _places(use: Product, axis: Axis, weight: Tensor, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
    """Which inputs and which outputs of a use of the axis's tensor belong to each unit: shape ``(units, m)`` each."""
    numbers = torch.full(weight.shape, -1, dtype=torch.int32)
    view = axis.view(numbers)
    units = torch.arange(math.prod(shape), dtype=torch.int32).reshape(*shape, *[1] * (view.dim() - len(shape)))
    axis.write(numbers, units.expand_as(view))
    # The same part of the same memory as the operand, with numbers of units in it.
    like = torch.empty_strided(weight.shape, weight.stride(), dtype=torch.int32).copy_(numbers)
    offset = use.operand.storage_offset() - weight.storage_offset()
    operand = like.as_strided(use.operand.shape, use.operand.stride(), offset)
    operand = operand.flatten(3)[..., 0] if operand.dim() > 3 else operand
    reads = use.reads_units and bool((operand == operand[:, :1]).all())
    writes = bool((operand == operand[:, :, :1]).all())
    return (
        _by_unit(operand[:, 0].flatten(), math.prod(shape)) if reads else None,
        _by_unit(operand[:, :, 0].flatten(), math.prod(shape), use.start) if writes else None,
    )


def _by_unit(numbers: Tensor, units: int, start: int = 0) -> Tensor | None:
    """From the unit of each channel (-1: of none) to the channels of each unit; None if not every unit has as many."""
    own = (numbers >= 0).nonzero().flatten()
    count = torch.bincount(numbers[own], minlength=units)
    if not len(own) or bool((count != count[0]).any()):
        return None
    return own[numbers[own].argsort(stable=True)].reshape(units, -1) + start


def unit_activations(model: nn.Module, state: State, batch: Batch, places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the units do where they are last seen, the model in the mode that it is in.

    Args:
        model: the module.
        state: its state dict.
        batch: what to run it on.
        places: as :func:`unit_places` returns them.

    Returns:
        by group float64, shape ``(n, units)``: every example, and every position of an image or sequence.
    """
    found: dict[str, Tensor] = {}
    asked = [(*key.rpartition("@")[::2], where, int(where.min()), int(where.max())) for key, where in places.items()]

    def take(use: Product) -> None:
        for group, key, where, first, last in asked:
            if key == use.weight and use.reads_units:
                values, channels = use.inputs, where
            elif key == use.weight + _OUTPUT and use.start <= first and last < use.start + use.rows:
                values, channels = use.output, where - use.start
            else:
                continue
            units = use.units_last(values)[..., channels.to(values.device)].movedim(-2, -1)
            found[group] = units.reshape(-1, len(where)).double()

    watch(model, state, batch, use=take)
    return found
