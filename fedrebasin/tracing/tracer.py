"""trace: the permutation symmetries of any model, read off its graph."""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fedrebasin.errors import CoverageWarning, TraceError, one_line
from fedrebasin.spec import PermutationSpec
from fedrebasin.state import has_mean, ties_of
from fedrebasin.tracing.algebra import Pinned, leaves, pin, units
from fedrebasin.tracing.groups import Grouping
from fedrebasin.tracing.program import Forward, Reading, Usage, exported, preserved, tensors_of, usage_of
from fedrebasin.tracing.proof import holds, proven
from fedrebasin.tracing.values import Value


def trace(
    model: nn.Module, example_inputs: Any, *, forward: Forward | None = None, check: bool = True, seed: int = 0
) -> PermutationSpec:
    """The spec of a model: which axes of its tensors can be permuted together without changing the function.

    The model is exported with torch.export and every axis of every tensor is followed through the graph, operator by
    operator. What an operator ties is one group, what depends on a position stays, and an operator without a rule
    keeps all that it touches in place and is named in ``spec.unpermuted``. Groups nest: heads move as blocks, and
    each head has its own order of its units.

    ``spec.log10_symmetries`` counts the permutations that leave the function as it is. Git Re-Basin's Table 1 counts
    the axes along a residual stream as if they were free (ResNet-50: 55109); tied, there are 25638.3.

    Args:
        model: any module that torch.export accepts; it is read in evaluation mode, whichever it is in. A Lightning
            module is read as its ``training_step`` runs it, where the example inputs are a batch of that, and as its
            forward runs it: the loss and the outputs stay as they are.
        example_inputs: a tensor, a tuple of tensors, or a dict of keyword tensors.
        forward: what is read instead of the model's own forward, ``(model, *inputs) -> outputs``: for models that are
            used by their parts, as in ``lambda model, x: model.decoder(model.encoder(x))``. Outputs are all tensors in
            what comes out, of dicts, dataclasses and other objects too.
        check: apply random members with random parameters in float64 (see :func:`check`); a group that changes the
            function is dropped and reported. On the meta device nothing can be checked: ``spec.checked`` is False.
        seed: of the check.

    Raises:
        TraceError: if torch.export cannot read the model, or it has lazy layers that have met no example yet.
        SpecError: if the model cannot be run with random parameters, so that nothing can be checked.

    Warns:
        CoverageWarning: if a Lightning module's training step cannot be run on the example inputs, and its forward
            leaves parameters unread.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(f"a torch.nn.Module is what can be traced, not a {type(model).__name__}")
    state = tensors_of(model)
    usage = usage_of(model, example_inputs, forward)
    reading = Reading(_axes_of(state))
    weights = {key for key, _ in model.named_parameters(remove_duplicate=False) if has_mean(state[key])}
    with preserved(model), torch.no_grad():
        model.eval()
        usage, program = _first_that_exports(usage)
        _follow(reading, program, model)
        unread = before = _unread(state, weights, reading)
        if unread:
            _read_in_train_mode(usage, reading, unread)
            unread = _unread(state, weights, reading)
    if usage.missed and unread:
        warnings.warn(_only_forward(usage, unread), CoverageWarning, stacklevel=2)
    for value in reading.parameters.values():
        for part in (part for axis in value.axes for part in leaves(axis)):
            if not part.read:
                pin(part, Pinned("the model does not read it"))
    grouping = Grouping(reading.parameters, reading.index, weights)
    groups = grouping.groups
    moved = {axis.key for group in groups.values() for axis in group.axes}
    spec = PermutationSpec(
        groups=groups,
        shapes={key: tuple(tensor.shape) for key, tensor in state.items()},
        # Integers that no group moves (counters) are nothing to a spec.
        statistics=frozenset(key for key in state if key not in weights and (key in moved or has_mean(state[key]))),
        unpermuted=tuple(grouping.unpermuted([key for key in state if key in weights])),
        tied=ties_of(model),
    )
    on_meta = any(tensor.is_meta for tensor in state.values())
    if not check or on_meta:
        return spec
    usages = {False: usage}
    if len(unread) < len(before):
        usages[True] = usage.map(_twice)
    return proven(spec, lambda one: _holds(one, usages, seed))


def _first_that_exports(usage: Usage) -> tuple[Usage, ExportedProgram]:
    try:
        return usage, exported(usage)
    except TraceError as error:
        if usage.otherwise is None:
            raise
        return replace(usage.otherwise, missed=one_line(error, 160)), exported(usage.otherwise)


def _only_forward(usage: Usage, unread: list[str]) -> str:
    return (
        f"{type(usage.model).__name__} is a Lightning module whose training_step cannot be traced on these example"
        f" inputs ({usage.missed}): forward alone was, which does not read {unread[0]}; give a batch as training_step"
        " takes it, or forward="
    )


def _axes_of(state: Mapping[str, Tensor]) -> dict[str, Value]:
    known: dict[int, Value] = {}
    found = {}
    for key, tensor in state.items():
        found[key] = known.setdefault(id(tensor), Value(tuple(map(units, tensor.shape)), tensor.dtype))
    return found


def _follow(reading: Reading, program: ExportedProgram, model: nn.Module) -> None:
    try:
        reading.run(program)
    except Exception as error:  # an operator that no rule foresaw must not end a user's run with a traceback
        raise TraceError(
            f"the graph of {type(model).__name__} cannot be followed: {one_line(error)}; write the spec by hand with"
            " PermutationSpec.from_axes, and please report this"
        ) from error


def _export_for_training(usage: Usage) -> ExportedProgram:
    try:
        return exported(usage)
    except TraceError:
        return exported(usage.map(_twice))


def _twice(value: Any) -> Any:
    """A batch of twice the size: in training, batch normalisation wants more than one example of a single position."""
    return torch.cat((value, value)) if isinstance(value, Tensor) and value.dim() else value


def _unread(state: Mapping[str, Tensor], weights: Collection[str], reading: Reading) -> list[str]:
    read = {id(state[key]) for key in reading.read}
    return [key for key in state if key in weights and id(state[key]) not in read]


def _read_in_train_mode(usage: Usage, reading: Reading, unread: list[str]) -> None:
    """What the model reads in training only (auxiliary heads) ties what feeds it, or keeps it in place."""
    usage.model.train()
    try:
        _follow(reading, _export_for_training(usage), usage.model)
    except TraceError:
        sizes = {size for key in unread for size in reading.parameters[key].shape}
        parts = {part for value in reading.parameters.values() for axis in value.axes for part in leaves(axis)}
        for part in parts:
            if part.size in sizes:
                pin(part, Pinned(f"may feed {unread[0]}, which is read in training only"))


def _holds(spec: PermutationSpec, usages: Mapping[bool, Usage], seed: int) -> bool:
    """Whether the function stays; usages by whether they are for training."""
    return all(holds(spec, usage, seed=seed, training=training) for training, usage in usages.items())
