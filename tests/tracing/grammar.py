"""Random small nets: programs of a few lines over named values, drawn from a grammar of operators.

A net is its source: ``python -m tests.tracing.grammar SEED`` prints the one of a seed, and what it prints runs.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.tracing.grammar_members import NAMES, Member

LARGEST_VALUE = 48  # entries of a value for each example
LARGEST_HEAD = 24
BATCH = 2


@dataclass(frozen=True)
class Line:
    """``targets = source``, over values, members of the net and torch."""

    targets: tuple[str, ...]
    source: str

    def __str__(self) -> str:
        return f"{', '.join(self.targets)} = {self.source}"

    @property
    def reads(self) -> set[str]:
        """The names of the values that it reads."""
        return set(re.findall(r"(?<![\w.])(?:v\d+|x)\b", self.source))


@dataclass(frozen=True)
class Program:
    """A net by its source.

    Args:
        x: the source of the example input, of a batch of two.
        members: the net's parameters, buffers, constants and modules by name, each by its source.
        lines: of the forward pass; the last one is the output.
    """

    x: str
    members: Mapping[str, str]
    lines: tuple[Line, ...]

    def __str__(self) -> str:
        init = [f"self.{name} = {source}" for name, source in self.members.items()]
        body = [*map(str, self.lines), f"return {self.lines[-1].targets[-1]}"]
        return "\n".join(
            [
                f"x = {self.x}",
                "class Net(nn.Module):",
                "    def __init__(self):",
                *(f"        {line}" for line in init),
                "    def forward(self, x):",
                *(f"        {line}" for line in body),
            ]
        )

    @property
    def example(self) -> Tensor:
        """The example input, in float64 or int64."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            found = eval(self.x, {"torch": torch})
        return found.double() if found.is_floating_point() else found

    def net(self) -> Net:
        """The net, in float64 and evaluation mode, the same for the same program."""
        return Net(self)

    def pruned(self) -> Program:
        """The program without what its output does not read."""
        needed, kept = {self.lines[-1].targets[-1]}, []
        for line in reversed(self.lines):
            if needed & set(line.targets):
                needed |= line.reads
                kept.append(line)
        lines = tuple(reversed(kept))
        return replace(self, lines=lines, members=members_read(self.members, " ".join(line.source for line in lines)))


def members_read(members: Mapping[str, str], source: str) -> dict[str, str]:
    """The members that the source reads, and those that these are made of."""
    found: set[str] = set()
    fresh = set(re.findall(r"self\.(\w+)", source))
    while fresh:
        found |= fresh
        fresh = {name for member in fresh for name in re.findall(r"self\.(\w+)", members[member])} - found
    return {name: source for name, source in members.items() if name in found}


