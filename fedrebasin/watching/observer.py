"""The one observer of a running model.

The operators are watched, not the modules: a weight is recognised by its memory wherever it is multiplied, so that
``F.linear`` on a bare parameter, a packed query/key/value projection and the output projection of
``nn.MultiheadAttention`` count like any ``nn.Linear``, and a layer that runs twice is reported twice. Modules are
reported by name, for those who ask what a layer as a whole reads and gives.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, forward
from fedrebasin.state import State
from fedrebasin.watching.operators import Weights, tied_parameters
from fedrebasin.watching.products import Product

_aten = torch.ops.aten
_PRODUCTS = frozenset(getattr(_aten, name).default for name in ("addmm", "mm", "bmm", "baddbmm", "linear"))

_ACTIVATIONS = frozenset(
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


class Norm(NamedTuple):
    """One batch normalisation.

    Attributes:
        name: of the module that owns its running mean; None where it keeps none.
        inputs: what it reads, shape ``(batch, channels, *space)``.
    """

    name: str | None
    inputs: Tensor


class Activation(NamedTuple):
    """One run of an activation function.

    Attributes:
        function: the function of one tensor; it may work in place.
        inputs: what it is called with.
        channels_first: whether the product before it was a convolution; None if there was none.
    """

    function: Callable[[Tensor], Tensor]
    inputs: Tensor
    channels_first: bool | None


class LayerRun(NamedTuple):
    """One run of a module.

    Attributes:
        name: of the module, its second run being ``NAME#2``.
        inputs: positional arguments, or the keyword arguments' values where there are none.
        output: all that it gives.
    """

    name: str
    inputs: tuple[Any, ...]
    output: Any


class _Operators(TorchDispatchMode):
    """Reports uses of weights and batch normalisations."""

    weights: Weights | None = None
    channels_first: bool | None = None

    def __init__(
        self,
        product: Callable[[Product], Tensor | None] | None,
        use: Callable[[Product], None] | None,
        norm: Callable[[Norm], None] | None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._product, self._use, self._norm = product, use, norm

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if self.weights is None:
            return output
        if func in _PRODUCTS or func is _aten.convolution.default:
            self.channels_first = func not in _PRODUCTS
        if self._norm is not None and "batch_norm" in func.name():
            self._norm(Norm(self.weights.norm(args[3]), args[0]))
        if not (self._product or self._use) or (product := self.weights.product(func, args, output)) is None:
            return output
        if self._use is not None:
            self._use(product)
        replaced = self._product(product) if self._product and product.is_affine else None
        return output if replaced is None else replaced.reshape(output.shape)


class _Functions(TorchFunctionMode):
    """Reports activation functions where they are called, so that ``torch.relu`` counts as ``nn.ReLU`` does."""

    def __init__(self, activation: Callable[[Activation], None], operators: _Operators) -> None:
        super().__init__()
        self._activation, self._operators = activation, operators

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in _ACTIVATIONS and args:
            first, rest = args[0], args[1:]

            def function(tensor: Tensor) -> Tensor:
                return cast(Tensor, func(tensor, *rest, **options))

            self._activation(Activation(function, first, self._operators.channels_first))
        return func(*args, **options)


@contextmanager
def watching(
    model: nn.Module,
    product: Callable[[Product], Tensor | None] | None = None,
    use: Callable[[Product], None] | None = None,
    norm: Callable[[Norm], None] | None = None,
    activation: Callable[[Activation], None] | None = None,
    layer: Callable[[LayerRun], Any] | None = None,
    layers: Iterable[str] = (),
) -> Iterator[None]:
    """While it lasts, every run of the model is reported as it goes, each event to the function that asked for it.

    Tensors are those of the model, not copies: keep none that an operator may change in place. Not reported are weights
    inside of fused operators (LSTM cells of some backends) and those that are computed first (weight norm).

    Args:
        model: the module, run by any state dict; it has no hook left afterwards, whatever happens.
        product: is told of each product that is affine; a tensor that it returns replaces the output.
        use: is told of every use of a weight in a linear map, affine or not.
        norm: is told of each batch normalisation.
        activation: is told of each call of an activation function, before it.
        layer: is told of each run of the named modules; what it returns, if anything, replaces the output.
        layers: names of modules.

    Raises:
        CalibrationError: if there is no module of a name.
    """
    named = {name: module_named(model, name) for name in dict.fromkeys(run.partition("#")[0] for run in layers)}
    tied = tied_parameters(model)
    operators = _Operators(product, use, norm)
    runs: Counter[str] = Counter()

    def begin(*_: Any) -> None:
        operators.weights, operators.channels_first = Weights(model, tied), None
        runs.clear()

    def end(*_: Any) -> None:
        operators.weights = None

    def ran(name: str, _: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        runs[name] += 1
        run = name if runs[name] == 1 else f"{name}#{runs[name]}"
        return None if layer is None else layer(LayerRun(run, inputs or tuple(kwargs.values()), output))

    with ExitStack() as stack:
        handles = [
            model.register_forward_pre_hook(begin, prepend=True),
            *(module.register_forward_hook(partial(ran, name), with_kwargs=True) for name, module in named.items()),
            model.register_forward_hook(end),
        ]
        for handle in handles:
            stack.callback(handle.remove)
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)  # one fused operator would hide the projections
        if product or use or norm or activation:
            stack.enter_context(operators)
        if activation:
            stack.enter_context(_Functions(activation, operators))
        yield


def watch(
    model: nn.Module,
    state: State,
    batch: Batch,
    product: Callable[[Product], Tensor | None] | None = None,
    use: Callable[[Product], None] | None = None,
    norm: Callable[[Norm], None] | None = None,
    activation: Callable[[Activation], None] | None = None,
) -> Any:
    """Run the model on one batch, in the mode that it is in, and report as :func:`watching` does.

    Returns:
        the model's output.
    """
    with watching(model, product, use, norm, activation):
        return forward(model, state, batch)


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
