"""The attackers' tables: what is lost, how often, and whether our alignment adds a way in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from .attacked import ALIGNMENTS, BEFOREHAND, NONE, SETTINGS, US, Cell
from .federation import robust
from .intervals import mean_interval, wilson

#: By setting, attack and alignment, then by seed.
Cells = dict[tuple[str, str, str], dict[int, Cell]]
MAIN = next(iter(SETTINGS))
ROBUST = [name for name in robust(1) if name != "FedAvg"]
INNER = [*ROBUST, "FedAvg"]
MUCH = 2.0  # points that a run may lose
ALLOWED = 1.0  # points that our alignment may lose on the mean against the oracle's
Runs = dict[int, float]


def accuracies(cells: Cells, setting: str, attack: str, alignment: str, inner: str) -> Runs:
    """By seed, in %; a round that the strategy gave up counts as none."""
    runs = cells.get((setting, attack, alignment), {})
    return {seed: 100 * (cell.accuracy[inner] or 0.0) for seed, cell in runs.items()}


def lost(cells: Cells, setting: str, attack: str, alignment: str, inner: str) -> list[float]:
    """Points lost against the same strategy on the honest ones alone, aligned beforehand: one for each seed."""
    alone = accuracies(cells, setting, NONE, BEFOREHAND, inner)
    runs = accuracies(cells, setting, attack, alignment, inner)
    return [alone[seed] - value for seed, value in runs.items() if seed in alone]


def behind(cells: Cells, setting: str, attack: str, inner: str) -> list[float]:
    """Points by which our alignment is worse than the oracle's, one for each seed."""
    ours = accuracies(cells, setting, attack, US, inner)
    oracles = accuracies(cells, setting, attack, BEFOREHAND, inner)
    return [oracles[seed] - value for seed, value in ours.items() if seed in oracles]


def attacks_of(cells: Cells, setting: str) -> list[str]:
    return list(dict.fromkeys(attack for name, attack, _ in cells if name == setting))


def table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def means(cells: Cells, setting: str) -> list[str]:
    """Mean accuracy: by us / beforehand / not."""

    def cell(attack: str, inner: str) -> str:
        found = [accuracies(cells, setting, attack, alignment, inner) for alignment in ALIGNMENTS]
        return " / ".join(f"{fmean(runs.values()):.1f}" if runs else "-" for runs in found)

    rows = (
        [attack, *aside(cells, setting, attack), *(cell(attack, inner) for inner in INNER)]
        for attack in attacks_of(cells, setting)
    )
    return table(["attack", "caught", "honest lost", *INNER], rows)


def risks(cells: Cells, setting: str) -> list[str]:
    """Share of runs that lose more than two points, with its interval, and the worst run's accuracy."""
    rows = [
        [attack, *aside(cells, setting, attack), *(risk(cells, setting, attack, inner) for inner in INNER)]
        for attack in attacks_of(cells, setting)
    ]
    return table(["attack", "caught", "honest lost", *INNER], rows)


def risk(cells: Cells, setting: str, attack: str, inner: str, alignment: str = US) -> str:
    """Of one strategy."""
    points = lost(cells, setting, attack, alignment, inner)
    if not points:
        return "-"
    many = sum(point > MUCH for point in points)
    low, high = wilson(many, len(points))
    worst = min(accuracies(cells, setting, attack, alignment, inner).values())
    return f"{100 * many / len(points):.0f} ({100 * low:.0f} to {100 * high:.0f}), {worst:.1f}"


def aside(cells: Cells, setting: str, attack: str) -> list[str]:
    """Attackers caught and honest replies lost, on the mean."""
    runs = cells.get((setting, attack, US), {}).values()
    return (
        [f"{fmean(cell.caught for cell in runs):.1f}", f"{fmean(cell.lost for cell in runs):.1f}"]
        if runs
        else ["-"] * 2
    )