class Net(nn.Module):
    """A program as a module; ``ranges`` has the smallest and largest value of its integer entries by key."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.ranges: dict[str, tuple[int, int]] = {}
        names: dict[str, Any] = {"torch": torch, "F": functional, "nn": nn, "self": self, **NAMES}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for name, source in program.members.items():
                found = eval(source, names)
                if isinstance(found, Member):
                    found.register(self, name)
                else:
                    setattr(self, name, found.double() if isinstance(found, nn.Module) else found)
        self.eval()
        body = "\n".join(f"    {line}" for line in program.lines)
        exec(f"def forward(self, x):\n{body}\n    return {program.lines[-1].targets[-1]}", names)
        self._forward = names["forward"]

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


class Builder:
    """A program that grows line by line, run as it grows so that shapes are known."""

    def __init__(self, seed: int, x: str) -> None:
        self.rng = random.Random(seed)
        self.x, self.members, self.lines = x, {}, []
        self.program = Program(x, {}, ())
        self.values: dict[str, Tensor] = {"x": self.program.example}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value."""
        return tuple(self.values[name].shape)

    def pick(self, *ranks: int, like: str | None = None, last: bool = True) -> str:
        """A value, the newest ones first: of one of these ranks, or of the shape of another one."""
        floats = [name for name, value in self.values.items() if value.is_floating_point()]
        fits = [
            name
            for name in floats
            if (not ranks or self.values[name].dim() in ranks)
            and (like is None or self.shape(name) == self.shape(like))
        ]
        if not fits:
            raise MisfitError
        return fits[-1] if last and self.rng.random() < 0.7 else self.rng.choice(fits)

    def member(self, source: str) -> str:
        """A new member of the net; returns how it is read."""
        name = f"p{len(self.members)}"
        self.members[name] = source
        return f"self.{name}"

    def param(self, *shape: int) -> str:
        """A new parameter of this shape."""
        return self.member(f"param({', '.join(map(str, shape))})")

    def matrix(self, *shape: int) -> str:
        """A new weight of a linear layer, or now and then another layer's."""
        source = f"param({', '.join(map(str, shape))})"
        used = " ".join(line.source for line in self.lines)
        layers = set(re.findall(r"F\.linear\(\w+, self\.(\w+)", used))
        same = [name for name in self.members if self.members[name] == source and name in layers]
        if same and self.rng.random() < 0.3:
            return self.member(f"self.{self.rng.choice(same)}")
        return self.member(source)

    def size(self, *but: int) -> int:
        """The size of a new axis."""
        return self.rng.choice([size for size in (2, 3, 3, 4) if size not in but])

    def dim(self, value: str, *, smallest: int = 2) -> int:
        """A dimension of a value, not the batch's, of at least this size."""
        fits = [dim for dim, size in enumerate(self.shape(value)) if dim and size >= smallest]
        if not fits:
            raise MisfitError
        return self.rng.choice(fits)

    def emit(self, source: str, number: int = 1) -> tuple[str, ...]:
        """A new line.

        Raises:
            MisfitError: if it does not run, gives nothing finite, or too much.
        """
        first = sum(len(line.targets) for line in self.lines)
        line = Line(tuple(f"v{first + at}" for at in range(number)), source)
        program = Program(self.x, self.members, (*self.lines, line))
        net = Net(replace(program, lines=(line,)))
        names: dict[str, Any] = {"torch": torch, "F": functional, "self": net, **NAMES, **self.values}
        try:
            with torch.no_grad():
                found = eval(source, names)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise MisfitError(f"{source}: {error}") from error
        results = [found] if number == 1 else list(found)
        for value in results:
            if value.dim() < 2 or value.shape[0] != BATCH or value.numel() > LARGEST_VALUE * BATCH or not value.numel():
                raise MisfitError(source)
            if not bool(torch.isfinite(value).all()) or value.abs().max() > 1e6:
                raise MisfitError(source)
        self.lines.append(line)
        self.values.update(zip(line.targets, results, strict=True))
        return line.targets


class MisfitError(Exception):
    """What was drawn does not fit the values there are."""


def head(builder: Builder, value: str) -> None:
    """A linear layer over all that a value has."""
    while builder.values[value][0].numel() > LARGEST_HEAD:
        sizes = builder.shape(value)
        if len(sizes) == 2:
            (value,) = builder.emit(f"{value}[:, :{LARGEST_HEAD}]")
        else:
            (value,) = builder.emit(f"{value}.mean({sizes.index(max(sizes[1:]), 1)})")
    size = builder.values[value][0].numel()
    flat = value if len(builder.shape(value)) == 2 else f"{value}.flatten(1)"
    builder.emit(f"F.linear({flat}, {builder.param(2, size)})")


INPUTS = ("torch.randn(2, 3)", "torch.randn(2, 3, 4)", "torch.randn(2, 3, 3)", "torch.randn(2, 2, 3, 3)")


def draw(seed: int, steps: int = 5) -> Program:
    """The net of a seed: a first layer, some operators, a linear head."""
    from tests.tracing import grammar_views  # noqa: F401 (its productions join the others)
    from tests.tracing.grammar_modules import FIRST
    from tests.tracing.grammar_operators import PRODUCTIONS

    rng = random.Random(seed)
    tokens = rng.random() < 0.1
    builder = Builder(seed, "torch.randint(5, (2, 3))" if tokens else rng.choice(INPUTS))
    _attempt(builder, FIRST["tokens" if tokens else "vectors"])
    weights = [production.weight for production in PRODUCTIONS]
    wanted = len(builder.lines) + rng.randint(2, steps)
    while len(builder.lines) < wanted:
        (production,) = rng.choices(PRODUCTIONS, weights)
        _attempt(builder, production.draw)
    head(builder, builder.lines[-1].targets[0])
    members = members_read(builder.members, " ".join(line.source for line in builder.lines))
    return Program(builder.x, members, tuple(builder.lines))


def _attempt(builder: Builder, production: Any, tries: int = 4) -> None:
    for _ in range(tries):
        lines, members, values = list(builder.lines), dict(builder.members), dict(builder.values)
        try:
            production(builder)
            break
        except MisfitError:
            builder.lines, builder.members, builder.values = lines, members, values


if __name__ == "__main__":
    from tests.tracing import grammar

    print(grammar.draw(int(sys.argv[1])))
