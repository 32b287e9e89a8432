"""A model's tensors, and leaving a model as it was found."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.parameter import is_lazy

from fedrebasin.errors import TraceError


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Every module's attributes, the random state, and what is switched off meanwhile are restored at the end.

    Attributes: the mode, and whatever a forward pass caches in them or in their lists and dicts (LeViT's biases).
    Switched off: the fused attention; the cache of keys and values (``config.use_cache`` of transformers), which is
    nothing but what the model has computed already; and what distributions demand of their parameters' values.
    """
    attributes = {module: dict(vars(module)) for module in model.modules()}
    caches = [
        (value, value.copy())
        for each in attributes.values()
        for value in each.values()
        if type(value) is list or type(value) is dict
    ]
    caching = [each["config"] for each in attributes.values() if _uses_cache(each.get("config"))]
    devices = {tensor.device for tensor in model.state_dict().values() if tensor.device.type == "cuda"}
    validated = Distribution._validate_args
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    Distribution.set_default_validate_args(False)
    for config in caching:
        config.use_cache = False
    try:
        with torch.random.fork_rng(devices=sorted(devices, key=str)):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        Distribution.set_default_validate_args(validated)
        for config in caching:
            config.use_cache = True
        for cache, before in caches:
            cache.clear()
            cache.extend(before) if isinstance(cache, list) else cache.update(before)
        for module, before in attributes.items():
            vars(module).clear()
            vars(module).update(before)


def _uses_cache(config: object) -> bool:
    return getattr(config, "use_cache", None) is True


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with the model's own tensors: tied keys hold the same object.

    Raises:
        TraceError: if a lazy layer has not met an example yet, so that a tensor has no shape.
    """
    state = {key: tensor for key, tensor in model.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}
    if lazy := [key for key, tensor in state.items() if is_lazy(tensor)]:
        raise TraceError(f"{lazy[0]} has no shape yet: call the model on an example once, then trace it")
    return state
