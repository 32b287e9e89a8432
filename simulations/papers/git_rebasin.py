"""Experiments of Git Re-Basin (Ainsworth, Hayase, Srinivasa, ICLR 2023): the path between two models."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch

from fedrebasin.analysis import Barrier, loss_barrier
from fedrebasin.matching import WeightMatching
from fedrebasin.models import make_model
from fedrebasin.spec import PermutationSpec

from .lab import Lab
from .pairs import by_width, pair, trajectories, width_chart, width_figures
from .recipe import NO_DECAY, PAPER_CONV, PAPER_MLP, Recipe
from .registry import Setting, experiment
from .result import Claim, Figure, Result, at, below, chart, falls_at_every_step, figures

#: VGG-16 does not learn from 8x8 images, whose last ten convolutions see a single pixel.
VGG, RESNET = (replace(NO_DECAY, model=name, epochs=20) for name in ("vgg11", "resnet20"))


def _why(setting: Setting, what: str, values: Sequence[float]) -> str:
    said = f"{what}, by seed: " + ", ".join(f"{value:.2f}" for value in values)
    vgg = setting.recipe.model.startswith("vgg") and setting.recipe.dataset in ("digits", "mnist")
    return said + ("; A.1 lists VGGs on MNIST, which digits resemble, as a failure mode" if vgg else "")


@experiment(
    "grb-paths-resnet",
    "Git Re-Basin, Figures 2 and 9 (ResNet-20)",
    "The loss between two ResNet-20, before and after each of three matchers",
    Setting(recipe=RESNET, widths=(2,), points=11),
    Setting(recipe=replace(PAPER_CONV, model="resnet20"), widths=(32,), points=25),
)
@experiment(
    "grb-paths-vgg",
    "Git Re-Basin, Figures 2 and 9 (VGG-16)",
    "The loss between two VGG, before and after each of three matchers",
    Setting(recipe=VGG, widths=(0.25,), points=11),
    Setting(recipe=replace(PAPER_CONV, model="vgg16"), widths=(4,), points=25),
)
@experiment(
    "grb-paths",
    "Git Re-Basin, Figures 2 and 9 (MLP)",
    "The loss between two MLPs, before and after each of three matchers",
    Setting(recipe=NO_DECAY, widths=(256,), points=25),
    Setting(recipe=PAPER_MLP, widths=(512,), points=25),
)
def paths(lab: Lab, setting: Setting) -> Result:
    """The barrier of two models, naive and aligned by each of the three matchers."""
    found: dict[str, list[Barrier]] = defaultdict(list)
    for seed in setting.seeds:
        p = pair(lab, setting, seed)
        found["naive"].append(p.barrier(p.b, setting.points))
        for name, matcher in p.matchers().items():
            aligned = matcher(p.spec, reference=p.a, candidate=p.b).apply(p.b)
            found[name].append(p.barrier(aligned, setting.points))
    values = {name: [barrier.value for barrier in barriers] for name, barriers in found.items()}
    matched = {name: row for name, row in values.items() if name != "naive"}
    zero = {"mlp": "about 0", "resnet20": "about 0 at 32 times the width"}.get(setting.recipe.model, "")
    left, share = ("removes at least nine tenths of", 0.1) if setting.recipe.model == "mlp" else ("lowers", 1.0)
    middle = {name: [100 * b.accuracies[len(b.lams) // 2] for b in barriers] for name, barriers in found.items()}
    own = [100 * fmean((b.accuracies[0], b.accuracies[-1])) for b in found["naive"]]
    above = [row[-1] - min(row) for row in zip(*matched.values(), strict=True)]
    lams = found["naive"][0].lams
    losses = {name: [barrier.losses for barrier in barriers] for name, barriers in found.items()}
    accuracies = {name: [barrier.accuracies for barrier in barriers] for name, barriers in found.items()}
    return Result(
        figures=(
            *figures("barrier, {}", values, "nats", {"naive": "above 0", **dict.fromkeys(matched, zero)}),
            Figure("accuracy of the models", tuple(own), "", "%"),
            *figures("accuracy halfway, {}", middle, "%"),
        ),
        claims=(
            *(
                Claim(
                    f"{name} {left} the barrier",
                    tuple(after < share * before for after, before in zip(row, values["naive"], strict=True)),
                    _why(
                        setting,
                        "share of it that is left",
                        [after / before for after, before in zip(row, values["naive"], strict=True)],
                    ),
                )
                for name, row in matched.items()
            ),
            Claim(
                "the straight-through estimator leaves the lowest barrier (0.02 nats of slack)",
                tuple(row[-1] <= min(row) + 0.02 for row in zip(*matched.values(), strict=True)),
                _why(setting, "above the lowest", above),
            ),
        ),
        charts=(
            chart("loss between two models", "lam", "test loss (nats)", lams, losses),
            chart("accuracy between two models", "lam", "test accuracy", lams, accuracies),
        ),
    )


@experiment(
    "grb-onset",
    "Git Re-Basin, Figure 3",
    "Connectivity after matching sets in during training",
    Setting(recipe=Recipe(weight_decay=0.0, keep=(0, 1, 2, 5, 10, 20, 40)), widths=(256,), points=11),
    Setting(recipe=replace(PAPER_MLP, keep=(0, 1, 2, 5, 10, 25, 50)), widths=(512,), points=25),
)
def onset(lab: Lab, setting: Setting) -> Result:
    """The barrier after matching at every kept epoch, each with a permutation of its own."""
    found, epochs = [], []
    for seed in setting.seeds:
        nets, first, second = trajectories(lab, setting, seed)
        epochs = [epoch for epoch in first if epoch]
        row = []
        for epoch in epochs:
            a, b = first[epoch], second[epoch]
            aligned = WeightMatching()(nets.spec, reference=a, candidate=b).apply(b)
            barrier = loss_barrier(nets.model, a, aligned, nets.test, setting.points)
            row.append(barrier.value / max((barrier.losses[0] + barrier.losses[-1]) / 2, 1e-12))
        found.append(row)
    return Result(
        figures=(
            Figure(f"relative barrier after epoch {epochs[0]}", tuple(at(found, 0)), "above 0", ""),
            Figure("relative barrier at the end", tuple(at(found, -1)), "about 0", ""),
        ),
        claims=(
            below(
                "not connected early: after one epoch the barrier after matching exceeds a tenth of the loss",
                0.1,
                at(found, 0),
            ),
            below(
                "later it is: at its lowest in the second half the barrier after matching is below a tenth of it",
                [min(row[len(row) // 2 :]) for row in found],
                0.1,
            ),
        ),
        charts=(
            chart(
                "onset of connectivity",
                "epoch",
                "barrier after matching / loss",
                epochs,
                {"weight matching at that epoch": found},
                log_x=True,
            ),
        ),
        notes="Barrier over the mean loss of both ends, since losses fall by orders of magnitude during training.",
    )


@experiment(
    "grb-width-resnet",
    "Git Re-Basin, Figure 4 (ResNet-20)",
    "The barrier of two ResNet-20 after matching falls with width",
    Setting(recipe=RESNET, widths=(0.5, 1, 2), points=11),
    Setting(recipe=replace(PAPER_CONV, model="resnet20"), widths=(1, 2, 4, 8, 16, 32), points=25),
)
@experiment(
    "grb-width-vgg",
    "Git Re-Basin, Figure 4 (VGG-16)",
    "The barrier of two VGG after matching falls with width",
    Setting(recipe=VGG, widths=(0.125, 0.25, 0.5), points=11),
    Setting(recipe=replace(PAPER_CONV, model="vgg16"), widths=(0.25, 0.5, 1, 2, 4), points=25),
)
@experiment(
    "grb-width",
    "Git Re-Basin, Figure 4, for MLPs",
    "The barrier after matching falls with width",
    Setting(recipe=NO_DECAY, widths=(16, 32, 64, 128, 256), points=11),
    Setting(recipe=PAPER_MLP, widths=(32, 64, 128, 256, 512, 1024, 2048), points=25),
)
def width(lab: Lab, setting: Setting) -> Result:
    """The barrier of models of rising width, naive and after weight matching."""
    naive, aligned = by_width(
        lab, setting, lambda p: tuple(p.barrier(b, setting.points).value for b in (p.b, p.aligned))
    )
    lines = {"naive": naive, "weight matching": aligned}
    return Result(
        figures=width_figures(setting, "barrier after matching", aligned, "nats"),
        claims=(
            Claim(
                "the widest has a lower barrier after matching than the narrowest, by a factor of 2 or more",
                tuple(row[-1] < 0.5 * row[0] for row in aligned),
                _why(setting, "factor", [row[0] / max(row[-1], 1e-12) for row in aligned]),
            ),
            falls_at_every_step("it falls at every step (0.02 nats of slack)", aligned, 0.02),
        ),
        charts=(width_chart(setting, "barrier and width", "test loss barrier (nats)", lines),),
    )


@experiment(
    "grb-symmetries",
    "Git Re-Basin, Table 1",
    "How many permutations leave a model's function as it is",
    Setting(seeds=(0,)),
    Setting(seeds=(0,)),
)
def symmetries(lab: Lab, setting: Setting) -> Result:
    """log10 of the number of symmetries, counted on the traced spec; no weights are needed for that."""
    from torchvision.models import resnet50, vgg16

    small, large = (2, 3, 32, 32), (2, 3, 224, 224)
    with torch.device("meta"):
        models = {
            "MLP, 3 layers of 512": (make_model("mlp", (1, 28, 28), 10), (2, 1, 28, 28), "3498"),
            "VGG-16": (vgg16(), large, "35160"),
            "ResNet-50": (resnet50(), large, "55109"),
            "ResNet-20": (make_model("resnet20", small[1:], 10), small, ""),
            "ConvNeXt, two stages": (make_model("convnext", small[1:], 10), small, ""),
        }
        found = {
            label: PermutationSpec.trace(model.eval(), torch.empty(shape), check=False).log10_symmetries
            for label, (model, shape, _) in models.items()
        }
    mlp, vgg, resnet = list(found.values())[:3]
    return Result(
        figures=tuple(Figure(f"log10 symmetries, {label}", (found[label],), row[2]) for label, row in models.items()),
        claims=(
            below("an MLP has about 10^3498 (within 3 digits)", [abs(mlp - 3498)], 3),
            below("VGG-16 has about 10^35160 (within 20 digits)", [abs(vgg - 35160)], 20),
            Claim(
                "ResNet-50 has more than VGG-16",
                (resnet > vgg,),
                "a residual stream ties the channels of its blocks, which count once here; counted as free they give "
                "about the paper's number",
            ),
        ),
    )
