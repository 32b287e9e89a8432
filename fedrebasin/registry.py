"""Parts by name: the package's own, those that a script registers, and those that installed packages offer."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from fedrebasin.errors import RebasinError, choose, one_line

if TYPE_CHECKING:
    from torch import nn

    from fedrebasin.matching import Matcher
    from fedrebasin.merging import Aligner
    from fedrebasin.sums import Statistic

T = TypeVar("T")
Part = TypeVar("Part")

NAME = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")


class Registry(MutableMapping[str, T]):
    """A mapping from names to parts, each of which is imported when it is asked for: names alone cost nothing.

    A script registers with :meth:`register`; an installed package offers a part as an entry point of ``group``, which
    reaches other processes too. ``registry[name] = part`` replaces what is there.

    Args:
        what: a part is, for messages.
        group: of the entry points.
        own: the package's parts, or where they lie: ``"package.module:name"``.
    """

    def __init__(self, what: str, group: str, own: Mapping[str, T | str] | None = None) -> None:
        self.what = what
        self.group = group
        self._parts: dict[str, T | str] = dict(own or {})

    @overload
    def register(self, name: str) -> Callable[[Part], Part]: ...
    @overload
    def register(self, name: str, part: Part) -> Part: ...
    def register(self, name: str, part: Any = None) -> Any:
        """Add a part: ``registry.register("name", part)``, or ``@registry.register("name")`` above its definition.

        Returns:
            the part.

        Raises:
            RebasinError: if the name is taken, or is not made of lower-case letters and digits, joined by hyphens.
        """
        if part is None:
            return lambda part: self.register(name, part)
        if name in self._parts:
            raise RebasinError(f"{self.what} {name}: the name is taken")
        if not NAME.fullmatch(name):
            raise RebasinError(f"{self.what} {name!r}: names are lower-case letters and digits, joined by -, _ or .")
        self._parts[name] = part
        return part

    def pick(self, name: str) -> T:
        """The part of this name.

        Raises:
            RebasinError: if there is none, with the closest name; if two packages offer it; if it cannot be imported.
        """
        return self[choose(self.what, name, self)]

    def __getitem__(self, name: str) -> T:
        own = self._parts.get(name)
        if isinstance(own, str):
            own = self._parts[name] = cast(T, resolve_name(own))
        found = [] if own is None else [own]
        points = [point for point in self._offered() if point.name == name]
        found += [self._load(point) for point in points]
        if not found:
            raise KeyError(name)
        if any(part is not found[0] for part in found):
            packages = [point.dist.name if point.dist else point.value for point in points]
            raise RebasinError(f"{self.what} {name}: the name is taken, and {' and '.join(packages)} offers it as well")
        return found[0]

    def __setitem__(self, name: str, part: T) -> None:
        self._parts[name] = part

    def __delitem__(self, name: str) -> None:
        del self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._parts, *(point.name for point in self._offered())]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in list(self)  # without importing it

    def _offered(self) -> tuple[EntryPoint, ...]:
        return _points(self.group, tuple(sys.path))

    def _load(self, point: EntryPoint) -> T:
        try:
            return cast(T, point.load())
        except Exception as error:
            raise RebasinError(
                f"{self.what} {point.name}: its package's entry point {point.value} fails: {one_line(error)}"
            ) from None


@cache
def _points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


def takes(part: Callable[..., Any], name: str) -> bool:
    """Whether a part can be given an argument of this name."""
    parameters = inspect.signature(part).parameters
    return name in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def make(what: str, part: Callable[..., T], supply: Mapping[str, Callable[[], Any]], **given: Any) -> T:
    """Call a part with what it asks for.

    Args:
        what: the part is, for messages.
        part: called with keywords only.
        supply: makes the values of parameters that have no default.
        given: passed on wherever the part can take them.

    Raises:
        RebasinError: if it asks for something else.
    """
    values = {name: value for name, value in given.items() if takes(part, name)}
    for name, parameter in inspect.signature(part).parameters.items():
        if name in values or parameter.default is not parameter.empty or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if name not in supply:
            allowed = ", ".join([*given, *supply])
            raise RebasinError(f"{what} asks for {name}; what a part can ask for: {allowed}")
        values[name] = supply[name]()
    return part(**values)


#: Architectures: ``(sample_shape, classes, width=the paper's) -> model``.
MODELS: Registry[Callable[..., nn.Module]] = Registry(
    "model",
    "fedrebasin.models",
    {
        "mlp": "fedrebasin.models:mlp",
        "vgg11": "fedrebasin.models:vgg11",
        "vgg11-bn": "fedrebasin.models:vgg11_bn",
        "vgg16": "fedrebasin.models:vgg16",
        "vgg16-bn": "fedrebasin.models:vgg16_bn",
        "resnet20": "fedrebasin.models:resnet20",
        "resnet20-bn": "fedrebasin.models:resnet20_bn",
        "convnext": "fedrebasin.models:convnext",
    },
)

#: What makes a matcher, from a ``model`` and ``batches`` of data where it asks for them.
MATCHERS: Registry[Callable[..., Matcher]] = Registry(
    "matcher",
    "fedrebasin.matchers",
    {"activation": "fedrebasin.matching:ActivationMatching", "ste": "fedrebasin.matching:StraightThrough"},
)

#: What makes an aligner, likewise.
ALIGNERS: Registry[Callable[..., Aligner]] = Registry(
    "aligner", "fedrebasin.aligners", {"cycle-consistent": "fedrebasin.merging:CycleConsistent"}
)

#: What clients are willing to sum, by the ``name`` of the statistic. None holds anything of a single example: what each
#: of them gives away is listed in the docs.
STATISTICS: Registry[type[Statistic[Any]]] = Registry(
    "statistic",
    "fedrebasin.statistics",
    {
        "activation_correlation": "fedrebasin.sums:ActivationCorrelation",
        "batch_norm": "fedrebasin.sums:BatchNormMoments",
        "gram": "fedrebasin.sums:GramMatrices",
        "halfway_connectivity": "fedrebasin.analysis:HalfwayConnectivity",
        "head": "fedrebasin.sums:HeadSums",
        "layer_regression": "fedrebasin.sums:LayerRegression",
        "path_evaluation": "fedrebasin.analysis:PathEvaluation",
        "pre_activations": "fedrebasin.sums:PreActivationMoments",
        "temperature": "fedrebasin.sums:TemperatureCurve",
    },
)

#: What may follow a strategy's name, each behind a +; those of the package work with sums that the clients send. Here
#: stand names of parts, not imports: a calibrator and its statistic are made known side by side.
CALIBRATORS: Registry[Callable[..., Any]] = Registry(
    "calibrator",
    "fedrebasin.calibrators",
    {
        "activations": "fedrebasin.strategies:ActivationAlignment",
        "bn": "fedrebasin.strategies:BatchNormRecalibration",
        "repair": "fedrebasin.strategies:Repair",
        "regmean": "fedrebasin.strategies:RegMean",
        "seqreg": "fedrebasin.strategies:SequentialRegression",
        "head": "fedrebasin.strategies:HeadRegression",
        "temperature": "fedrebasin.strategies:TemperatureCalibration",
    },
)
