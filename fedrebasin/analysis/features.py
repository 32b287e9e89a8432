"""What the layers of a model compute on a batch.

A *layer* is a module that owns a tensor of at least two dimensions and holds no such module in turn (Linear,
convolution, attention; not a transformer that owns position embeddings, which runs until all its layers have run).
Layers are named as in ``model.named_modules()`` and come in the order in which they run; one that runs n times is
recorded n times, as ``NAME``, ``NAME#2``, ... The features *after* layer l are what the next layer reads (after
activation, norm and pooling), those *before* are its own output; for the last layer both are the model's output. The
first dimension of what a layer reads counts the examples.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, forward, tensors_in
from fedrebasin.spec import PermutationSpec
from fedrebasin.state import State, demand_numbers
from fedrebasin.watching import Activation, LayerRun, module_named, watch, watching

Found = TypeVar("Found")
Where = Literal["after", "before"]
PARAMETRIZED = "parametrizations"  # where torch.nn.utils.parametrize keeps what a weight is computed from


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

    def take(run: LayerRun) -> None:
        read, made = (next(tensors_in(value), None) for value in (run.inputs, run.output))
        if read is not None and made is not None:
            record[run.name] = Recorded(read.detach().clone(), made.detach().clone())

    with watching(model, layer=take, layers=layers):
        forward(model, state, batch)
    return demand_runs(record)


def demand_runs(record: dict[str, Found]) -> dict[str, Found]:
    """What was recorded of layers by name.

    Raises:
        CalibrationError: if it is nothing.
    """
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


class ActivationInputs(NamedTuple):
    """What one run of an activation function reads.

    Attributes:
        function: the function of one tensor; it may work in place.
        inputs: what it was called with, ``(examples, entries)`` in float64.
        by_unit: the same as ``(examples, units)``, each position of an image or a sequence being an example.
    """

    function: Callable[[Tensor], Tensor]
    inputs: Tensor
    by_unit: Tensor


def record_activations(model: nn.Module, state: State, batch: Batch) -> dict[str, ActivationInputs]:
    """The inputs of every activation function on one batch: ``activation1``, ``activation2``, ... as they run.

    Functions are found where they are called, so that ``torch.relu`` counts as ``nn.ReLU`` does.

    Raises:
        CalibrationError: if there is none.
    """
    found: dict[str, ActivationInputs] = {}

    def take(run: Activation) -> None:
        wide = run.inputs.detach().double().clone()
        units = by_unit(wide, run.channels_first)
        found[f"activation{len(found) + 1}"] = ActivationInputs(run.function, wide.flatten(1), units)

    watch(model, state, batch, activation=take)
    if not found:
        raise CalibrationError(f"{type(model).__name__} runs no activation function that is known")
    return found


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
