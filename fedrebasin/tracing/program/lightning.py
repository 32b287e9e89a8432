"""Lightning modules: what they train on is their ``training_step``, and ``forward`` may be a part of it."""

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from fedrebasin.errors import TraceError, one_line
from fedrebasin.running import tensors_in
from fedrebasin.tracing.program.inputs import preserved, tensors_of
from fedrebasin.tracing.program.usage import Forward, Given, Usage, as_call

Select = Callable[[Any], Given]

#: What of a batch forward takes: all of it, as inputs are given elsewhere, its first part, or itself.
_PARTS: tuple[Select, ...] = (as_call, lambda batch: ((batch[0],), {}), lambda batch: ((batch,), {}))
_LOGGING = ("log", "log_dict", "print")
_LOG = logging.getLogger("fedrebasin")


def usage_of(model: nn.Module, example_inputs: Any, forward: Forward | None = None) -> Usage:
    """How a model is to be run: by ``forward`` if one is given, else as itself, a Lightning module as it is trained.

    A Lightning module is known by its ``training_step`` and ``trainer``. Where the example inputs are a batch of its
    training step, this is what is run, without a trainer and without logging, and its forward as well if
    that takes the batch or the first part of it: the loss and the outputs are both to stay as they are.

    Args:
        model: the module; it stays as it is.
        example_inputs: a tensor, a tuple of tensors, or a dict of keyword tensors; of a Lightning module, a batch.
        forward: a function of the model and of these inputs.

    Raises:
        TraceError: if neither the training step nor the forward of a Lightning module can be run.
    """
    if forward is not None:
        return Usage(model, as_call(example_inputs), forward)
    if not hasattr(type(model), "trainer") or not callable(getattr(model, "training_step", None)):
        return Usage(model, as_call(example_inputs))
    select, refused = _what_forward_takes(model, example_inputs)
    alone = None if select is None else Usage(model, select(example_inputs))
    trained = Usage(model, ((example_inputs,), {}), partial(_trained, select), otherwise=alone)
    if missed := _flaw(trained):
        if alone is None:
            raise TraceError(
                f"{type(model).__name__} takes the example inputs neither in training_step ({missed}) nor in forward"
                f" ({refused}): give a batch as training_step takes it, or forward="
            )
        return replace(alone, missed=missed)
    also = "" if select is None else ", and its forward"
    _LOG.info("%s is a Lightning module: its training_step is traced%s", type(model).__name__, also)
    return trained


def _what_forward_takes(model: nn.Module, batch: Any) -> tuple[Select | None, str]:
    why = ""
    for select in _PARTS:
        try:
            usage = Usage(model, select(batch))
        except (TypeError, LookupError):
            continue
        if not (flaw := _flaw(usage)):
            return select, ""
        why = why or flaw
    return None, why


def _flaw(usage: Usage) -> str:
    """What keeps a model from being run so, in a line; "" if nothing does. The model stays as it is."""
    state = {key: tensor.detach().clone() for key, tensor in tensors_of(usage.model).items()}
    with preserved(usage.model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        usage.model.eval()
        try:
            usage.outputs(state)
        except Exception as error:  # whatever a training step raises that has no trainer
            return one_line(error, 120)
    return ""


def _trained(select: Select | None, model: nn.Module, batch: Any) -> Any:
    """What a training step gives for a batch, and forward for the part of it that it takes."""
    step: Any = model.training_step
    takes_place = len(inspect.signature(step).parameters) > 1
    with _by_itself(model):
        found = step(batch, 0) if takes_place else step(batch)
        if next(tensors_in(found), None) is None:
            raise TraceError("training_step gives no tensor")
        if select is None:
            return found
        args, kwargs = select(batch)
        return found, model(*args, **kwargs)


@contextmanager
def _by_itself(model: nn.Module) -> Iterator[None]:
    """Nothing is logged, and metrics (torchmetrics', which remember what they saw) give nothing."""
    nothing = partial(_nothing, None)
    changed = {model: dict.fromkeys(_LOGGING, nothing)}
    for module in model.modules():
        if any(kind.__name__ == "Metric" for kind in type(module).__mro__):
            changed[module] = dict.fromkeys(("forward", "update", "compute"), partial(_nothing, torch.zeros(())))
    before = {module: dict(vars(module)) for module in changed}
    for module, names in changed.items():
        vars(module).update(names)
    try:
        yield
    finally:
        for module, attributes in before.items():
            for name in changed[module]:
                vars(module).pop(name, None)
            vars(module).update({name: attributes[name] for name in changed[module] if name in attributes})


def _nothing(result: Any, *_: Any, **__: Any) -> Any:
    return result
