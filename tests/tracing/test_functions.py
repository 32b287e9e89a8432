"""The check of a spec against any function of a state: NumPy, torch, JAX and Keras."""

import numpy as np
import pytest
import torch
from torch import nn

from fedrebasin import PermutationSpec, SpecError

UNITS, PLACES = 6, 9


def axes(flattened):
    """A 1x1 convolution with the channels last, flattened, and a head; kernels lie inputs first."""
    return {"0": (None, "P"), "1": ("P",), "2": (flattened, None), "3": (None,)}


RIGHT = PermutationSpec.from_axes(axes((PLACES, "P")))
WRONG = PermutationSpec.from_axes(axes(("P", PLACES)))


def state(seed, dtype=np.float32):
    generator = np.random.default_rng(seed)
    shapes = ((2, UNITS), (UNITS,), (PLACES * UNITS, 3), (3,))
    return {str(index): generator.normal(size=shape).astype(dtype) for index, shape in enumerate(shapes)}


def network(seed, dtype, numpy=np):
    """The function, computing in this precision."""
    images = np.random.default_rng(seed + 100).normal(size=(4, PLACES, 2)).astype(dtype)

    def logits(given):
        w, b, v, c = (numpy.asarray(given[str(index)], dtype=dtype) for index in range(4))
        hidden = numpy.maximum(images @ w + b, 0)
        return {"logits": [hidden.reshape(len(images), -1) @ v + c], "nothing": None}

    return logits


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("seed", range(20))
def test_numpy(seed, dtype):
    RIGHT.check(network(seed, dtype), state(seed), seed=seed)
    with pytest.raises(SpecError, match="changes the function"):
        WRONG.check(network(seed, dtype), state(seed), seed=seed)


@pytest.mark.parametrize("seed", range(3))
def test_jax(seed):
    jax = pytest.importorskip("jax")
    logits = jax.jit(network(seed, "float32", jax.numpy))
    RIGHT.check(logits, state(seed), seed=seed)
    with pytest.raises(SpecError, match="changes the function"):
        WRONG.check(logits, state(seed), seed=seed)


def test_torch_functions_get_tensors():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).eval()
    spec, inputs = PermutationSpec.trace(model, torch.zeros(2, 4)), torch.randn(5, 4)

    def outputs(given):  # in the dtype of its inputs only: what it is given in float64 it refuses
        return torch.func.functional_call(model, given, (inputs,))

    spec.check(outputs, model.state_dict())
    axes = {key: ("P",) * tensor.dim() for key, tensor in model.state_dict().items() if key[0] in "01"}
    wrong = PermutationSpec.from_axes(
        {**axes, "0.weight": ("P", None), "1.bias": (None,), "3.weight": (None, "P"), "3.bias": (None,)}
    )
    with pytest.raises(SpecError, match="changes the function"):
        wrong.check(outputs, model.state_dict())


def test_the_given_state_stays_and_so_does_what_the_function_keeps():
    given, kept = state(0), []

    def logits(arrays):
        kept.append({key: (array, array.copy()) for key, array in arrays.items()})
        return network(0, "float64")(arrays)

    RIGHT.check(logits, given)
    assert all((given[key] == array).all() for key, array in state(0).items())
    assert all((array == copy).all() for call in kept for array, copy in call.values())


def test_a_function_of_other_weights_is_no_proof():
    fixed = state(0)
    with pytest.raises(SpecError, match="does not depend on the state"):
        WRONG.check(lambda given: network(0, "float64")(fixed), fixed)


def test_what_cannot_be_checked_is_said_in_a_line():
    with pytest.raises(SpecError, match="cannot be run with random parameters, as specs are checked: KeyError: 'x'"):
        RIGHT.check(lambda given: given["x"], state(0))
    with pytest.raises(SpecError, match="with a state dict that it takes, not with ndarray"):
        RIGHT.check(network(0, "float64"), np.zeros(3))
    with pytest.raises(SpecError, match="not finite"):
        RIGHT.check(lambda given: given["0"] * np.nan, state(0))
