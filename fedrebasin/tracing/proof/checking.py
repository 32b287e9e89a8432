"""Checking a spec: members that reveal a wrong group must leave the function of the model as it is."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedrebasin.errors import SpecError
from fedrebasin.spec import PermutationSpec
from fedrebasin.state import has_mean
from fedrebasin.tracing.program import Forward, Usage, usage_of
from fedrebasin.tracing.proof.functions import Function, FunctionRuns
from fedrebasin.tracing.proof.members import revealing_members
from fedrebasin.tracing.proof.models import ModelRuns
from fedrebasin.tracing.proof.precision import never_rounding
from fedrebasin.tracing.proof.trial import Runs

TOLERANCE = 1e-9
# A network that blows rounding errors up may change by some of them, never by as much as a wrong group changes it.
_ROUNDINGS = 100
# So many units of each group are drawn: about a third of them are dead behind a ReLU.
UNITS_SEEN = 12
_NEXT_SEED = 7919

Change = Callable[[dict[str, Tensor]], None]


class Changed(NamedTuple):
    """How far outputs moved, relative to their largest entry, and the precision in which the model was run."""

    size: float
    precision: torch.dtype


def check(
    spec: PermutationSpec,
    model: nn.Module | Function,
    example_inputs: Any,
    *,
    forward: Forward | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> None:
    """Apply members of the symmetry group that reveal a wrong one and demand the same function, in float64.

    The parameters are replaced by random ones (a fresh model's zeros and ones would hide a wrong group), the running
    variances by positive ones, masks and other whole numbers by others of their range, and the inputs by random ones of
    their shape (whole numbers: within their range). The model, its mode, its device and the random state stay.

    A group that is wrong is missed only

    - where the outputs do not depend on it for these inputs: experts that are not chosen, rows of a table beyond the
      longest sequence, all units behind a flat piece of an activation (groups of fewer than 12 units are drawn several
      times, so that this has a chance of one in 10^5);
    - where three parts or more are wrong together, and only an even number of them may move at once: of any two parts
      one moves without the other, and every part on its own allows all orders or is found (see
      :func:`fedrebasin.tracing.proof.members.revealing_members`);
    - where it changes no output by more than the tolerance, in units of the output's largest entry.

    Args:
        spec: the spec to check.
        model: the model that it speaks of; or any function of a state dict, which has its inputs from elsewhere: arrays
            in, arrays out, of NumPy, JAX, TensorFlow or torch. It is called with float64 arrays by name (of torch where
            the example's are), and what it computes in less is checked in what it computes in.
        example_inputs: a tensor, a tuple of tensors, or a dict of keyword tensors; of a function, a state dict.
        forward: what of a model is run, as for :func:`fedrebasin.tracing.trace`.
        seed: of the parameters, the inputs and the members.
        tolerance: largest change of an output, relative to the largest entry of that output. A network that blows
            rounding errors up is allowed what these do to it (see :func:`holds`).

    Raises:
        SpecError: if an output changes by more than the tolerance, or the model cannot be run.
    """
    runs = _runs(model, example_inputs, forward)
    change = _largest_change(spec, runs, seed)
    if not _small(change, tolerance, runs, seed):
        raise SpecError(
            f"the spec changes the function: outputs move by {change.size:.1e} of their size under a random member"
            f" (allowed: {tolerance:.1e}); trace the model again, or freeze the groups that are wrong"
        )


def holds(spec: PermutationSpec, usage: Usage, *, seed: int, training: bool) -> bool:
    """Whether the members leave the outputs as they are, up to 1e-9 or to what rounding errors do.

    Some networks (products of their own activations, layer after layer) blow a rounding error up beyond any fixed
    tolerance. How far is measured: the parameters are moved by rounding errors, and the change of the outputs under a
    member may be up to a hundred times as large; but never 1e-4, which is what a wrong group does. A model that cannot
    be run in float64 is checked in its own precision in the same way, with 1e-3 (0.03 in half precision) for 1e-4.
    """
    return small_change(spec, ModelRuns(usage, training), seed)


def small_change(spec: PermutationSpec, runs: Runs, seed: int) -> bool:
    """As :func:`holds`, of whatever runs."""
    return _small(_largest_change(spec, runs, seed), TOLERANCE, runs, seed)


def _runs(model: nn.Module | Function, example_inputs: Any, forward: Forward | None) -> Runs:
    if isinstance(model, nn.Module):
        return ModelRuns(usage_of(model, example_inputs, forward))
    if forward is not None:
        raise SpecError("forward= is for modules: a function of a state dict is run as it is")
    return FunctionRuns(model, example_inputs)


def _small(change: Changed, tolerance: float, runs: Runs, seed: int) -> bool:
    if change.size <= tolerance or not change.size <= never_rounding(change.precision):
        return change.size <= tolerance
    return change.size <= _ROUNDINGS * _change_by_rounding(runs, seed, change.precision).size


def _change_by_rounding(runs: Runs, seed: int, precision: torch.dtype) -> Changed:
    """The change when every parameter moves by a rounding error of the precision that the outputs have."""
    generator = torch.Generator().manual_seed(seed)

    def round_off(state: dict[str, Tensor]) -> None:
        for tensor in state.values():
            if has_mean(tensor):
                signs = torch.randn(tensor.shape, generator=generator).sign().to(tensor)
                eps = max(torch.finfo(tensor.dtype).eps, torch.finfo(precision).eps)
                tensor.mul_(signs.mul_(eps).add_(1))

    return _worst(runs, seed, [round_off])


def largest_change(
    spec: PermutationSpec, model: nn.Module, example_inputs: Any, *, seed: int, training: bool = False
) -> Changed:
    """The largest change of an output under the members of a check, relative to the output's largest entry.

    Args:
        spec: the spec to check.
        model: the model that it speaks of.
        example_inputs: a tensor, a tuple of tensors, or a dict of keyword tensors.
        seed: of the parameters, the inputs and the members.
        training: whether the model is run in train mode, without dropout; otherwise in evaluation mode.

    Raises:
        SpecError: if the spec does not fit, or the model cannot be run.
    """
    return _largest_change(spec, ModelRuns(usage_of(model, example_inputs), training), seed)


def _largest_change(spec: PermutationSpec, runs: Runs, seed: int) -> Changed:
    bound = spec.bind(runs.tensors)
    sizes = [group.size for group in bound.groups.values() if not group.frozen and group.size and group.size > 1]
    rounds = math.ceil(UNITS_SEEN / min(sizes, default=UNITS_SEEN))
    found = [_round(bound, runs, seed, number) for number in range(rounds)]
    return max(found, key=lambda change: change.size)


def _round(spec: PermutationSpec, runs: Runs, seed: int, number: int) -> Changed:
    """One draw of parameters and inputs; after the first one, only small groups move.

    All units of a group may be behind a flat piece of an activation at once, so that nothing depends on them. That is
    the less likely the more there are, and what small groups lack in number they get in draws.
    """
    seen = [name for name, group in spec.groups.items() if number * (group.size or 1) >= UNITS_SEEN]
    members = revealing_members(spec.freeze(seen), torch.Generator().manual_seed(seed))
    # A member of what the last one made is a member too: no copy of the first state is kept.
    changes = (member.apply_in_place for member in members)
    return _worst(runs, seed + _NEXT_SEED * number, changes)


def _worst(runs: Runs, seed: int, changes: Iterable[Change]) -> Changed:
    """The largest change of an output of the randomised model, relative to the output's largest entry.

    Args:
        runs: whose outputs are compared.
        seed: of the parameters and the inputs.
        changes: done one after the other to the state, in place; the outputs are looked at after each.
    """
    with runs.started(seed) as (trial, state, reference):
        worst = 0.0
        for change in changes:
            change(state)
            for before, after in zip(reference, trial.outputs(state), strict=True):
                worst = max(worst, relative_change(before, after))
    return Changed(worst, trial.precision)


def relative_change(before: Tensor, after: Tensor) -> float:
    """The change of the finite entries; infinite if entries become finite or cease to be, or the shape changes."""
    if before.shape != after.shape:
        return math.inf
    finite = torch.isfinite(before)
    if not torch.equal(finite, torch.isfinite(after)):
        return math.inf
    if not bool(finite.all()):
        before, after = before[finite], after[finite]
    if not before.numel():
        return 0.0
    size = float(before.abs().max())
    change = float((before - after).abs().max())
    return change / size if size else change
