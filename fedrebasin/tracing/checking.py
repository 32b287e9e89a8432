"""Checking a spec: random members must leave the function of the model as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from fedrebasin.errors import SpecError
from fedrebasin.memory import room
from fedrebasin.permutation import Permutation
from fedrebasin.spec import PermutationSpec
from fedrebasin.tracing.inputs import as_call, preserved

POOL = 1_000_003  # prime, so that no two rows of a tensor are filled alike
TOLERANCE = 1e-9
# A network that blows rounding errors up may change by some of them, never by as much as a wrong group changes it.
_ROUNDINGS, _NEVER_ROUNDING = 100, 1e-4

Change = Callable[[dict[str, Tensor], torch.Generator], None]


def check(
    spec: PermutationSpec,
    model: nn.Module,
    example_inputs: Any,
    *,
    members: int = 2,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> None:
    """Apply random members of the symmetry group and demand the same function, in float64.

    The parameters are replaced by random ones (a fresh model's zeros and ones would hide a wrong group), the running
    variances by positive ones. The model, its mode, its device and the random state stay as they are.

    Args:
        spec: the spec to check.
        model: the model that it speaks of.
        example_inputs: a tensor, a tuple of tensors, or a dict of keyword tensors.
        members: how many random members to try.
        seed: of the parameters and the members.
        tolerance: largest change of an output, relative to the largest entry of that output. A network that blows
            rounding errors up is allowed what these do to it (see :func:`holds`).

    Raises:
        SpecError: if an output changes by more than the tolerance.
    """
    change = largest_change(spec, model, example_inputs, members=members, seed=seed)
    if not _small(change, tolerance, model, example_inputs, seed, training=False):
        raise SpecError(
            f"the spec changes the function: outputs move by {change:.1e} of their size under a random member"
            f" (allowed: {tolerance:.1e}); trace the model again, or freeze the groups that are wrong"
        )


def holds(spec: PermutationSpec, model: nn.Module, example_inputs: Any, *, seed: int, training: bool) -> bool:
    """Whether two random members leave the outputs as they are, up to 1e-9 or to what rounding errors do.

    Some networks (products of their own activations, layer after layer) blow a rounding error up beyond any fixed
    tolerance. How far is measured: the parameters are moved by rounding errors, and the change of the outputs under a
    member may be up to a hundred times as large; but never 1e-4, which is what a wrong group does.
    """
    change = largest_change(spec, model, example_inputs, members=2, seed=seed, training=training)
    return _small(change, TOLERANCE, model, example_inputs, seed, training)


def _small(change: float, tolerance: float, model: nn.Module, example_inputs: Any, seed: int, training: bool) -> bool:
    if change <= tolerance or not change <= _NEVER_ROUNDING:
        return change <= tolerance
    return change <= _ROUNDINGS * _change_by_rounding(model, example_inputs, seed, training)


def _change_by_rounding(model: nn.Module, example_inputs: Any, seed: int, training: bool) -> float:
    """The largest relative change of an output when every parameter moves by a rounding error."""

    def round_off(state: dict[str, Tensor], generator: torch.Generator) -> None:
        for tensor in state.values():
            if tensor.is_floating_point():
                signs = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).sign().to(tensor.device)
                tensor.mul_(signs.mul_(torch.finfo(torch.float64).eps).add_(1))

    return _worst(model, example_inputs, seed, training, [round_off])


def largest_change(
    spec: PermutationSpec, model: nn.Module, example_inputs: Any, *, members: int, seed: int, training: bool = False
) -> float:
    """The largest change of an output under random members, relative to the output's largest entry.

    Args:
        spec: the spec to check.
        model: the model that it speaks of.
        example_inputs: a tensor, a tuple of tensors, or a dict of keyword tensors.
        members: how many random members to try.
        seed: of the parameters and the members.
        training: whether the model is run in train mode, without dropout; otherwise in evaluation mode.
    """
    spec = spec.bind(model.state_dict())

    def permute(state: dict[str, Tensor], generator: torch.Generator) -> None:
        # A random member of what the last one made is a random member too: no copy of the first state is kept.
        Permutation.random(spec, generator).apply_in_place(state)

    return _worst(model, example_inputs, seed, training, [permute] * members)


def _worst(model: nn.Module, example_inputs: Any, seed: int, training: bool, changes: Iterable[Change]) -> float:
    """The largest change of an output of the randomised model, relative to the output's largest entry.

    Args:
        model: whose outputs are compared.
        example_inputs: a tensor, a tuple of tensors, or a dict of keyword tensors.
        seed: of the parameters and of what is changed in them.
        training: whether the model is run in train mode, without dropout.
        changes: done one after the other to the state, in place; the outputs are looked at after each.

    Raises:
        SpecError: if no output is finite.
    """
    args, kwargs = tree_map(_doubled, as_call(example_inputs))
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    with preserved(model), torch.no_grad():
        _set_mode(model, training)
        state = randomised(model, generator)
        reference = _outputs(model, state, args, kwargs, seed)
        if any(part.numel() for part in reference) and not any(bool(torch.isfinite(part).any()) for part in reference):
            raise SpecError(
                "the model's outputs are not finite for random parameters, so that nothing can be checked: give other "
                "example inputs, or trace with check=False"
            )
        for change in changes:
            change(state, generator)
            for before, after in zip(reference, _outputs(model, state, args, kwargs, seed), strict=True):
                worst = max(worst, _relative(before, after))
    return worst


def randomised(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """The state dict with random float64 entries of a size that keeps signals alive; integer tensors as they are."""
    pool = torch.randn(POOL, generator=generator, dtype=torch.float64).repeat(2)
    found: dict[str, Tensor] = {}
    tied: dict[int, Tensor] = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in tied:
            found[key] = tied[id(tensor)].clone()
            continue
        if not tensor.is_floating_point():
            found[key] = tensor.detach().clone()
        else:
            first = int(torch.randint(POOL, (), generator=generator))
            drawn = pool[first : first + min(tensor.numel(), POOL)].clone()
            found[key] = _tiled(_scaled(key, tensor.shape, drawn), tensor.shape).to(tensor.device)
        tied[id(tensor)] = found[key]
    return found


def _set_mode(model: nn.Module, training: bool) -> None:
    model.train(training)
    for module in model.modules():
        # Dropout picks units by their place: it is the same function only in distribution.
        if "Drop" in type(module).__name__ or isinstance(module, nn.MultiheadAttention | nn.RNNBase):
            module.training = False


def _scaled(key: str, shape: torch.Size, drawn: Tensor) -> Tensor:
    if "var" in key.rsplit(".", 1)[-1]:
        return drawn.abs_().clamp_(max=2).add_(0.5)
    if len(shape) < 2:
        # Norms' scales near one, of one sign, keep the signal; shifts and biases get the same.
        return drawn.mul_(0.2).add_(0.5)
    return drawn.mul_((2 / max(1, shape[1:].numel())) ** 0.5)


def _tiled(entries: Tensor, shape: torch.Size) -> Tensor:
    """A tensor that repeats the entries until it is full."""
    if entries.numel() == shape.numel():
        return entries.reshape(shape)
    full = room(shape, entries.dtype, entries.device)
    for part in torch.split(full.view(-1), entries.numel()):
        part.copy_(entries[: part.numel()])
    return full


def _outputs(model: nn.Module, state: Mapping[str, Tensor], args: Any, kwargs: Any, seed: int) -> list[Tensor]:
    # Tables that a model keeps out of its state dict stay as they are, but for the precision.
    buffers = model.named_buffers(remove_duplicate=False)
    tables = {name: _doubled(buffer) for name, buffer in buffers if name not in state}
    with preserved(model), _in_float64():
        torch.manual_seed(seed)
        try:
            out = torch.func.functional_call(model, {**tables, **state}, args, kwargs, tie_weights=False)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise SpecError(
                f"{type(model).__name__} cannot be run in float64, where specs are checked: {reason};"
                " trace it with check=False, and try the spec on the model yourself"
            ) from error
    return [one for one in tree_leaves(out) if isinstance(one, Tensor) and one.is_floating_point()]


def _relative(before: Tensor, after: Tensor) -> float:
    """The change of the finite entries; infinite if entries become finite or cease to be."""
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


def _doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach()
        return value.double() if value.is_floating_point() else value
    return value


class _Float64(TorchFunctionMode):
    """Models that ask for single precision inside get double: rounding must not hide behind a cast."""

    _lower = frozenset({torch.float32, torch.float16, torch.bfloat16})
    _casts = (Tensor.float, Tensor.half, Tensor.bfloat16)
    _convolutions = (torch.conv1d, torch.conv2d, torch.conv3d)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._casts:
            return args[0].double()
        if func in self._convolutions:
            # On a CPU, depthwise convolutions in float64 take up to 13 times longer with the channels last.
            args = tuple(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args)
        args = tuple(torch.float64 if isinstance(arg, torch.dtype) and arg in self._lower else arg for arg in args)
        kwargs = {
            name: torch.float64 if isinstance(arg, torch.dtype) and arg in self._lower else arg
            for name, arg in (kwargs or {}).items()
        }
        return func(*args, **kwargs)


@contextmanager
def _in_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64():
            yield
    finally:
        torch.set_default_dtype(before)
