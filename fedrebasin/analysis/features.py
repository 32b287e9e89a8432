"""What the layers of a model compute on a batch: recorded with hooks that are gone afterwards, whatever happens.

A *layer* is a module that owns a tensor of at least two dimensions and holds no such module in turn (Linear,
convolution, attention; not a transformer that owns position embeddings, which runs until all its layers have run).
Layers are named as in ``model.named_modules()`` and come in the order in which they run; one that runs n times is
recorded n times, as ``NAME``, ``NAME#2``, ... The features *after* layer l are what the next layer reads (after
activation, norm and pooling), those *before* are its own output; for the last layer both are the model's output. The
first dimension of what a layer reads counts the examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, forward
from fedrebasin.spec import PermutationSpec
from fedrebasin.state import State, demand_numbers

Where = Literal["after", "before"]
PARAMETRIZED = "parametrizations"  # where torch.nn.utils.parametrize keeps what a weight is computed from

ACTIVATIONS = frozenset(
    {
        *(torch.relu, torch.relu_, functional.relu, functional.relu_, Tensor.relu, Tensor.relu_),
        *(functional.gelu, functional.silu, functional.mish, functional.softplus, functional.relu6),
        *(functional.elu, functional.elu_, functional.leaky_relu, functional.leaky_relu_),
        *(functional.selu, functional.selu_, torch.selu, torch.selu_, functional.celu, functional.celu_, torch.celu),
        *(functional.hardswish, functional.hardsigmoid, functional.hardtanh, functional.hardtanh_),
        *(functional.logsigmoid, functional.softsign, functional.threshold),
        *(torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_),
        *(torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_),
    }
)
_CONVOLUTIONS = frozenset(
    {
        *(torch.conv1d, torch.conv2d, torch.conv3d),
        *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
    }
)
_PRODUCTS = frozenset(
    {
        *(functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.addmm, torch.einsum),
        *(functional.multi_head_attention_forward, functional.scaled_dot_product_attention),
    }
)


class Recorded(NamedTuple):
    """One run of one layer: its first input and its (first) output."""

    inputs: Tensor
    outputs: Tensor


def layers_of(model: nn.Module, spec: PermutationSpec | None = None) -> tuple[str, ...]:
    """The names of the model's layers, as registered.

    Args:
        model: any module.
        spec: only layers with a weight that some group of the spec moves.

    Raises:
        CalibrationError: if there is none.
    """
    moved = None if spec is None else {axis.key for group in spec.groups.values() for axis in group.axes}
    owners = {}
    for name, module in model.named_modules():
        parameters = dict(_own_parameters(name, module))
        demand_numbers({key: tensor for key, tensor in parameters.items() if not tensor.is_meta}, CalibrationError)
        keys = [key for key, tensor in parameters.items() if tensor.dim() >= 2]
        if keys and PARAMETRIZED not in name.split("."):
            owners[name] = keys
    found = []
    for name, keys in owners.items():
        within = name and f"{name}."
        holds = any(other != name and other.startswith(within) for other in owners)
        # Attention reads the weights of the Linear that it holds, and never calls it.
        whole = not holds or isinstance(model.get_submodule(name), nn.MultiheadAttention)
        if whole and (moved is None or moved.intersection(keys)):
            found.append(name)
    if not found:
        raise CalibrationError(f"{type(model).__name__} has no module with a weight of two dimensions or more")
    return tuple(found)


def _own_parameters(name: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's parameters, and those that its weight is computed from (weight norm)."""
    yield from module.named_parameters(name, recurse=False)
    if is_parametrized(module):
        inner = f"{name}.{PARAMETRIZED}" if name else PARAMETRIZED
        yield from module.get_submodule(PARAMETRIZED).named_parameters(inner)


def module_named(model: nn.Module, layer: str) -> nn.Module:
    """The module that a layer's name (``NAME`` or ``NAME#2``) speaks of.

    Raises:
        CalibrationError: if the model has no such module.
    """
    name = layer.partition("#")[0]
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name not in modules:
        raise CalibrationError(f"{type(model).__name__} has no module {name!r}")
    return modules[name]


