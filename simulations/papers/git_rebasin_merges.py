"""Experiments of Git Re-Basin on merging: split data, many models at once, and what it does to calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from torch import nn

from fedrebasin.calibration import fit_temperature
from fedrebasin.matching import WeightMatching
from fedrebasin.merging import AlignTo, MergeMany, average
from fedrebasin.state import State
from fedrebasin.sums import ensemble_logits, evaluate, logits_of

from .lab import Batches, Lab
from .recipe import PAPER_MLP, Recipe
from .registry import Setting, experiment
from .reliability import Predictions, calibration_error, reliability_chart
from .result import Chart, Figure, Line, Result, below

#: Table 3: test loss and accuracy of MergeMany, and of the best of its five members.
TABLE_3 = {
    "loss, MergeMany": "0.0727",
    "accuracy, MergeMany": "0.9831",
    "loss, best member": "0.1108",
    "accuracy, best member": "0.9871",
}


def mean_logits(members: Sequence[Predictions]) -> Predictions:
    """The ensemble of models that saw the same examples: the mean of their logits, and the labels."""
    return ensemble_logits([logits for logits, _ in members]), members[0][1]


def ensemble(model: nn.Module, states: Sequence[State], batches: Batches) -> Predictions:
    """The mean of the models' logits, and the labels."""
    return mean_logits([logits_of(model, state, batches) for state in states])


def nll(predictions: Predictions, beta: float = 1.0) -> float:
    """The mean NLL of ``beta`` times the logits, in nats."""
    logits, labels = predictions
    return float(nn.functional.cross_entropy(beta * logits, labels))


@experiment(
    "grb-split",
    "Git Re-Basin, Figures 5, 10 and 11",
    "Models trained on differently biased halves of the data, merged",
    Setting(recipe=Recipe(epochs=60), widths=(512,), points=11),
    Setting(recipe=Recipe("cifar100", "resnet20", epochs=250, optimizer="sgd", learning_rate=0.1), widths=(32,)),
)
def split(lab: Lab, setting: Setting) -> Result:
    """Loss, accuracy and calibration of both models, of their merges and ensemble, and of training on everything."""
    losses: dict[str, list[float]] = {}
    predictions: dict[str, list[Predictions]] = {}
    for seed in setting.seeds:
        recipe = setting.of(seed=seed)
        a = lab.trained(replace(recipe, part="first"))
        b = lab.trained(replace(setting.of(seed=seed, number=1), part="second"))
        everything = lab.trained(setting.of(seed=seed, number=2))
        model, spec = lab.model(recipe), lab.spec(recipe)
        test, held_out = lab.test(recipe.dataset), lab.held_out(recipe.dataset)
        aligned = WeightMatching()(spec, reference=a, candidate=b).apply(b)
        groups: dict[str, Sequence[State]] = {
            "first half's model": [a],
            "second half's model": [b],
            "naive average": [average([a, b])],
            "matched average": [average([a, aligned])],
            "trained on all data": [everything],
            "ensemble": [a, b],
        }
        for name, states in groups.items():
            beta = fit_temperature(*ensemble(model, states, held_out)).beta
            found = ensemble(model, states, test)
            losses.setdefault(name, []).append(nll(found, beta))
            predictions.setdefault(name, []).append(found)
    plain = {name: [nll(found) for found in seeds] for name, seeds in predictions.items()}
    right = {
        name: [100 * float((logits.argmax(1) == labels).double().mean()) for logits, labels in seeds]
        for name, seeds in predictions.items()
    }
    errors = {name: [calibration_error(found) for found in seeds] for name, seeds in predictions.items()}
    merged, best = plain["matched average"], [min(x) for x in zip(*list(plain.values())[:2], strict=True)]
    least = [min(x) for x in zip(*list(errors.values())[:2], strict=True)]
    return Result(
        figures=(
            *(Figure(f"loss, {name}", tuple(values), "", "nats") for name, values in plain.items()),
            *(Figure(f"calibrated loss, {name}", tuple(values), "", "nats") for name, values in losses.items()),
            *(Figure(f"accuracy, {name}", tuple(values), "", "%") for name, values in right.items()),
            *(Figure(f"calibration error, {name}", tuple(values), "", "% points") for name, values in errors.items()),
        ),
        claims=(
            below("the matched average has a lower loss than the naive one", merged, plain["naive average"], "nats"),
            below("the matched average has a lower loss than both models", merged, best, "nats"),
            below("training on all data gives a lower loss still", plain["trained on all data"], merged, "nats"),
            below("the ensemble is more accurate", right["matched average"], right["ensemble"], "%"),
            below(
                "the matched average is better calibrated than both models",
                errors["matched average"],
                least,
                "% points",
                "with weight decay the models are not over-confident and their average is under-confident; errors",
            ),
        ),
        charts=(
            reliability_chart(
                "reliability",
                {name: predictions[name] for name in ("first half's model", "matched average", "ensemble")},
            ),
        ),
        notes="The halves hold 20 % of one half of the classes and 80 % of the other.",
    )


