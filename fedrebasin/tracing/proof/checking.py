"""Checking a spec: members that reveal a wrong group must leave the function of the model as it is."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from fedrebasin.errors import SpecError, one_line
from fedrebasin.spec import PermutationSpec
from fedrebasin.state import has_mean
from fedrebasin.tracing.program import as_call, preserved, tensors_of
from fedrebasin.tracing.proof.members import revealing_members
from fedrebasin.tracing.proof.precision import in_precision, running_in
from fedrebasin.tracing.proof.randomising import randomised, varied

TOLERANCE = 1e-9
# A network that blows rounding errors up may change by some of them, never by as much as a wrong group changes it.
_ROUNDINGS = 100
_NEVER_ROUNDING = {torch.float64: 1e-4, torch.float32: 1e-3}
_NEVER_ROUNDING_IN_HALF = 3e-2
# So many units of each group are drawn: about a third of them are dead behind a ReLU.
_UNITS_SEEN = 12
_NEXT_SEED = 7919

Change = Callable[[dict[str, Tensor]], None]


class Changed(NamedTuple):
    """How far outputs moved, relative to their largest entry, and the precision in which the model was run."""

    size: float
    precision: torch.dtype


def check(
    spec: PermutationSpec, model: nn.Module, example_inputs: Any, *, seed: int = 0, tolerance: float = TOLERANCE
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
        model: the model that it speaks of.
        example_inputs: a tensor, a tuple of tensors, or a dict of keyword tensors.
        seed: of the parameters, the inputs and the members.
        tolerance: largest change of an output, relative to the largest entry of that output. A network that blows
            rounding errors up is allowed what these do to it (see :func:`holds`).

    Raises:
        SpecError: if an output changes by more than the tolerance, or the model cannot be run.
    """
    change = largest_change(spec, model, example_inputs, seed=seed)
    if not _small(change, tolerance, model, example_inputs, seed, training=False):
        raise SpecError(
            f"the spec changes the function: outputs move by {change.size:.1e} of their size under a random member"
            f" (allowed: {tolerance:.1e}); trace the model again, or freeze the groups that are wrong"
        )


def holds(spec: PermutationSpec, model: nn.Module, example_inputs: Any, *, seed: int, training: bool) -> bool:
    """Whether the members leave the outputs as they are, up to 1e-9 or to what rounding errors do.

    Some networks (products of their own activations, layer after layer) blow a rounding error up beyond any fixed
    tolerance. How far is measured: the parameters are moved by rounding errors, and the change of the outputs under a
    member may be up to a hundred times as large; but never 1e-4, which is what a wrong group does. A model that cannot
    be run in float64 is checked in its own precision in the same way, with 1e-3 (0.03 in half precision) for 1e-4.
    """
    change = largest_change(spec, model, example_inputs, seed=seed, training=training)
    return _small(change, TOLERANCE, model, example_inputs, seed, training)


def _small(change: Changed, tolerance: float, model: nn.Module, inputs: Any, seed: int, training: bool) -> bool:
    if change.size <= tolerance or not change.size <= _never_rounding(change.precision):
        return change.size <= tolerance
    return change.size <= _ROUNDINGS * _change_by_rounding(model, inputs, seed, training).size


def _never_rounding(precision: torch.dtype) -> float:
    return _NEVER_ROUNDING.get(precision, _NEVER_ROUNDING_IN_HALF)


def _change_by_rounding(model: nn.Module, inputs: Any, seed: int, training: bool) -> Changed:
    """The change when every parameter moves by a rounding error."""
    generator = torch.Generator().manual_seed(seed)

    def round_off(state: dict[str, Tensor]) -> None:
        for tensor in state.values():
            if has_mean(tensor):
                signs = torch.randn(tensor.shape, generator=generator).sign().to(tensor)
                tensor.mul_(signs.mul_(torch.finfo(tensor.dtype).eps).add_(1))

    return _worst(model, inputs, seed, training, [round_off])


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
    bound = spec.bind(tensors_of(model))
    sizes = [group.size for group in bound.groups.values() if not group.frozen and group.size and group.size > 1]
    rounds = math.ceil(_UNITS_SEEN / min(sizes, default=_UNITS_SEEN))
    found = [_round(bound, model, example_inputs, seed, training, number) for number in range(rounds)]
    return max(found, key=lambda change: change.size)


