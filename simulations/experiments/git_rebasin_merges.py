"""Experiments of Git Re-Basin on merging: split data, and many models at once."""

from __future__ import annotations

from dataclasses import replace

from torch.nn.functional import cross_entropy

from fedrebasin import (
    AlignTo,
    MergeMany,
    WeightMatching,
    average,
    ensemble_logits,
    evaluate,
    fit_temperature,
    logits_of,
)

from .lab import Lab
from .recipe import Recipe
from .registry import Setting, experiment
from .result import Chart, Claim, Figure, Line, Result

PAPER_MLP = Recipe(dataset="mnist", width=512, epochs=100, weight_decay=0.0)
NO_DECAY = Recipe(weight_decay=0.0)


@experiment(
    "grb-split",
    "Git Re-Basin, Figures 5, 10 and 11",
    "Models trained on differently biased halves of the data, merged",
    Setting(recipe=Recipe(epochs=60), widths=(512,), points=11),
    Setting(recipe=Recipe("cifar100", "resnet20", width=32, epochs=250, optimizer="sgd", learning_rate=0.1)),
)
def split(lab: Lab, setting: Setting) -> Result:
    """Loss of both models, of naive and matched averages, of the logit ensemble, and of training on everything."""
    losses: dict[str, list[float]] = {}
    for seed in setting.seeds:
        recipe = setting.of(seed=seed)
        a = lab.trained(replace(recipe, part="first"))
        b = lab.trained(replace(setting.of(seed=seed, number=1), part="second"))
        everything = lab.trained(setting.of(seed=seed, number=2))
        model, spec = lab.model(recipe), lab.spec(recipe)
        test, held_out = lab.test(recipe.dataset), lab.held_out(recipe.dataset)
        aligned = WeightMatching()(spec, reference=a, candidate=b).apply(b)
        states = {
            "first half's model": a,
            "second half's model": b,
            "naive average": average([a, b]),
            "matched average": average([a, aligned]),
            "trained on all data": everything,
        }
        for name, state in states.items():
            beta = fit_temperature(*logits_of(model, state, held_out)).beta
            losses.setdefault(name, []).append(evaluate(model, state, test, beta).loss)
        members = [logits_of(model, state, test) for state in (a, b)]
        fitted = [logits_of(model, state, held_out) for state in (a, b)]
        beta = fit_temperature(ensemble_logits([logits for logits, _ in fitted]), fitted[0][1]).beta
        logits = ensemble_logits([logits for logits, _ in members])
        losses.setdefault("ensemble", []).append(float(cross_entropy(beta * logits, members[0][1])))
    merged, best = losses["matched average"], [min(x) for x in zip(*list(losses.values())[:2], strict=True)]
    return Result(
        figures=tuple(Figure(f"calibrated loss, {name}", tuple(values), "", "nats") for name, values in losses.items()),
        claims=(
            Claim("the matched average beats the naive one", _less(merged, losses["naive average"])),
            Claim("the matched average beats both models", _less(merged, best)),
            Claim("training on all data is better still", _less(losses["trained on all data"], merged)),
        ),
        notes="The halves hold 20 % of one half of the classes and 80 % of the other.",
    )


@experiment(
    "grb-merge-many",
    "Git Re-Basin, Algorithm 3, Table 3 and Figure 13",
    "MergeMany of five MLPs against every one of them",
    Setting(recipe=Recipe(), widths=(512,), models=5),
    Setting(recipe=PAPER_MLP, widths=(512,), models=32),
)
def merge_many(lab: Lab, setting: Setting) -> Result:
    """Calibrated and uncalibrated test loss of the merge and of its members."""
    columns: dict[str, list[float]] = {}
    better, accuracy = [], []
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
        columns.setdefault("calibrated loss, best member", []).append(min(m[1].loss for m in members))
        columns.setdefault("calibrated loss, worst member", []).append(max(m[1].loss for m in members))
        columns.setdefault("accuracy, best member", []).append(max(m[0].accuracy for m in members))
        better.append(scores["MergeMany"][1].loss < min(m[1].loss for m in members))
        accuracy.append(scores["MergeMany"][0].accuracy > scores["naive average"][0].accuracy)
    pairs = zip(columns["calibrated loss, MergeMany"], columns["calibrated loss, best member"], strict=True)
    gap = [merged - best for merged, best in pairs]
    said = ", ".join(f"{value:+.4f}" for value in gap)
    return Result(
        figures=tuple(Figure(name, tuple(values)) for name, values in columns.items()),
        claims=(
            Claim(
                f"MergeMany of {setting.models} has a lower calibrated test loss than every one of them",
                tuple(better),
                f"MergeMany minus the best member, by seed: {said} nats",
            ),
            Claim("MergeMany is more accurate than the naive average", tuple(accuracy)),
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


def _less(left: list[float], right: list[float]) -> tuple[bool, ...]:
    return tuple(x < y for x, y in zip(left, right, strict=True))
