"""The permutation spec of a plain stack of dense layers, from the names and shapes of its tensors alone."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor

from fedrebasin.errors import SpecError
from fedrebasin.spec.notation import Units
from fedrebasin.spec.spec import PermutationSpec


def plain_stack(state: Mapping[str, Tensor], ordered: bool = True) -> PermutationSpec:
    """The spec of dense layers that feed one another, with elementwise activations between them.

    Names and shapes do not tell a plain stack from one with shortcuts between layers of the same width: for those, and
    for everything that is not a stack, the spec must be traced from the model.

    Args:
        state: for each layer ``NAME.weight``, of shape (units, inputs), and perhaps ``NAME.bias``; nothing else.
        ordered: whether the state dict's own order is that of the layers, as in one that a model gave. Otherwise, and
            where layers in that order do not fit each other, names are sorted, numbers in them by value.

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
    orders = [names, sorted(names, key=_by_numbers)] if ordered else [sorted(names, key=_by_numbers)]
    chain = next((order for order in orders if _fits(state, order)), None)
    if chain is None:
        shapes = ", ".join(f"{name}weight {tuple(state[f'{name}weight'].shape)}" for name in orders[-1])
        raise SpecError(_not_plain(f"the layers do not feed one another: {shapes}"))
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


def _by_numbers(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _not_plain(reason: str) -> str:
    return f"not a plain stack of dense layers: {reason}; say what model it is: --model, or --spec with its spec"