def _round(spec: PermutationSpec, model: nn.Module, inputs: Any, seed: int, training: bool, number: int) -> Changed:
    """One draw of parameters and inputs; after the first one, only small groups move.

    All units of a group may be behind a flat piece of an activation at once, so that nothing depends on them. That is
    the less likely the more there are, and what small groups lack in number they get in draws.
    """
    seen = [name for name, group in spec.groups.items() if number * (group.size or 1) >= _UNITS_SEEN]
    members = revealing_members(spec.freeze(seen), torch.Generator().manual_seed(seed))
    # A member of what the last one made is a member too: no copy of the first state is kept.
    changes = (member.apply_in_place for member in members)
    return _worst(model, inputs, seed + _NEXT_SEED * number, training, changes)


def _worst(model: nn.Module, inputs: Any, seed: int, training: bool, changes: Iterable[Change]) -> Changed:
    """The largest change of an output of the randomised model, relative to the output's largest entry.

    Args:
        model: whose outputs are compared.
        inputs: a tensor, a tuple of tensors, or a dict of keyword tensors.
        seed: of the parameters and the inputs.
        training: whether the model is run in train mode, without dropout.
        changes: done one after the other to the state, in place; the outputs are looked at after each.
    """
    with preserved(model), torch.no_grad():
        _set_mode(model, training)
        trial, state, reference = _first_that_runs(model, inputs, seed)
        worst = 0.0
        for change in changes:
            change(state)
            for before, after in zip(reference, trial.outputs(state), strict=True):
                worst = max(worst, _relative(before, after))
    return Changed(worst, trial.precision)


@dataclass(frozen=True)
class _Trial:
    """A model with inputs, run in one precision."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    precision: torch.dtype
    seed: int

    def outputs(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """What comes out: reals (complex numbers as pairs); whole numbers where nothing else does."""
        # Tables that a model keeps out of its state dict stay as they are, but for the precision.
        buffers = self.model.named_buffers(remove_duplicate=False)
        tables = {name: in_precision(buffer, self.precision) for name, buffer in buffers if name not in state}
        with preserved(self.model), running_in(self.precision):
            torch.manual_seed(self.seed)
            out = torch.func.functional_call(self.model, {**tables, **state}, self.args, self.kwargs, tie_weights=False)
        found = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
        real = [torch.view_as_real(one) if one.is_complex() else one for one in found if has_mean(one)]
        return [one.double() for one in real or found]


def _first_that_runs(model: nn.Module, inputs: Any, seed: int) -> tuple[_Trial, dict[str, Tensor], list[Tensor]]:
    """The model with random parameters and inputs, as far from what was given as it can still be run.

    Raises:
        SpecError: if it cannot be run at all, or no output is finite.
    """
    own = Counter(tensor.dtype for tensor in tensors_of(model).values() if tensor.is_floating_point())
    precisions = [torch.float64, *(dtype for dtype, _ in own.most_common(1) if dtype != torch.float64)]
    failures: dict[torch.dtype, Exception] = {}
    ran = False
    for precision in precisions:
        for wide, vary in ((True, True), (False, True), (False, False)):
            generator = torch.Generator().manual_seed(seed)
            given = as_call(varied(inputs, generator) if vary else inputs)
            args, kwargs = tree_map(lambda value, dtype=precision: in_precision(value, dtype), given)
            trial = _Trial(model, args, kwargs, precision, seed)
            drawn = randomised(model, generator, wide=wide)
            state = {key: in_precision(tensor, precision) for key, tensor in drawn.items()}
            try:
                reference = trial.outputs(state)
            except Exception as error:  # whatever a model raises on these parameters and inputs
                failures.setdefault(precision, error)
                continue
            ran = True
            if any(bool(torch.isfinite(part).any()) for part in reference):
                if torch.float64 in failures and precision != torch.float64:
                    warnings.warn(
                        f"{type(model).__name__} cannot be run in float64 ({one_line(failures[torch.float64])}): the "
                        f"spec is checked in {precision}, where changes below {_never_rounding(precision):g} may pass",
                        stacklevel=2,
                    )
                return trial, state, reference
    if ran:
        raise SpecError(
            "the model's outputs are not finite (or there are none) for random parameters, so that nothing can be "
            "checked: give other example inputs, or trace with check=False"
        )
    raise SpecError(
        f"{type(model).__name__} cannot be run with random parameters, as specs are checked: "
        f"{one_line(failures[precisions[-1]])}; trace it with check=False, and try the spec on the model yourself"
    ) from failures[precisions[-1]]


def _set_mode(model: nn.Module, training: bool) -> None:
    model.train(training)
    for module in model.modules():
        # Dropout picks units by their place: it is the same function only in distribution.
        if "Drop" in type(module).__name__ or isinstance(module, nn.MultiheadAttention | nn.RNNBase):
            module.training = False


def _relative(before: Tensor, after: Tensor) -> float:
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
