"""Tied weights: keys of a state dict that are one tensor, of which files often hold one only."""

from collections.abc import Container, Hashable, Iterable

from torch import Tensor, nn

from fedrebasin.state.kinds import State


def tied_keys(state: State) -> tuple[tuple[str, ...], ...]:
    """The keys that are one tensor: of the same numbers in the same memory, in the order of the state dict.

    Args:
        state: as the model gives it; on the meta device with ``keep_vars=True``, or else nothing is tied.
    """
    found: dict[Hashable, list[str]] = {}
    for key, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.numel():
            found.setdefault(_place(tensor), []).append(key)
    return tuple(tuple(keys) for keys in found.values() if len(keys) > 1)


def ties_of(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The keys of a model that are one tensor: an embedding and the layer behind it."""
    return tied_keys(model.state_dict(keep_vars=True))


def with_ties(state: State, wanted: Iterable[str], ties: Iterable[tuple[str, ...]]) -> State:
    """The state dict with every wanted key that a tied one can supply: the same tensor; or as it is.

    Args:
        state: of a file, which may hold any of the tied keys only.
        wanted: the keys of the model.
        ties: keys that are one tensor.
    """
    found = missing_ties(state, wanted, ties)
    return {**state, **{key: state[other] for key, other in found.items()}} if found else state


def missing_ties(state: Container[str], wanted: Iterable[str], ties: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """For each wanted key that is not in the state dict the tied one that is."""
    supplied = {key: next((one for one in keys if one in state), None) for keys in ties for key in keys}
    return {key: other for key in wanted if key not in state and (other := supplied.get(key)) is not None}


def _place(tensor: Tensor) -> Hashable:
    if tensor.is_meta:
        return id(tensor)
    try:
        return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
    except RuntimeError:  # what is not dense lies in no one place
        return id(tensor)