def notable(cells: Cells, setting: str) -> list[str]:
    """Where a robust strategy loses more than two points on the mean, or more than one against the oracle."""

    def matters(attack: str) -> bool:
        return any(
            (points := lost(cells, setting, attack, US, inner))
            and (fmean(points) > MUCH or fmean(behind(cells, setting, attack, inner)) > ALLOWED)
            for inner in ROBUST
        )

    def cell(attack: str, inner: str) -> str:
        ours, oracles = (accuracies(cells, setting, attack, each, inner).values() for each in (US, BEFOREHAND))
        return f"{fmean(ours):.1f} / {fmean(oracles):.1f}; {risk(cells, setting, attack, inner)}"

    attacks = attacks_of(cells, setting)
    told = [attack for attack in attacks if attack == NONE or matters(attack)]
    rows = [[attack, *aside(cells, setting, attack), *(cell(attack, inner) for inner in INNER)] for attack in told]
    rest = [attack for attack in attacks if attack not in told]
    return [*table(["attack", "caught", "honest lost", *INNER], rows), "", f"The others: {'; '.join(rest) or 'none'}."]


def extremes(cells: Cells) -> list[str]:
    """For each strategy the attack that costs most on the mean, by us and beforehand, and the worst run."""

    def costliest(setting: str, inner: str, alignment: str) -> str:
        points = {attack: lost(cells, setting, attack, alignment, inner) for attack in attacks_of(cells, setting)}
        means = {attack: fmean(values) for attack, values in points.items() if values and attack != NONE}
        if not means:
            return "-"
        attack = max(means, key=lambda each: means[each])
        low, high = mean_interval(points[attack])
        return f"{means[attack]:.1f} ({low:.1f} to {high:.1f}): {attack}"

    def worst(setting: str, inner: str) -> str:
        runs = {
            (value, attack)
            for attack in attacks_of(cells, setting)
            for value in accuracies(cells, setting, attack, US, inner).values()
        }
        return "{:.1f}: {}".format(*min(runs)) if runs else "-"

    settings = dict.fromkeys(name for name, _, alignment in cells if alignment == US)
    rows = [
        [setting, inner, costliest(setting, inner, US), worst(setting, inner), costliest(setting, inner, BEFOREHAND)]
        for setting in settings
        for inner in INNER
    ]
    return table(["setting", "strategy", "most points lost on the mean", "worst run", "aligned beforehand"], rows)


def triggers(cells: Cells, setting: str) -> list[str]:
    """How often the trigger had its way, on the mean: by us / beforehand / not."""

    def cell(attack: str, inner: str) -> str:
        found = [
            [100 * (cell.triggered[inner] or 0.0) for cell in cells.get((setting, attack, alignment), {}).values()]
            for alignment in ALIGNMENTS
        ]
        return " / ".join(f"{fmean(values):.0f}" if values else "-" for values in found)

    attacks = [attack for attack in attacks_of(cells, setting) if "backdoor" in attack]
    return table(
        ["trigger success", *INNER], ([attack, *(cell(attack, inner) for inner in INNER)] for attack in attacks)
    )


def verdicts(cells: Cells) -> list[str]:
    """For each attack and setting the inner strategy in which our alignment is farthest behind the oracle's."""
    settings = list(dict.fromkeys(name for name, *_ in cells))
    attacks = list(dict.fromkeys(attack for _, attack, _ in cells))
    held = dict.fromkeys(settings, 0)

    def cell(attack: str, setting: str) -> str:
        found = [(fmean(points), inner, points) for inner in INNER if (points := behind(cells, setting, attack, inner))]
        if not found:
            return "-"
        most, inner, points = max(found)
        if most <= ALLOWED:
            held[setting] += 1
            return f"yes: {most:+.1f} {inner}"
        low, high = mean_interval(points)
        return f"**no: {most:+.1f}** ({low:+.1f} to {high:+.1f}) {inner}"

    lines = table(
        ["attack", *settings], [[attack, *(cell(attack, setting) for setting in settings)] for attack in attacks]
    )
    counts = "; ".join(f"{setting}: {held[setting]} of {len(attacks_of(cells, setting))}" for setting in settings)
    return [*lines, "", f"Held for attacks ({NONE} counted as one): {counts}."]


