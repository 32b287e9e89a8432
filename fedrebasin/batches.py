"""Batches of data, and running a model on them without changing it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fedrebasin.errors import CalibrationError

State = Mapping[str, Tensor]
#: ``(inputs, labels)``, or the inputs alone where no labels are needed. Inputs are a tensor, a tuple of positional
#: or a dict of keyword arguments of the model.
Batch = Any


def inputs_of(batch: Batch) -> Any:
    """The model's inputs in a batch."""
    return batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch


def labels_of(batch: Batch) -> Tensor:
    """The labels in a batch.

    Raises:
        CalibrationError: if the batch is not ``(inputs, labels)``.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[1]
    raise CalibrationError("this needs labels: give batches as (inputs, labels)")


def number_of_examples(batch: Batch) -> int:
    """The length of the first dimension of the first input."""
    found = inputs_of(batch)
    while not isinstance(found, Tensor):
        found = next(iter(found.values() if isinstance(found, Mapping) else found))
    return found.shape[0]


def device_of(state: State) -> torch.device:
    """The device of the first tensor of a state dict."""
    return next((tensor.device for tensor in state.values()), torch.device("cpu"))


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor, or a tuple, list or dict of tensors, on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(to_device(item, device) for item in value)
    return value


@contextmanager
def mode_of(model: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """The model in evaluation mode for a while, each module's mode restored afterwards.

    Args:
        model: the module.
        batch_statistics: BatchNorm modules normalise with each batch's own moments instead of the running ones.
    """
    before = {module: module.training for module in model.modules()}
    try:
        model.eval()
        if batch_statistics:
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.training = True
        yield
    finally:
        for module, training in before.items():
            module.training = training


def forward(model: nn.Module, state: State, batch: Batch) -> Any:
    """The model's output with the tensors of ``state``, in the mode that the model is in; no gradient is kept.

    Neither the model nor the state is changed, running statistics included.
    """
    inputs = to_device(inputs_of(batch), device_of(state))
    # A module in training mode writes to its buffers, so that it gets copies of them.
    buffers = {name for name, _ in model.named_buffers()}
    own = {key: tensor.clone() if key in buffers else tensor for key, tensor in state.items()}
    with torch.no_grad():
        if isinstance(inputs, Mapping):
            return functional_call(model, own, args=(), kwargs=dict(inputs), tie_weights=False)
        # A state dict names tied weights twice, and after a merge they are two tensors.
        return functional_call(model, own, inputs if isinstance(inputs, tuple) else (inputs,), tie_weights=False)


def logits_and_labels(model: nn.Module, state: State, batch: Batch) -> tuple[Tensor, Tensor]:
    """The model's logits on a batch, shape ``(n, classes)``, and the labels, shape ``(n,)``.

    Outputs of shape ``(..., classes)`` with labels ``(...)`` (a label per token) are flattened.

    Raises:
        CalibrationError: if outputs and labels do not fit each other.
    """
    output = forward(model, state, batch)
    labels = labels_of(batch)
    if not isinstance(output, Tensor):
        raise CalibrationError(f"the model returns {type(output).__name__} where a tensor of logits is needed")
    if output.dim() < 2 or output.shape[:-1] != labels.shape:
        raise CalibrationError(
            f"logits of shape {tuple(output.shape)} do not fit labels of shape {tuple(labels.shape)}: "
            "(..., classes) and (...) are needed"
        )
    return output.reshape(-1, output.shape[-1]), labels.reshape(-1).to(output.device)


def demand_reiterable(batches: Iterable[Batch], why: str) -> None:
    """Refuse an iterator, which would be empty the second time.

    Raises:
        CalibrationError: if ``batches`` can be read only once.
    """
    if iter(batches) is batches:
        raise CalibrationError(f"{why} reads the batches more than once: give a list or a DataLoader, not an iterator")
