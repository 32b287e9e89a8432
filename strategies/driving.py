"""The loop of a strategy that has a ``start`` of its own: it is run as it is, and its hooks lead to the wrapper.

Flower's loop asks the strategy that it belongs to for each of its steps. An inner strategy whose class, or which
itself, has another ``start`` runs that one, with a class for the time of the run whose hooks are the wrapper's:
whatever else it reads and sets is its own, ``super()`` finds what it always does, and what the wrapper calls in turn
are its own hooks.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from logging import INFO
from threading import local
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Result, Strategy

from fedrebasin import RebasinError
from fedrebasin.errors import one_line

from .flower import log

#: What a loop asks a strategy for.
HOOKS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate", "summary")

#: The arguments of Flower's ``start``, in their order.
FLOWERS = signature(Strategy.start).parameters
ARGUMENTS = tuple(FLOWERS)[1:]


def has_own_start(strategy: object) -> bool:
    """Whether a strategy runs its rounds itself."""
    of_class = getattr(type(strategy), "start", Strategy.start)
    return of_class is not Strategy.start or "start" in getattr(strategy, "__dict__", ())


def demand_resumable(strategy: object) -> None:
    """Refuse to resume a loop that cannot know of it.

    Raises:
        RebasinError: with what to do.
    """
    if has_own_start(strategy) and not getattr(strategy, "resumable", False):
        name = type(strategy).__name__
        raise RebasinError(
            f"resume=True: {name} has a start of its own, which counts rounds from 1: say resumable = True on {name} "
            "if it may begin with the last model and the rounds that are left, or use resume=False"
        )


class Call:
    """What ``start`` of a strategy is called with: each of Flower's arguments, wherever it was given.

    Args:
        strategy: the inner one, whose ``start`` says what it takes.
        positional: as they were given.
        named: as they were given.

    Raises:
        TypeError: as the strategy's own ``start`` would.
    """

    def __init__(self, strategy: Strategy, positional: Sequence[Any], named: Mapping[str, Any]) -> None:
        start = signature(strategy.start if has_own_start(strategy) else Strategy.start.__get__(strategy))
        start.bind(*positional, **named)
        self.positional, self.named = list(positional), dict(named)
        listed = [one.name for one in start.parameters.values() if one.kind in _LISTED]
        more = any(one.kind is Parameter.VAR_POSITIONAL for one in start.parameters.values())
        self._order = (*listed, *ARGUMENTS[len(listed) :]) if more else tuple(listed)
        self._defaults = {"num_rounds": FLOWERS["num_rounds"].default} | {
            one.name: one.default for one in start.parameters.values() if one.default is not one.empty
        }

    @property
    def arrays(self) -> Any:
        """The model to begin with; None where the strategy has it from elsewhere."""
        given = self.get("initial_arrays")
        return given if isinstance(given, ArrayRecord) else None

    def get(self, name: str) -> Any:
        """The argument as it was given, or its default."""
        place = self._place(name)
        return self.named.get(name, self._defaults.get(name)) if place is None else self.positional[place]

    def put(self, name: str, value: Any) -> None:
        """Change an argument where it was given, or give it."""
        place = self._place(name)
        if place is None:
            self.named[name] = value
        else:
            self.positional[place] = value

    def go_on(self, arrays: ArrayRecord, done: int) -> None:
        """Begin with a model that rounds have been done for, and do those that are left."""
        rounds = self.get("num_rounds")
        if done >= rounds:
            log(INFO, "%d rounds were asked for and %d are done: their model is the result", rounds, done)
        self.put("initial_arrays", arrays)
        self.put("num_rounds", max(rounds - done, 0))

    def _place(self, name: str) -> int | None:
        place = self._order.index(name) if name in self._order else len(self.positional)
        return place if place < len(self.positional) and name not in self.named else None


_LISTED = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def drive(wrapper: Strategy, inner: Strategy, call: Call) -> Result:
    """Run all rounds: Flower's loop, or the inner strategy's own; what it returns.

    Args:
        wrapper: whose hooks are asked.
        inner: the strategy in it.
        call: the arguments.

    Raises:
        RebasinError: if a loop of its own cannot be made to ask the wrapper, or has trained and never did.
    """
    if not has_own_start(inner):
        return Strategy.start(wrapper, *call.positional, **call.named)
    with _asking(wrapper, inner) as asked:
        result = inner.start(*call.positional, **call.named)
    if call.get("num_rounds") and "aggregate_train" not in asked and getattr(result, "arrays", None):
        raise RebasinError(
            f"{type(inner).__name__}.start has trained without {type(wrapper).__name__}: its rounds have to go through "
            "self.configure_train and self.aggregate_train, not through super() or another object"
        )
    return result


@contextmanager
def _asking(wrapper: Strategy, inner: Strategy) -> Iterator[set[str]]:
    """Let the inner strategy's hooks lead to the wrapper; yields the names of those that were called."""
    kind, asked, entered = type(inner), set[str](), local()
    try:
        hooks = {name: _Hook(name, wrapper, asked, entered) for name in HOOKS}
        metaclass: Any = type(kind)
        driven = metaclass(kind.__name__, (kind,), {**hooks, **_alike(kind)})
        _set_class(inner, driven)
    except Exception as error:  # whatever a metaclass or __init_subclass__ says to a class that it did not expect
        raise RebasinError(
            f"{kind.__name__} has a start of its own that cannot be driven ({one_line(error)}): leave start to Flower "
            "and do what it does in the strategy's other methods, evaluate_fn= and log="
        ) from error
    try:
        yield asked
    finally:
        _set_class(inner, kind)


def _alike(kind: type) -> dict[str, Any]:
    """What makes a class look like the one that it is derived from: its layout, its name, its copies."""

    def reduce(inner: object, protocol: Any) -> Any:
        driven = type(inner)
        _set_class(inner, kind)
        try:
            return inner.__reduce_ex__(protocol)
        finally:
            _set_class(inner, driven)

    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return {"__slots__": (), "__reduce_ex__": reduce, "__class__": property(lambda inner: kind), **names}


#: Whatever the class of an object says to it.
_set_class = vars(object)["__class__"].__set__


class _Hook:
    """A hook of the inner strategy: the wrapper's, unless the wrapper itself asks, on the same thread."""

    def __init__(self, name: str, wrapper: Strategy, asked: set[str], entered: local) -> None:
        self._name, self._wrapper, self._asked, self._entered = name, wrapper, asked, entered

    def __set_name__(self, driven: type, name: str) -> None:
        self._driven = driven

    def __get__(self, inner: object, driven: type | None = None) -> Any:
        if inner is None:
            return getattr(self._driven.__base__, self._name)
        if getattr(self._entered, "now", False):
            own = vars(inner).get(self._name)
            return getattr(super(self._driven, inner), self._name) if own is None else own
        return self._ask

    def __set__(self, inner: object, value: Any) -> None:
        vars(inner)[self._name] = value

    def _ask(self, *positional: Any, **named: Any) -> Any:
        self._asked.add(self._name)
        self._entered.now = True
        try:
            return getattr(self._wrapper, self._name)(*positional, **named)
        finally:
            self._entered.now = False
