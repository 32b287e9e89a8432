"""A net as a function of all entries of its state dict, evaluated for many states at once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CHUNK = 512
INPUTS = 8  # for nets that take decisions by their inputs


@dataclass(frozen=True)
class Slot:
    """Where a tensor of the state dict lies among all entries."""

    key: str
    start: int
    tensor: Tensor

    @property
    def stop(self) -> int:
        return self.start + self.tensor.numel()


class Entries:
    """The entries of the state dict of a net, side by side, each given by a number u in (0, 1).

    A float entry is 3 u - 1.5, a variance u + 0.5, an integer the value at the share u of its range. Tied keys are
    one tensor, and integers without a range (counters) stay as they are.
    """

    def __init__(self, net: nn.Module, x: Tensor, ranges: Mapping[str, tuple[int, int]] | None = None) -> None:
        self.net, self.ranges = net, dict(ranges or {})
        generator = torch.Generator().manual_seed(3)
        self.inputs = [x]
        for _ in range(INPUTS - 1):
            if x.is_floating_point():
                self.inputs.append(torch.randn(x.shape, generator=generator, dtype=x.dtype))
            else:
                self.inputs.append(x.flatten()[torch.randperm(x.numel(), generator=generator)].reshape(x.shape))
        self.slots: list[Slot] = []
        self.alias: dict[str, str] = {}
        known: dict[int, str] = {}
        start = 0
        for key, tensor in net.state_dict(keep_vars=True).items():
            if id(tensor) in known:
                self.alias[key] = known[id(tensor)]
            elif tensor.is_floating_point() or tensor.is_complex() or key in self.ranges:
                known[id(tensor)] = key
                self.slots.append(Slot(key, start, tensor.detach()))
                start += tensor.numel()
        self.number = start
        self.in_batches = True

    @property
    def owner(self) -> Tensor:
        """The number of the tensor that each entry lies in."""
        found = torch.empty(self.number, dtype=torch.int64)
        for at, slot in enumerate(self.slots):
            found[slot.start : slot.stop] = at
        return found

    def unflattened(self, values: Tensor) -> dict[str, Tensor]:
        """The values as tensors of the state dict, by key."""
        found = {slot.key: values[slot.start : slot.stop].reshape(slot.tensor.shape) for slot in self.slots}
        return found | {key: found[other] for key, other in self.alias.items()}

    def flattened(self, state: Mapping[str, Tensor]) -> Tensor:
        """The inverse of :meth:`unflattened`."""
        return torch.cat([state[slot.key].flatten() for slot in self.slots])

    def state(self, u: Tensor) -> dict[str, Tensor]:
        """The state dict of one vector of numbers."""
        found = {}
        for slot in self.slots:
            values = u[slot.start : slot.stop].reshape(slot.tensor.shape)
            if slot.tensor.is_complex():
                found[slot.key] = torch.complex(3 * values - 1.5, torch.sin(9 * values))
            elif slot.tensor.is_floating_point():
                found[slot.key] = values + 0.5 if slot.key.endswith("var") else 3 * values - 1.5
            else:
                smallest, largest = self.ranges[slot.key]
                found[slot.key] = (smallest + (values * (largest + 1 - smallest)).floor()).to(slot.tensor.dtype)
        return found | {key: found[other] for key, other in self.alias.items()}

    def runs_in_batches(self) -> bool:
        """Whether the net can be run on many states at once."""
        self.outputs(torch.full((2, self.number), 0.5, dtype=torch.float64))
        return self.in_batches

    def outputs(self, u: Tensor, inputs: int = 2) -> Tensor:
        """What the net gives for each row of numbers, on the first of its inputs: one row each."""
        with torch.no_grad():
            if self.in_batches:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", UserWarning)  # operators that are run row by row
                        return torch.cat(
                            [torch.func.vmap(lambda row: self._one(row, inputs))(rows) for rows in u.split(CHUNK)]
                        )
                except (RuntimeError, ValueError):
                    self.in_batches = False  # no batching rule, or control flow on data
            return torch.stack([self._one(row, inputs) for row in u])

    def _one(self, u: Tensor, inputs: int) -> Tensor:
        state = self.state(u)
        found = []
        for x in self.inputs[:inputs]:
            out = torch.func.functional_call(self.net, state, (x,), tie_weights=False)
            found.append((out[0] if isinstance(out, tuple) else out).flatten())
        return torch.cat(found)
