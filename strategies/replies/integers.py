"""Integer and bool arrays in a round: what is averaged, and whose values count where nothing is.

Along a group of units (masks, integer weights) they move with the units and are never averaged, by no strategy: a reply
whose ones differ from those of most replies, once it is aligned, is set aside, and the aggregate has theirs. Those that
no group moves, counters such as ``num_batches_tracked`` among them, are Flower's: its strategies average them as
floats, and the global dtype is restored by rounding. Where nothing is aligned all of them are Flower's.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedrebasin.spec import PermutationSpec
from fedrebasin.state import State


def moving_integers(spec: PermutationSpec | None, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The keys of the integer and bool tensors that lie along a group."""
    groups = () if spec is None else spec.groups.values()
    keys = dict.fromkeys(axis.key for group in groups for axis in group.axes)
    return tuple(key for key in keys if key in state and not state[key].is_floating_point())


def agreed(keys: Sequence[str], states: Sequence[State], otherwise: State) -> State:
    """The integers that more than half of the models have.

    Args:
        keys: which tensors count.
        states: the models, aligned.
        otherwise: whose integers are taken where there is no such majority.
    """
    digests = [_digest(keys, state) for state in states]
    usual = next((digest for digest, count in Counter(digests).items() if 2 * count > len(states)), None)
    source = otherwise if usual is None else states[digests.index(usual)]
    return {key: source[key] for key in keys}


def dissent(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Which integers of a model are not the expected ones, for people; empty if there are none."""
    for key, tensor in expected.items():
        if different := int((tensor.to(state[key].device) != state[key]).sum()):
            return f"{key}: {different} of {tensor.numel()} entries are not those of the models to average with"
    return ""


def alike(spec: PermutationSpec, states: Sequence[State]) -> list[State]:
    """The models with integers that an aligner can take for equal: it is not here that they are compared.

    Along a group they are all ones, which look the same in every order of the units; elsewhere the first model's.
    """
    integers = [key for key, tensor in states[0].items() if not tensor.is_floating_point()]
    moving = moving_integers(spec, states[0])
    shared = {key: torch.ones_like(states[0][key]) if key in moving else states[0][key] for key in integers}
    return [{**state, **shared} for state in states] if integers else list(states)


def _digest(keys: Sequence[str], state: State) -> bytes:
    found = hashlib.sha256()
    for key in keys:
        found.update(state[key].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()
