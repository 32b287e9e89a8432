"""A function of a state dict under a check: of NumPy, JAX, TensorFlow or torch, whatever it is made of."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fedrebasin.errors import SpecError, one_line
from fedrebasin.tracing.proof.randomising import randomised_state
from fedrebasin.tracing.proof.trial import Trial

#: Outputs of a state dict; nested in lists, tuples and dicts as they like.
Function = Callable[[dict[str, Any]], Any]

_PRECISIONS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "complex128": torch.float64,
    "complex64": torch.float32,
}


@dataclass(frozen=True)
class FunctionRuns:
    """What a check runs: a function, with a state dict that it takes."""

    function: Function
    state: Mapping[str, Any]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """What a spec has to fit."""
        if not isinstance(self.state, Mapping):
            raise SpecError(
                f"a function is checked with a state dict that it takes, not with {type(self.state).__name__}"
            )
        return {key: _tensor(value) for key, value in self.state.items()}

    @contextmanager
    def started(self, seed: int) -> Iterator[tuple[Trial, dict[str, Tensor], list[Tensor]]]:
        """Random parameters: how to run them, the state, and its outputs; in float64 if that can be run.

        Raises:
            SpecError: if the function cannot be run, or no output is finite.
        """
        drawn = randomised_state(self.tensors, torch.Generator().manual_seed(seed))
        for key, given in self.tensors.items():
            if given.dim() < 2 and given.is_floating_point() and bool((given >= 0).all()):
                drawn[key] = drawn[key].abs()  # variances, whatever they are called
        own = {key: tensor.to(self.tensors[key].dtype) for key, tensor in drawn.items()}
        with torch.no_grad():
            try:
                trial, state = FunctionTrial(self.function, self.state), drawn
                reference = trial.outputs(state)
            except Exception:  # whatever a function raises that wants its own dtypes
                try:
                    trial, state = FunctionTrial(self.function, self.state), own
                    reference = trial.outputs(state)
                except Exception as error:
                    raise SpecError(
                        f"the function cannot be run with random parameters, as specs are checked: {one_line(error)}"
                    ) from error
            if not any(bool(torch.isfinite(part).any()) for part in reference):
                raise SpecError("the function's outputs are not finite (or there are none) for random parameters")
            if all(map(torch.equal, trial.outputs(_doubled(state)), reference)):
                raise SpecError("the function does not depend on the state that it is given: it must use no other")
            yield trial, state, reference


class FunctionTrial:
    """A function that was started; its precision is the lowest of its outputs and of what it is given."""

    def __init__(self, function: Function, like: Mapping[str, Any]) -> None:
        self._function, self._like = function, like
        self.precision = torch.float64

    def outputs(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """What comes out, as float64."""
        # Copies: JAX may keep the memory of an array that it was given.
        own = {key: tensor.clone() for key, tensor in state.items()}
        given = {key: one if isinstance(self._like[key], Tensor) else one.numpy() for key, one in own.items()}
        leaves = [
            one.detach().cpu().numpy() if isinstance(one, Tensor) else one for one in tree_leaves(self._function(given))
        ]
        arrays = [np.asarray(one) for one in leaves if one is not None]
        kinds = [_PRECISIONS.get(array.dtype.name, torch.float16) for array in arrays if array.dtype.kind not in "iub"]
        self.precision = max([self.precision, *kinds], key=lambda kind: torch.finfo(kind).eps)
        real = [array.view(array.real.dtype) if array.dtype.kind == "c" else array for array in arrays]
        return [torch.from_numpy(np.array(array, dtype=np.float64)) for array in real]


def _doubled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key: 2 * tensor if tensor.is_floating_point() or tensor.is_complex() else tensor
        for key, tensor in state.items()
    }


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    if array.dtype.kind == "V":
        array = array.astype(np.float32)  # bfloat16, which NumPy does not know
    return torch.from_numpy(np.array(array))
