"""Where Git Re-Basin says that matching fails: each of the failure modes that its A.1 lists."""

from collections import defaultdict
from dataclasses import replace

from fedrebasin.analysis import loss_barrier

from .lab import Lab
from .pairs import Pair
from .recipe import NO_DECAY, PAPER_MLP, Recipe
from .registry import Setting, experiment
from .result import Claim, Result, figures

TRAINED = "wide and trained"


def _modes(small: bool) -> tuple[tuple[str, Recipe], ...]:
    mlp = replace(NO_DECAY, width=256) if small else PAPER_MLP
    convolutional = replace(mlp, width=0.25, epochs=20) if small else replace(mlp, width=1)
    return (
        ("too narrow", replace(mlp, width=16)),
        ("after one epoch", replace(mlp, keep=(1,))),
        ("VGG-11 on digits", replace(convolutional, model="vgg11"))
        if small
        else ("VGG-16 on MNIST", replace(convolutional, model="vgg16")),
        ("SGD, learning rate too low", replace(mlp, optimizer="sgd", learning_rate=1e-3)),
        ("Adam, learning rate too high", replace(mlp, learning_rate=3e-2)),
        ("ConvNeXt", replace(convolutional, model="convnext")),
    )


@experiment(
    "grb-failures",
    "Git Re-Basin, A.1",
    "Failure modes, each shown to fail",
    Setting(recipe=NO_DECAY, widths=(256,), points=11, others=_modes(small=True)),
    Setting(recipe=PAPER_MLP, widths=(512,), points=25, others=_modes(small=False)),
)
def failures(lab: Lab, setting: Setting) -> Result:
    """The barrier that weight matching leaves in each mode, beside that of wide MLPs that were trained well."""
    rows: dict[str, list[float]] = defaultdict(list)
    naive: dict[str, list[float]] = defaultdict(list)
    for seed in setting.seeds:
        for name, recipe in ((TRAINED, setting.of()), *setting.others):
            epoch = recipe.keep[0] if recipe.keep else recipe.epochs
            a, b = (lab.checkpoints(recipe.member(seed, number))[epoch] for number in (0, 1))
            p = Pair(lab, recipe.member(seed), a, b)
            for found, state in ((rows, p.aligned), (naive, b)):
                found[name].append(loss_barrier(p.model, a, state, p.test, setting.points, "simultaneous").value)
    good = rows[TRAINED]
    paper = {name: "about 0" if name == TRAINED else "above 0" for name in rows}
    return Result(
        figures=(
            *figures("barrier after matching, {}", rows, "nats", paper),
            *figures("naive barrier, {}", naive, "nats"),
        ),
        claims=tuple(
            Claim(
                f"{name}: matching leaves more than twice the barrier of wide trained networks",
                tuple(bad > 2 * max(fine, 0.0) + 0.01 for bad, fine in zip(row, good, strict=True)),
                "barriers left: " + ", ".join(f"{value:.3f}" for value in row),
            )
            for name, row in rows.items()
            if name != TRAINED
        ),
        notes="Barriers of Simultaneous connectivity's Eq. 1: Definition 2.2 also counts how far ends differ.",
    )