INTRODUCTION = """\
`python benchmarks/attackers.py --rows DIR --write` writes this section. Digits; every client has its own initialisation
and trains on 500 examples, MLPs of two layers of 64; 449 test examples, so that one is .22 points; accuracy in %. Seeds
10 to 29 at 20 % attackers (3 of 15), 10 to 14 at 10 % (1 of 10) and 30 % (3 of 10), fewer where it says so; attacks and
settings were fixed on seeds 0 to 9. Attackers know every honest model. Adaptive ones also run our rules, on the very
replies of the others, and find by bisection how strong they may be before one of them is set aside. Strategies are told
the true number of attackers, Bulyan as many as it takes (a quarter of the replies). FedAvg is not screened."""
LEGEND = """\
Aligned by us: attackers caught, honest replies lost; then for each strategy the share of runs in % that lose more than
2 points against the same strategy on the honest ones alone, aligned beforehand (Wilson's 95 % interval), and the worst
run's accuracy."""
NOTABLE = """\
Attacks under which, aligned by us, a robust strategy loses more than 2 points on the mean, or more than one against
the alignment beforehand: mean accuracy aligned by us / beforehand; share of runs that lose more than 2 points, worst
run."""
UNEVEN = """\
Mean accuracy, aligned by us / beforehand / not. Clients hold one to three classes and have started apart: one round of
averaging makes little of the honest ones alone (first row; 10 % is chance), so that these numbers tell no attack from
chance, and whom it catches is all that can be said of the screening."""
EXTREMES = """\
Of each strategy the attack that costs most on the mean (with Student's 95 % interval), and the run with the lowest
accuracy of all, aligned by us; and what costs most if the honest ones were aligned beforehand."""
EXPLANATION = """\
A reference that stands out is set aside first, and the rest elects another one and is aligned and judged anew: before
that was done, a head-poisoned copy of the medoid stayed the reference, and Krum took it. What is left comes from those
who search for what passes just below every limit. They gain little, and most under strategies that take one reply or
five (Krum, MultiKrum); FedTrimmedAvg and FedMedian stand: they use all that is left, and no one reply decides. FedAvg
is not screened, only not aligned to a model that stands out; where an attacker passes for a reference, it falls behind
the oracle's order. Bulyan averages three models of the seven that are left of ten, and six where it gets all ten, so
that attackers far away cost it less unscreened. A backdoor near the mean is caught; "no" in its row means
that the oracle's aggregate is *better* with it, as such models are good at the task. With 3 attackers of 10, one run of
five elects an attacker whom no test sees ("layers out of step"). At Dirichlet 0.1 the honest models' own spread hides
one poisoned layer, and the strategies make little of honest models alone (20 to 37 %): nothing is claimed there."""
DEMAND = """\
Demanded: on the mean over seeds, aligned by us is not more than one point worse than aligned beforehand. Of each attack
the inner strategy that is farthest behind, and by how many points; where it is more than one, with Student's 95 %
interval of the paired differences."""


def section(cells: Cells) -> list[str]:
    """The lines of results/attackers.md, of what was measured."""
    lines = [INTRODUCTION]
    for setting in dict.fromkeys(name for name, *_ in cells):
        runs = max(len(runs) for (name, *_), runs in cells.items() if name == setting)
        screened = any(alignment == US for name, _, alignment in cells if name == setting)
        lines += ["", f"### {setting}", ""]
        if SETTINGS[setting].alpha is not None:
            lines += [f"{runs} seeds. {UNEVEN}", "", *means(cells, setting)]
        elif setting == MAIN or not screened:
            lines += [f"{runs} seeds. Mean accuracy, aligned by us / beforehand / not:", "", *means(cells, setting)]
            lines += ["", LEGEND, "", *risks(cells, setting)] if screened else []
        else:
            lines += [f"{runs} seeds. {NOTABLE}", "", *notable(cells, setting)]
        if len(rows := triggers(cells, setting)) > 2:
            lines += ["", *rows]
    lines += ["", "### Worst cases", "", EXTREMES, "", *extremes(cells), "", EXPLANATION]
    return "\n".join([*lines, "", "### Is our alignment a way in?", "", DEMAND, "", *verdicts(cells)]).split("\n")
