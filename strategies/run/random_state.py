"""The generators that Flower's strategies draw from: nodes are sampled with Python's, noise is numpy's."""

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch


def capture() -> dict[str, Any]:
    """The state of the generators, as JSON data."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state().tolist(),
    }


def restorer(state: Mapping[str, Any]) -> Callable[[], None]:
    """What undoes :func:`capture` when it is called, once all of it was tried on other generators.

    Raises:
        Exception: of any kind, if this is no such state.
    """
    version, internal, gauss = state["python"]
    python = (version, tuple(internal), gauss)
    random.Random(0).setstate(python)
    name, keys, position, has_gauss, cached = state["numpy"]
    if not 0 <= position <= len(keys) or has_gauss not in (0, 1):
        raise ValueError("not a state of numpy's generator")
    numpy = (name, np.array(keys, dtype=np.uint32), position, has_gauss, float(cached))
    np.random.RandomState(0).set_state(numpy)
    bits = torch.tensor(state["torch"], dtype=torch.uint8)
    torch.Generator().set_state(bits)

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(bits)

    return restore
