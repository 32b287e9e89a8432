"""What a fuzzed net may get from the tracer: a spec that is right unchecked, or a refusal; everything else is reduced.

``python -m tests.tracing.fuzz FIRST LAST`` prints what is wrong among these seeds, each reduced to few lines.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedrebasin import Permutation, PermutationSpec, RebasinError, trace
from tests.tracing.grammar import Line, Misfit, Net, Program, members_read

TOLERANCE = 1e-9
MEMBERS = 4


@dataclass(frozen=True)
class Verdict:
    """What tracing a net came to.

    Args:
        kind: "right", "wrong" (a member changes the function), "refused" (with a RebasinError) or "foreign".
        reason: the largest change, or the error.
        spec: where there is one.
    """

    kind: str
    reason: str = ""
    spec: PermutationSpec | None = None


def random_state(net: Net, generator: torch.Generator) -> dict[str, Tensor]:
    """A state dict of the net in which everything is random: floats, masks, and integers in the range they come in."""
    state: dict[str, Tensor] = {}
    drawn: dict[int, Tensor] = {}
    for key, tensor in net.state_dict(keep_vars=True).items():
        if id(tensor) not in drawn:
            drawn[id(tensor)] = _random(net, key, tensor, generator)
        state[key] = drawn[id(tensor)]
    return state


def _random(net: Net, key: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.is_floating_point() or tensor.is_complex():
        found = torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator)
        return found.abs() + 0.1 if key.endswith("var") else found
    if key in net.ranges:
        smallest, largest = net.ranges[key]
        return torch.randint(smallest, largest + 1, tensor.shape, generator=generator).to(tensor.dtype)
    return tensor.detach().clone()


def outputs(net: Net, state: dict[str, Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.func.functional_call(net, state, (x,), tie_weights=False)


def largest_change(program: Program, spec: PermutationSpec, members: int = MEMBERS) -> float:
    """The largest change of an output under random members of a spec, for random states and inputs."""
    net = program.net()
    worst = 0.0
    generator = torch.Generator().manual_seed(2)
    for _ in range(members):
        x = program.example
        if x.is_floating_point():
            x = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        state = random_state(net, generator)
        before = outputs(net, state, x)
        after = outputs(net, Permutation.random(spec, generator).apply(state), x)
        worst = max(worst, _relative(before, after))
    return worst


def _relative(before: Tensor, after: Tensor) -> float:
    finite = torch.isfinite(before) & torch.isfinite(after)
    if not bool(finite.any()):
        return 0.0
    return float((before - after)[finite].abs().max() / before[finite].abs().max().clamp(min=1e-300))


def judge(program: Program, check: bool = False) -> Verdict:
    """Trace a net, unchecked unless told otherwise, and try the spec."""
    net = program.net()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spec = trace(net, program.example, check=check)
    except RebasinError as error:
        return Verdict("refused", str(error))
    except Exception as error:
        return Verdict("foreign", f"trace: {type(error).__name__}: {error}")
    try:
        change = largest_change(program, spec)
    except Exception as error:
        return Verdict("foreign", f"apply: {type(error).__name__}: {error}", spec)
    if not change <= TOLERANCE:
        return Verdict("wrong", f"the function changes by {change:.1e}", spec)
    return Verdict("right", "", spec)


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
                        replace(after, source=_renamed(after.source, target, other)) for after in program.lines[at + 1 :]
                    ]
                    found = replace(program, lines=(*program.lines[: at + 1], *lines)).pruned()
                    if len(found.lines) < len(program.lines):
                        yield found


def _renamed(source: str, old: str, new: str) -> str:
    import re

    return re.sub(rf"\b{old}\b", new, source)


def _ended(program: Program, lines: tuple[Line, ...], name: str, shape: tuple[int, ...]) -> Program:
    size = int(torch.Size(shape[1:]).numel())
    members = {**program.members, "head": f"param(2, {size})"}
    flat = name if len(shape) == 2 else f"{name}.flatten(1)"
    return replace(
        program, members=members, lines=(*lines, Line(("v99",), f"F.linear({flat}, self.head)"))
    ).pruned()


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
    except (RuntimeError, ValueError, TypeError, IndexError, Misfit):
        return False


def main(first: int, last: int, steps: int = 5) -> None:
    from tests.tracing.grammar import draw

    counts: dict[str, int] = {}
    for seed in range(first, last):
        program = draw(seed, steps)
        verdict = judge(program)
        kind = verdict.kind
        if kind == "right" and verdict.spec is not None and not verdict.spec.groups:
            kind = "frozen"
        counts[kind] = counts.get(kind, 0) + 1
        if verdict.kind in ("wrong", "foreign", "refused"):
            small = reduced(program, lambda other, kind=verdict.kind: judge(other).kind == kind)
            again = judge(small)
            print(f"## seed {seed}: {again.kind}: {again.reason[:300]}\n{small}", flush=True)
            if again.spec is not None:
                print("\n".join(f"  {g.name} {again.spec.shape(g.name)} {[str(a) for a in g.axes]}" for g in again.spec.groups.values()), flush=True)
            print(flush=True)
    print(counts)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
