"""Experiments of Git Re-Basin on merging: split data, many models at once, and what it does to calibration."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from torch import nn

from fedrebasin.calibration import fit_temperature
from fedrebasin.matching import WeightMatching
from fedrebasin.merging import AlignTo, MergeMany, average
from fedrebasin.state import State
from fedrebasin.sums import ensemble_logits, logits_of

from .lab import Batches, Lab
from .pairs import Bench, members
from .recipe import PAPER_MLP, Recipe
from .registry import Setting, experiment
from .reliability import Predictions, calibration_error, reliability_chart
from .result import Chart, Line, Result, below, figures

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
    losses: dict[str, list[float]] = defaultdict(list)
    predictions: dict[str, list[Predictions]] = defaultdict(list)
    for seed in setting.seeds:
        nets = Bench(lab, setting.of(seed=seed))
        a, b, everything = (
            lab.trained(replace(setting.of(seed=seed, number=number), part=part))
            for number, part in enumerate(("first", "second", setting.recipe.part))
        )
        aligned = WeightMatching()(nets.spec, reference=a, candidate=b).apply(b)
        groups: dict[str, Sequence[State]] = {
            "first half's model": [a],
            "second half's model": [b],
            "naive average": [average([a, b])],
            "matched average": [average([a, aligned])],
            "trained on all data": [everything],
            "ensemble": [a, b],
        }
        for name, states in groups.items():
            beta = fit_temperature(*ensemble(nets.model, states, nets.held_out)).beta
            found = ensemble(nets.model, states, nets.test)
            losses[name].append(nll(found, beta))
            predictions[name].append(found)
    plain = {name: [nll(found) for found in seeds] for name, seeds in predictions.items()}
    right = {
        name: [100 * float((logits.argmax(1) == labels).double().mean()) for logits, labels in seeds]
        for name, seeds in predictions.items()
    }
    errors = {name: [calibration_error(found) for found in seeds] for name, seeds in predictions.items()}
    merged, best = plain["matched average"], [min(x) for x in zip(*list(plain.values())[:2], strict=True)]
    least = [min(x) for x in zip(*list(errors.values())[:2], strict=True)]
    drawn = {name: predictions[name] for name in ("first half's model", "matched average", "ensemble")}
    return Result(
        figures=(
            *figures("loss, {}", plain, "nats"),
            *figures("calibrated loss, {}", losses, "nats"),
            *figures("accuracy, {}", right, "%"),
            *figures("calibration error, {}", errors, "% points"),
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
        charts=(reliability_chart("reliability", drawn),),
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
    columns: dict[str, list[float]] = defaultdict(list)
    for seed in setting.seeds:
        nets, states = members(lab, setting, seed)
        merged = {
            "MergeMany": MergeMany(seed=seed)(nets.spec, states).merged,
            "all matched to the first": AlignTo(reference=0)(nets.spec, states).merged,
            "naive average": average(states),
        }
        for name, state in merged.items():
            score, beta = nets.score(state), nets.temperature(state)
            columns[f"loss, {name}"].append(score.loss)
            columns[f"calibrated loss, {name}"].append(nets.score(state, beta).loss)
            columns[f"accuracy, {name}"].append(score.accuracy)
            columns[f"beta, {name}"].append(beta)
        plain = [nets.score(state) for state in states]
        calibrated = [nets.score(state, nets.temperature(state)).loss for state in states]
        columns["loss, best member"].append(min(score.loss for score in plain))
        columns["calibrated loss, best member"].append(min(calibrated))
        columns["calibrated loss, worst member"].append(max(calibrated))
        columns["accuracy, best member"].append(max(score.accuracy for score in plain))
    sides = [(columns[f"{kind}loss, MergeMany"], columns[f"{kind}loss, best member"]) for kind in ("", "calibrated ")]
    lines = tuple(
        Line(name.removeprefix("calibrated loss, "), tuple(map(float, setting.seeds)), tuple(values))
        for name, values in columns.items()
        if name.startswith("calibrated") and "naive" not in name
    )
    return Result(
        figures=figures("{}", columns, paper=TABLE_3),
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
        charts=(Chart("five MLPs merged", "seed", "calibrated test loss (nats)", lines),),
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
    predictions: dict[str, list[Predictions]] = defaultdict(list)
    errors: dict[str, list[float]] = defaultdict(list)
    losses: dict[str, list[float]] = defaultdict(list)
    for seed in setting.seeds:
        nets, states = members(lab, setting, seed)
        alone = [logits_of(nets.model, state, nets.test) for state in states]
        groups = {
            "a member": alone[0],
            "MergeMany": logits_of(nets.model, MergeMany(seed=seed)(nets.spec, states).merged, nets.test),
            "naive average": logits_of(nets.model, average(states), nets.test),
            "ensemble": mean_logits(alone),
        }
        for name, found in groups.items():
            predictions[name].append(found)
            errors[name].append(calibration_error(found))
            losses[name].append(nll(found))
        errors["mean member"].append(fmean(map(calibration_error, alone)))
        each = [nll(found) for found in alone]
        losses["mean member"].append(fmean(each))
        losses["best member"].append(min(each))
    drawn = {name: predictions[name] for name in ("a member", "MergeMany", "ensemble")}
    return Result(
        figures=(*figures("calibration error, {}", errors, "% points"), *figures("loss, {}", losses, "nats")),
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
        charts=(reliability_chart(f"reliability, {setting.models} MLPs merged", drawn),),
    )