@experiment(
    "grb-merge-many",
    "Git Re-Basin, Algorithm 3 and Table 3",
    "MergeMany of five MLPs against every one of them",
    Setting(recipe=Recipe(), widths=(512,), models=5),
    Setting(recipe=PAPER_MLP, widths=(512,), models=5),
)
def merge_many(lab: Lab, setting: Setting) -> Result:
    """Calibrated and uncalibrated test loss of the merge and of its members."""
    columns: dict[str, list[float]] = {}
    for seed in setting.seeds:
        recipe = setting.of(seed=seed)
        model, spec = lab.model(recipe), lab.spec(recipe)
        test, held_out = lab.test(recipe.dataset), lab.held_out(recipe.dataset)
        states = [lab.trained(setting.of(seed=seed, number=number)) for number in range(setting.models)]
        merged = {
            "MergeMany": MergeMany(seed=seed)(spec, states).merged,
            "all matched to the first": AlignTo(reference=0)(spec, states).merged,
            "naive average": average(states),
        }
        scores = {}
        for name, state in {**{f"model {k}": s for k, s in enumerate(states)}, **merged}.items():
            beta = fit_temperature(*logits_of(model, state, held_out)).beta
            scores[name] = (evaluate(model, state, test), evaluate(model, state, test, beta), beta)
        members = [scores[f"model {k}"] for k in range(setting.models)]
        for name in merged:
            plain, calibrated, beta = scores[name]
            columns.setdefault(f"loss, {name}", []).append(plain.loss)
            columns.setdefault(f"calibrated loss, {name}", []).append(calibrated.loss)
            columns.setdefault(f"accuracy, {name}", []).append(plain.accuracy)
            columns.setdefault(f"beta, {name}", []).append(beta)
        columns.setdefault("loss, best member", []).append(min(m[0].loss for m in members))
        columns.setdefault("calibrated loss, best member", []).append(min(m[1].loss for m in members))
        columns.setdefault("calibrated loss, worst member", []).append(max(m[1].loss for m in members))
        columns.setdefault("accuracy, best member", []).append(max(m[0].accuracy for m in members))
    sides = [(columns[f"{kind}loss, MergeMany"], columns[f"{kind}loss, best member"]) for kind in ("", "calibrated ")]
    return Result(
        figures=tuple(Figure(name, tuple(values), TABLE_3.get(name, "")) for name, values in columns.items()),
        claims=(
            *(
                below(
                    f"MergeMany of {setting.models} has a lower {kind} test loss than every one of them",
                    merged,
                    best,
                    "nats",
                    "MergeMany fails by "
                    + ", ".join(f"{x - y:+.4f}" for x, y in zip(merged, best, strict=True))
                    + " nats; it and the best member",
                )
                for kind, (merged, best) in zip(("plain", "calibrated"), sides, strict=True)
            ),
            below(
                "MergeMany is more accurate than the naive average",
                columns["accuracy, naive average"],
                columns["accuracy, MergeMany"],
            ),
        ),
        charts=(
            Chart(
                "five MLPs merged",
                "seed",
                "calibrated test loss (nats)",
                tuple(
                    Line(name.removeprefix("calibrated loss, "), tuple(map(float, setting.seeds)), tuple(values))
                    for name, values in columns.items()
                    if name.startswith("calibrated") and "naive" not in name
                ),
            ),
        ),
    )


@experiment(
    "grb-merge-32",
    "Git Re-Basin, Figure 13",
    "MergeMany of 32 MLPs, each trained on a random half of the data, is well calibrated",
    Setting(recipe=Recipe(weight_decay=0.0, part="half"), widths=(256,), models=32),
    Setting(recipe=replace(PAPER_MLP, part="half"), widths=(512,), models=32),
)
def merge_32(lab: Lab, setting: Setting) -> Result:
    """Calibration error and loss of members, merge and ensemble, without a fitted temperature."""
    predictions: dict[str, list[Predictions]] = {}
    errors: dict[str, list[float]] = {}
    losses: dict[str, list[float]] = {}
    for seed in setting.seeds:
        recipe = setting.of(seed=seed)
        model, spec, test = lab.model(recipe), lab.spec(recipe), lab.test(recipe.dataset)
        states = [lab.trained(setting.of(seed=seed, number=number)) for number in range(setting.models)]
        alone = [logits_of(model, state, test) for state in states]
        groups = {
            "a member": alone[0],
            "MergeMany": logits_of(model, MergeMany(seed=seed)(spec, states).merged, test),
            "naive average": logits_of(model, average(states), test),
            "ensemble": mean_logits(alone),
        }
        for name, found in groups.items():
            predictions.setdefault(name, []).append(found)
            errors.setdefault(name, []).append(calibration_error(found))
            losses.setdefault(name, []).append(nll(found))
        errors.setdefault("mean member", []).append(fmean(map(calibration_error, alone)))
        each = [nll(found) for found in alone]
        losses.setdefault("mean member", []).append(fmean(each))
        losses.setdefault("best member", []).append(min(each))
    return Result(
        figures=(
            *(Figure(f"calibration error, {name}", tuple(values), "", "% points") for name, values in errors.items()),
            *(Figure(f"loss, {name}", tuple(values), "", "nats") for name, values in losses.items()),
        ),
        claims=(
            below(
                "the merge is better calibrated than its members are on average",
                errors["MergeMany"],
                errors["mean member"],
                "% points",
                "members that are hardly over-confident gain nothing from a merge that is under-confident; errors",
            ),
            below(
                "and about as well as the ensemble (2 % points of slack)",
                errors["MergeMany"],
                [error + 2 for error in errors["ensemble"]],
                "% points",
            ),
            below("its loss is lower than every member's", losses["MergeMany"], losses["best member"], "nats"),
        ),
        charts=(
            reliability_chart(
                f"reliability, {setting.models} MLPs merged",
                {name: predictions[name] for name in ("a member", "MergeMany", "ensemble")},
            ),
        ),
    )
