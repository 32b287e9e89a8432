"""Git Re-Basin's comparison with matching that goes through a network once (A.7.1, Table 2 and Figure 8)."""

from collections import defaultdict
from dataclasses import replace

from fedrebasin.matching import Matcher, WeightMatching

from .git_rebasin import RESNET, VGG
from .lab import Lab, halfway
from .pairs import pair_of
from .recipe import NO_DECAY, PAPER_CONV
from .registry import Setting, experiment
from .result import Figure, Result, below

MATCHERS: dict[str, Matcher] = {
    "greedy": WeightMatching(method="greedy"),
    "one pass of weight matching": WeightMatching(method="coordinate", restarts=1, max_sweeps=1),
    "weight matching": WeightMatching(),
}
#: Table 2: VGG-11 on CIFAR-10, OT-Fusion ("wts") beside weight matching.
TABLE_2 = {"greedy": "85.98 %, 2.86 s (OT-Fusion)", "weight matching": "86.57 %, 0.64 s"}


@experiment(
    "grb-greedy",
    "Git Re-Basin, A.7.1: Table 2 and Figure 8",
    "Weight matching against greedy matching in one pass",
    Setting(
        recipe=NO_DECAY,
        points=5,
        others=(
            ("VGG-11", replace(VGG, width=0.25)),
            ("ResNet-20", replace(RESNET, width=2)),
            ("MLP", replace(NO_DECAY, width=256)),
        ),
    ),
    Setting(
        recipe=PAPER_CONV,
        points=25,
        others=(
            ("VGG-11", replace(PAPER_CONV, model="vgg11", width=1)),
            ("ResNet-20", replace(PAPER_CONV, model="resnet20", width=32)),
        ),
    ),
)
def greedy(lab: Lab, setting: Setting) -> Result:
    """Accuracy and loss of the average of two models, similarity and seconds of matching, for each way to match."""
    rows: list[Figure] = []
    claims = []
    for label, recipe in setting.others:
        accuracy, loss, similarity, seconds = (defaultdict[str, list[float]](list) for _ in range(4))
        for seed in setting.seeds:
            p = pair_of(lab, recipe, seed)
            for name, matcher in MATCHERS.items():
                found = matcher(p.spec, reference=p.a, candidate=p.b)
                score = p.score(halfway(p.a, found.apply(p.b)))
                accuracy[name].append(100 * score.accuracy)
                loss[name].append(score.loss)
                similarity[name].append(found.similarity)
                seconds[name].append(found.history.seconds)
        for name in MATCHERS:
            paper = TABLE_2.get(name, "") if label == "VGG-11" else ""
            rows += [
                Figure(f"{label}, {name}: accuracy halfway", tuple(accuracy[name]), paper, "%"),
                Figure(f"{label}, {name}: loss halfway", tuple(loss[name]), "", "nats"),
                Figure(f"{label}, {name}: similarity", tuple(similarity[name])),
                Figure(f"{label}, {name}: matching", tuple(seconds[name]), "", "s"),
            ]
        claims += [
            below(
                f"{label}: weight matching finds a more similar order than greedy matching",
                similarity["greedy"],
                similarity["weight matching"],
            ),
            below(
                f"{label}: its average is at least as accurate (0.5 points of slack)",
                [value - 0.5 for value in accuracy["greedy"]],
                accuracy["weight matching"],
                "%",
                "greedy less 0.5, and weight matching",
            ),
        ]
    return Result(
        figures=tuple(rows),
        claims=tuple(claims),
        notes="Greedy: every layer matched once, from the input on, by what its units read.",
    )
