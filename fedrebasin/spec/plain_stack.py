"""The permutation spec of a plain stack of dense layers, from the names and shapes of its tensors alone."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice, pairwise

from torch import Tensor

from fedrebasin.errors import SpecError
from fedrebasin.spec.notation import Units
from fedrebasin.spec.spec import PermutationSpec

# Layers whose order is looked for, and steps of that.
_MOST, _STEPS = 40, 10_000


def plain_stack(state: Mapping[str, Tensor], ordered: bool = True) -> PermutationSpec:
    """The spec of dense layers that feed one another, with elementwise activations between them.

    Names and shapes do not tell a plain stack from one with shortcuts between layers of the same width: for those, and
    for everything that is not a stack, the spec must be traced from the model.

    Args:
        state: for each layer ``NAME.weight``, of shape (units, inputs), and perhaps ``NAME.bias``; nothing else.
        ordered: whether the state dict's own order is that of the layers, as in one that a model gave. Otherwise, and
            where layers in that order do not fit each other, it is the one order in which their widths fit, or that of
            the numbers in their names where these differ in nothing else: names alone say nothing.

    Raises:
        SpecError: naming the first tensor that does not belong to a plain stack, and what to give instead.
    """
    weights = [key for key in state if key.endswith("weight") and state[key].dim() == 2]
    names = [key.removesuffix("weight") for key in weights]
    allowed = {name + part for name in names for part in ("weight", "bias")}
    for key, tensor in state.items():
        if key not in allowed or (key.endswith("bias") and tensor.shape != state[key[:-4] + "weight"].shape[:1]):
            raise SpecError(_not_plain(f"{key} of shape {tuple(tensor.shape)} belongs to no dense layer"))
    if not names:
        raise SpecError(_not_plain("there is no dense layer"))
    counted = sorted(names, key=_by_numbers)
    orders = [names] * ordered + [counted] * (len({re.sub(r"\d+", "0", name) for name in names}) == 1)
    chain = next((order for order in orders if _fits(state, order)), None)
    if chain is None:
        shapes = {name: state[f"{name}weight"].shape for name in counted}
        chain = _order_by_width({name: (inputs, units) for name, (units, inputs) in shapes.items()})
    axes: dict[str, Sequence[Units]] = {}
    for place, name in enumerate(chain):
        into = None if place == 0 else f"{chain[place - 1]}units"
        out = None if place == len(chain) - 1 else f"{name}units"
        axes[f"{name}weight"] = (out, into)
        if f"{name}bias" in state:
            axes[f"{name}bias"] = (out,)
    return PermutationSpec.from_axes(axes, like=state)


def _fits(state: Mapping[str, Tensor], names: Sequence[str]) -> bool:
    return all(state[f"{a}weight"].shape[0] == state[f"{b}weight"].shape[1] for a, b in pairwise(names))


def _order_by_width(sizes: Mapping[str, tuple[int, int]]) -> list[str]:
    """The one order of all layers in which each reads as many units as the one before it has.

    Args:
        sizes: units that each layer reads, and that it has.

    Raises:
        SpecError: if there is none, or another one.
    """
    by_size: dict[tuple[int, int], str] = {}
    twins = [(by_size[size], name) for name, size in sizes.items() if by_size.setdefault(size, name) != name]
    steps = count()
    found = [] if twins or len(sizes) > _MOST else list(islice(_walks(sizes, [], None, steps), 2))
    if len(found) == 1 and next(steps) < _STEPS:
        return found[0]
    listed = ", ".join(f"{name.rstrip('.')} {size[::-1]}" for name, size in list(sizes.items())[:_MOST])
    if twins:
        pair = " and ".join(name.rstrip(".") for name in twins[0])
        raise SpecError(_not_plain(f"{pair} have one shape, and names do not say which comes first"))
    if found:
        raise SpecError(_not_plain(f"its layers fit in more than one order: {listed}"))
    raise SpecError(_not_plain(f"the layers do not feed one another: {listed}"))


def _walks(
    left: Mapping[str, tuple[int, int]], order: list[str], width: int | None, steps: Iterator[int]
) -> Iterator[list[str]]:
    """The orders of the layers that are left, behind those that end in a width."""
    if not left:
        yield order
    for name, (reads, units) in left.items():
        if width in (None, reads) and next(steps) < _STEPS:
            rest = {one: size for one, size in left.items() if one != name}
            yield from _walks(rest, [*order, name], units, steps)


def _by_numbers(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _not_plain(reason: str) -> str:
    return f"not a plain stack of dense layers: {reason}; say what model it is: --model, or --spec with its spec"
