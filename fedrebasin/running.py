"""Batches of data, and running a model on them without changing it."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fedrebasin.errors import CalibrationError, RebasinError, one_line, some
from fedrebasin.state import State, demand_numbers, has_mean, ties_of, with_ties

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
    """The length of the first dimension of the first input that has one.

    Raises:
        CalibrationError: if there is no such tensor among the inputs.
    """
    count = next((tensor.shape[0] for tensor in tensors_in(inputs_of(batch)) if tensor.dim()), None)
    if count is None:
        raise CalibrationError(
            f"a batch with inputs of {described(inputs_of(batch))}: tensors are needed, whose first dimension counts "
            "examples"
        )
    return count


def tensors_in(value: Any, _inside: tuple[int, ...] = ()) -> Iterator[Tensor]:
    """The tensors in a nest of tuples, lists, dicts, and objects that hold some (dataclasses, distributions)."""
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, Mapping):
        items: Iterable[Any] = value.values()
    elif isinstance(value, tuple | list | set):
        items = value
    elif is_dataclass(value) and not isinstance(value, type):
        items = [getattr(value, one.name) for one in fields(value)]
    elif callable(value) or isinstance(value, ModuleType) or id(value) in _inside:
        return
    else:
        items = getattr(value, "__dict__", {}).values()
    for item in items:
        yield from tensors_in(item, (*_inside, id(value)))


def described(value: Any) -> str:
    """Inputs in words: shapes, or kinds where there are none."""
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)}"
    tensors = list(tensors_in(value))
    return f"shapes {', '.join(str(tuple(t.shape)) for t in tensors)}" if tensors else f"kind {type(value).__name__}"


def demand_batches(batches: Iterable[Batch]) -> Iterable[Batch]:
    """The batches, if they can be gone through one by one.

    Raises:
        CalibrationError: for a tensor, whose rows would be taken for batches, a dict, whose keys would, or no iterable.
    """
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise CalibrationError(
            f"batches are a {type(batches).__name__}: give a list of them or a DataLoader, as in [(inputs, labels)]"
        )
    return batches


def joined(first: Batch, second: Batch) -> Batch:
    """Two batches as one, the second one's examples after the first one's.

    Raises:
        CalibrationError: if they do not fit each other, such as images of two sizes.
    """
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.dim() and first.shape[1:] == second.shape[1:]:
            return torch.cat([first, second.to(first)])
    elif isinstance(first, Mapping) and isinstance(second, Mapping):
        if first.keys() == second.keys():
            return {key: joined(item, second[key]) for key, item in first.items()}
    elif isinstance(first, tuple | list) and isinstance(second, tuple | list):
        if len(first) == len(second):
            return tuple(joined(*items) for items in zip(first, second, strict=True))
    elif type(first) is type(second) and first == second:
        return first
    raise CalibrationError(f"batches of {described(first)} and {described(second)} do not fit each other")


def without_single_examples(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same examples in batches of two and more, since one has no variance.

    A single one joins the batch that follows, the last one that before it; what fits no neighbour stays alone.

    Args:
        batches: none of them empty.
    """
    waiting: list[Batch] = []  # at most two, the second one a single example
    for batch in batches:
        waiting = _company(waiting, batch) if waiting and number_of_examples(waiting[-1]) == 1 else [*waiting, batch]
        while len(waiting) > 2 or (len(waiting) == 2 and number_of_examples(waiting[-1]) > 1):
            yield waiting.pop(0)
    if len(waiting) == 2:
        waiting = _company(waiting[:1], waiting[1])
    yield from waiting


def _company(waiting: list[Batch], batch: Batch) -> list[Batch]:
    """The last one that waits and this one as one, where they fit."""
    try:
        return [*waiting[:-1], joined(waiting[-1], batch)]
    except CalibrationError:
        return [*waiting, batch]


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

    Raises:
        CalibrationError: if the state lacks parameters of the model, or the model cannot be run on this.
    """
    with torch.no_grad():
        return outputs_of(model, state, batch)


def outputs_of(model: nn.Module, state: State, batch: Batch) -> Any:
    """As :func:`forward`, with gradients where they are asked for."""
    state = _with_parameters(model, state)
    # A module in training mode writes to its buffers, so that it gets copies of them.
    buffers = {name for name, _ in model.named_buffers()}
    try:
        inputs = to_device(inputs_of(batch), device_of(state))
        own = {key: tensor.clone() if key in buffers else tensor for key, tensor in state.items()}
        if isinstance(inputs, Mapping):
            return functional_call(model, own, args=(), kwargs=dict(inputs), tie_weights=False)
        # A state dict names tied weights twice, and after a merge they are two tensors.
        return functional_call(model, own, inputs if isinstance(inputs, tuple) else (inputs,), tie_weights=False)
    except RebasinError:
        raise
    except Exception as error:  # whatever a stranger's model raises
        few = (
            "; BatchNorm needs two examples and more in a batch"
            if "more than 1 value per channel" in str(error)
            else ""
        )
        raise CalibrationError(
            f"the model cannot be run on inputs of {described(inputs_of(batch))}: {one_line(error)}{few}"
        ) from error


def _with_parameters(model: nn.Module, state: State) -> State:
    """The state dict with tied parameters under each of their names.

    Raises:
        CalibrationError: naming the first one that it lacks, or one without numbers: the module's own would be taken,
            and nobody would see it.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if any(name not in state for name in names):
        state = with_ties(state, names, ties_of(model))
        if missing := [name for name in names if name not in state]:
            raise CalibrationError(f"the state dict lacks {some(missing, 1)} of the model's parameters")
    demand_numbers(state, CalibrationError)
    return state


def logits_and_labels(model: nn.Module, state: State, batch: Batch) -> tuple[Tensor, Tensor]:
    """The model's logits on a batch, shape ``(n, classes)``, and the labels, shape ``(n,)``.

    Outputs of shape ``(..., classes)`` with labels ``(...)`` (a label per token) are flattened; of an object that has
    ``logits`` these are meant.

    Raises:
        CalibrationError: if outputs and labels do not fit each other, or labels are no integers.
    """
    labels = labels_of(batch)
    output = forward(model, state, batch)
    output = getattr(output, "logits", output)  # transformers' models give them among others
    if not isinstance(output, Tensor):
        raise CalibrationError(f"the model returns {type(output).__name__} where a tensor of logits is needed")
    if output.dim() < 2 or output.shape[:-1] != labels.shape or not output.shape[-1]:
        raise CalibrationError(
            f"logits of shape {tuple(output.shape)} do not fit labels of shape {tuple(labels.shape)}: "
            "(..., classes) and (...) are needed"
        )
    if has_mean(labels):
        raise CalibrationError(f"labels of {labels.dtype}: the numbers of classes are needed, from 0")
    return output.reshape(-1, output.shape[-1]), labels.reshape(-1).to(output.device, torch.int64)


def demand_classes(labels: Tensor, classes: int) -> None:
    """Refuse labels that are no classes, such as the -100 of tokens that do not count.

    Raises:
        CalibrationError: with their range.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        low, high = int(labels.min()), int(labels.max())
        raise CalibrationError(f"labels lie in {low} .. {high} where there are {classes} classes")


def demand_reiterable(batches: Iterable[Batch], why: str) -> None:
    """Refuse an iterator, which would be empty the second time.

    Raises:
        CalibrationError: if ``batches`` can be read only once.
    """
    demand_batches(batches)
    if iter(batches) is batches:
        raise CalibrationError(f"{why} reads the batches more than once: give a list or a DataLoader, not an iterator")