@contextmanager
def watching(model: nn.Module, layers: Iterable[str], record: dict[str, Recorded]) -> Iterator[None]:
    """Fill ``record``, in order of execution, while the model runs."""

    def take(name: str, inputs: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        read = first_tensor(inputs if inputs else tuple(kwargs.values()))
        made = first_tensor(output)
        if read is None or made is None:
            return
        runs = sum(key.partition("#")[0] == name for key in record)
        record[name if runs == 0 else f"{name}#{runs + 1}"] = Recorded(read.detach().clone(), made.detach().clone())

    handles = [
        module_named(model, name).register_forward_hook(
            lambda _, inputs, kwargs, output, name=name: take(name, inputs, kwargs, output), with_kwargs=True
        )
        for name in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def record_layers(model: nn.Module, state: State, batch: Batch, layers: Iterable[str]) -> dict[str, Recorded]:
    """Inputs and outputs of layers on one batch, in order of execution; the model's mode is taken as it is.

    Args:
        model: the module; neither its parameters nor its hooks change.
        state: its state dict.
        batch: inputs, with or without labels.
        layers: names of modules.

    Raises:
        CalibrationError: if none of the layers ran.
    """
    record: dict[str, Recorded] = {}
    with watching(model, layers, record):
        forward(model, state, batch)
    if not record:
        raise CalibrationError("none of the layers ran: are their modules called, and not only their weights read?")
    return record


def layer_features(record: Mapping[str, Recorded], where: Where = "after") -> dict[str, Tensor]:
    """One matrix ``(examples, features)`` in float64 for each layer of a record.

    Args:
        record: as :func:`record_layers` returns it.
        where: "after": what the next layer reads; "before": the layer's own output.

    Raises:
        CalibrationError: if ``where`` is neither.
    """
    if where not in ("after", "before"):
        raise CalibrationError(f"where={where!r} is neither 'after' nor 'before' the activation")
    names = list(record)
    found = {}
    for position, name in enumerate(names):
        last = position + 1 == len(names)
        tensor = record[name].outputs if last or where == "before" else record[names[position + 1]].inputs
        found[name] = tensor.double().flatten(1)
    return found


class _ActivationRecorder(TorchFunctionMode):
    """Notes the first argument of every activation function, module or not, and which of its dimensions are units."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Activation] = []
        self._channels_first: bool | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in _CONVOLUTIONS or func in _PRODUCTS:
            self._channels_first = func in _CONVOLUTIONS
        elif func in ACTIVATIONS and args:
            wide, rest = args[0].detach().double().clone(), args[1:]
            units = by_unit(wide, self._channels_first)
            self.found.append(Activation(lambda tensor: func(tensor, *rest, **options), wide.flatten(1), units))
        return func(*args, **options)


class Activation(NamedTuple):
    """One run of an activation function.

    Attributes:
        function: the function of one tensor; it may work in place.
        inputs: what it was called with, ``(examples, entries)`` in float64.
        by_unit: the same as ``(examples, units)``, each position of an image or a sequence being an example.
    """

    function: Callable[[Tensor], Tensor]
    inputs: Tensor
    by_unit: Tensor


def record_activations(model: nn.Module, state: State, batch: Batch) -> dict[str, Activation]:
    """The inputs of every activation function on one batch: ``activation1``, ``activation2``, ... as they run.

    Functions are found where they are called, so that ``torch.relu`` counts as ``nn.ReLU`` does.

    Raises:
        CalibrationError: if there is none.
    """
    recorder = _ActivationRecorder()
    with recorder:
        forward(model, state, batch)
    if not recorder.found:
        raise CalibrationError(f"{type(model).__name__} runs no activation function that is known")
    return {f"activation{number}": activation for number, activation in enumerate(recorder.found, 1)}


def by_unit(tensor: Tensor, channels_first: bool | None = None) -> Tensor:
    """Units as columns, examples and positions as rows.

    Args:
        tensor: shape ``(examples, units, ...)`` or ``(examples, ..., units)``.
        channels_first: which of the two, as convolutions have it or as Linear has it; None takes what has four
            dimensions or more for images.
    """
    first = tensor.dim() >= 4 if channels_first is None else channels_first
    rows = tensor.movedim(1, -1) if first else tensor
    return rows.reshape(-1, rows.shape[-1])


def channels_first(model: nn.Module, layer: str) -> bool | None:
    """Whether a layer takes dimension 1 for its units (a convolution) or the last one; None where neither is known."""
    module = module_named(model, layer)
    if isinstance(module, nn.modules.conv._ConvNd):
        return True
    return False if isinstance(module, nn.Linear | nn.MultiheadAttention | nn.RNNBase | nn.Embedding) else None


def first_tensor(value: Any) -> Tensor | None:
    """A tensor, or the first one in a nest of tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for item in value:
            if (found := first_tensor(item)) is not None:
                return found
    return None
