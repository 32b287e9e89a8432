"""Making a program that fails as small as it can be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from tests.tracing.grammar import Line, Program


def reduced(program: Program, fails: Callable[[Program], bool]) -> Program:
    """A program of as few lines as possible that still fails."""
    program = program.pruned()
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(program):
            if _runs(candidate) and fails(candidate):
                program, smaller = candidate, True
                break
    return program


def _smaller(program: Program) -> Iterator[Program]:
    """Programs that end earlier, then those in which one value is replaced by an earlier one of its shape."""
    shapes = _shapes(program)
    names = [name for line in program.lines[:-2] for name in line.targets]
    for name in names:
        at = next(at for at, line in enumerate(program.lines) if name in line.targets)
        yield _ended(program, program.lines[: at + 1], name, shapes[name])
    for at, line in enumerate(program.lines[:-1]):
        for target in line.targets:
            for other in ["x", *(name for before in program.lines[:at] for name in before.targets)]:
                if shapes[other] == shapes[target] and other != target:
                    lines = [
                        replace(after, source=_renamed(after.source, target, other))
                        for after in program.lines[at + 1 :]
                    ]
                    found = replace(program, lines=(*program.lines[: at + 1], *lines)).pruned()
                    if len(found.lines) < len(program.lines):
                        yield found


def _renamed(source: str, old: str, new: str) -> str:
    return re.sub(rf"\b{old}\b", new, source)


def _ended(program: Program, lines: tuple[Line, ...], name: str, shape: tuple[int, ...]) -> Program:
    size = int(torch.Size(shape[1:]).numel())
    members = {**program.members, "head": f"param(2, {size})"}
    flat = name if len(shape) == 2 else f"{name}.flatten(1)"
    return replace(program, members=members, lines=(*lines, Line(("v99",), f"F.linear({flat}, self.head)"))).pruned()


def _shapes(program: Program) -> dict[str, tuple[int, ...]]:
    names = ", ".join(name for line in program.lines for name in line.targets)
    every = replace(program, lines=(*program.lines, Line(("every",), f"({names},)")))
    net = every.net()
    with torch.no_grad():
        values = net(program.example)
    found = {name: tuple(value.shape) for name, value in zip(names.split(", "), values, strict=True)}
    return {"x": tuple(program.example.shape), **found}


def _runs(program: Program) -> bool:
    try:
        with torch.no_grad():
            return bool(torch.isfinite(program.net()(program.example)).all())
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
