"""What a random net may get from the tracer: a spec that is right before any check and has all there is, or a refusal.

``python -m tests.tracing.fuzz FIRST LAST`` prints what is wrong among these seeds, each reduced to few lines.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrebasin import Permutation, PermutationSpec, RebasinError
from fedrebasin.tracing import trace
from tests.tracing.fuzz_count import compared
from tests.tracing.fuzz_entries import Entries
from tests.tracing.fuzz_reduce import reduced
from tests.tracing.fuzz_search import UndecidedError
from tests.tracing.grammar import Net, Program, draw

TOLERANCE = 1e-9
MEMBERS = 4
LARGEST, LARGEST_ONE_BY_ONE = 160, 60  # entries whose symmetries are counted in a second or so


@dataclass(frozen=True)
class Verdict:
    """What tracing a net came to.

    Args:
        kind: "wrong" (a member changes the function), "foreign" (an error that is none of ours), "too few" (a symmetry
            is missing); or "refused" (with one of our errors), "exact", "frozen" (exact, and nothing can be moved),
            "limited" (all that is missing falls to known limits), "not compared".
        reason: the largest change, the error, or what is missing.
        limits: the known limits that missing symmetries fall to.
        spec: where there is one.
    """

    kind: str
    reason: str = ""
    limits: tuple[str, ...] = ()
    spec: PermutationSpec | None = None


FAILURES = frozenset({"wrong", "foreign", "too few"})


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


def judge(program: Program) -> Verdict:
    """Trace a net unchecked, try the spec, and count what it has against what there is."""
    net = program.net()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spec = trace(net, program.example, check=False)
    except RebasinError as error:
        return Verdict("refused", str(error))
    except Exception as error:
        return Verdict("foreign", f"{type(error).__name__}: {error}")
    change = largest_change(program, spec)
    if not change <= TOLERANCE:
        return Verdict("wrong", f"the function changes by {change:.1e}", spec=spec)
    entries = Entries(net, program.example, net.ranges)
    if entries.number > (LARGEST if entries.runs_in_batches() else LARGEST_ONE_BY_ONE):
        return Verdict("not compared", "too many entries", spec=spec)
    try:
        count = compared(entries, spec)
    except UndecidedError:
        return Verdict("not compared", "the search takes too long", spec=spec)
    if count.missing:
        words = f"10^{count.found:.3f} of 10^{count.true:.3f} symmetries; missing: " + "\n  ".join(("", *count.missing))
        return Verdict("too few", words, count.limits, spec)
    if count.extra:
        return Verdict("not compared", "the search missed symmetries at a tie", spec=spec)
    if count.limits:
        return Verdict("limited", "", count.limits, spec)
    return Verdict("exact" if count.found else "frozen", spec=spec)


def explained(program: Program, verdict: Verdict) -> str:
    """A failure in words, of a program made as small as it fails."""
    if judge(program.pruned()).kind == verdict.kind:
        program = reduced(program, lambda other: judge(other).kind == verdict.kind)
        verdict = judge(program)
    words = [f"{verdict.kind}: {verdict.reason}", str(program)]
    if verdict.spec is not None:
        words.append(str(verdict.spec))
    return "\n".join(words)


def main(first: int, last: int, steps: int = 5) -> None:
    """Print the verdicts on a range of seeds; what is wrong or missing is reduced first."""
    kinds: Counter[str] = Counter()
    limits: Counter[str] = Counter()
    for seed in range(first, last):
        program = draw(seed, steps)
        verdict = judge(program)
        kinds[verdict.kind] += 1
        limits.update(set(verdict.limits))
        if verdict.kind in FAILURES:
            print(f"## seed {seed}: {explained(program, verdict)}\n", flush=True)
    print(dict(kinds))
    print(dict(limits))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
