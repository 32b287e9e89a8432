"""Strategies side by side, over seeds: one round from separate starts, and many rounds from a shared one.

    python benchmarks/comparisons.py --out DIR [--fashion-mnist FOLDER] [--write]

What lies in DIR is not run again; ``--kept`` runs nothing at all. ``--write`` writes the page in
results/.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.section import stamp, write_section

from fedrebasin.simulations import Setting, Study, cells, expand, read_results, run_study, write_results

HEADING = "## Comparisons"
ONE_ROUND = ("fedavg", "wide-avg", "rebasin", "merge-many", "rebasin+head", "rebasin+seqreg+head+temperature")
MANY_ROUNDS = ("fedavg", "rebasin", "merge-many")
LARGEST_LOSS = 0.3  # points of accuracy that alignment may cost where FedAvg is strong

#: Options of the studies by the name of their folder; local training as in the defaults where nothing is said.
STUDIES: Mapping[str, tuple[str, Sequence[str], Mapping[str, Sequence[Any]]]] = {
    "one-round": (
        "One round, every client from its own initialisation",
        ONE_ROUND,
        {"partition": ["iid", "dirichlet"], "width": [64.0, 512.0], "seed": [0, 1, 2]},
    ),
    "many-rounds": (
        "Ten rounds of three epochs from a shared start",
        MANY_ROUNDS,
        {
            "partition": ["iid", "dirichlet", "label-skew"],
            "init": ["shared"],
            "rounds": [10],
            "local_epochs": [3],
            "seed": [0, 1, 2],
        },
    ),
    "many-rounds-fashion": (
        "Five rounds of one epoch from a shared start, Fashion-MNIST",
        MANY_ROUNDS,
        {
            "partition": ["iid", "dirichlet"],
            "init": ["shared"],
            "rounds": [5],
            "local_epochs": [1],
            "batch_size": [128],
            "dataset": ["fashion-mnist"],
            "seed": [0, 1],
        },
    ),
}


def measure(name: str, out: Path, options: Mapping[str, Sequence[Any]], strategies: Sequence[str], jobs: int) -> Study:
    """One study, from the folder as far as it is there."""
    folder = out / name
    known = kept(folder)

    def save(study: Study) -> None:
        write_results(folder, study)
        print(f"{name}: {len(study.comparisons)} comparisons, {study.seconds:.0f} s", flush=True)

    return run_study(expand(options), strategies, jobs=jobs, known=known, finished=save)


def kept(folder: Path) -> Study:
    """What a folder has."""
    return read_results(folder) if (folder / "results.json").exists() else Study(())


def missing(name: str, study: Study) -> str:
    """Which seeds or settings of a study were not run, in words; empty for a complete one."""
    _, _, options = STUDIES[name]
    there = {(one.config.partition, one.config.width, one.config.seed) for one in study.comparisons}
    lacking = [
        f"{config.partition} width {config.width or 512:g} seed {config.seed}"
        for config in expand({key: value for key, value in options.items() if key != "dataset"})
        if (config.partition, config.width, config.seed) not in there
    ]
    return f"Not run: {', '.join(lacking)}." if lacking else ""


def table(setting: Setting, against_fedavg: bool) -> list[str]:
    """Markdown, one line a strategy; where asked for with the distance from FedAvg over the same seeds."""
    extra = " points above FedAvg, by seed |" if against_fedavg else ""
    lines = [f"| strategy | accuracy | loss | calibrated loss | ECE | server seconds |{extra}"]
    lines.append("| --- |" + " ---: |" * (6 if against_fedavg else 5))
    for summary in setting.summaries:
        accuracy, loss, calibrated, _, ece, seconds = cells(summary)
        name = f"**{summary.strategy}**" if summary.best else summary.strategy
        line = f"| {name} | {accuracy} | {loss} | {calibrated} | {ece} | {seconds} |"
        if against_fedavg:
            gaps = [] if summary.is_reference else gaps_to_fedavg(setting, summary.strategy)
            line += f" {', '.join(f'{gap:+.2f}' for gap in gaps)} |"
        lines.append(line)
    return lines


def gaps_to_fedavg(setting: Setting, strategy: str) -> list[float]:
    """By seed, how many points of accuracy a strategy ends above FedAvg."""
    return [
        100 * (one.row(strategy).figures.accuracy - one.row("fedavg").figures.accuracy) for one in setting.comparisons
    ]


def section(studies: Mapping[str, Study]) -> list[str]:
    lines = [
        "`python benchmarks/comparisons.py --out DIR --fashion-mnist FOLDER --write` writes this section anew.",
        stamp(),
        "Server seconds are of the clock: where other work shares the machine they are inflated.",
        "Four clients, `mlp`, accuracy on 80 % of the test set; ± is the sample standard deviation over the seeds.",
    ]
    for name, study in studies.items():
        title, _, _ = STUDIES[name]
        many = name.startswith("many")
        lines += ["", f"### {title}"]
        if lacking := missing(name, study):
            lines += ["", lacking]
        for setting in study.settings:
            config, seeds = setting.config, len(setting.comparisons)
            label = setting.label or f"partition {config.partition}, width {config.width or 512:g}"
            lines += ["", f"{config.dataset}, {label}, {seeds} seeds:", "", *table(setting, many)]
        if many and study.comparisons:
            strategies = [strategy for strategy in MANY_ROUNDS if strategy != "fedavg"]
            gaps = [gap for one in study.settings for strategy in strategies for gap in gaps_to_fedavg(one, strategy)]
            verdict = "holds" if min(gaps) >= -LARGEST_LOSS else "fails"
            equal = sum(gap == 0 for gap in gaps)
            worst = f"worst of {len(gaps)} runs {min(gaps):+.2f}, {equal} exactly equal to FedAvg"
            lines += ["", f"Aligning costs at most {LARGEST_LOSS} points: {verdict} ({worst})."]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--fashion-mnist", default="", help="its folder; without it those rows are left out")
    parser.add_argument("--only", default=",".join(STUDIES), help="studies, with commas")
    parser.add_argument("--kept", action="store_true", help="run nothing: the section of what DIR has")
    parser.add_argument("--jobs", type=int, default=0, help="comparisons at the same time; 0: one a core")
    parser.add_argument("--write", action="store_true", help="write the page in benchmarks/results/")
    arguments = parser.parse_args()
    studies = {}
    for name in arguments.only.split(","):
        _, strategies, options = STUDIES[name]
        if arguments.kept:
            studies[name] = kept(arguments.out / name)
            continue
        if "dataset" in options:
            if not arguments.fashion_mnist:
                continue
            options = {**options, "data_dir": [arguments.fashion_mnist]}
        studies[name] = measure(name, arguments.out, options, strategies, arguments.jobs)
    lines = section(studies)
    print("\n".join(lines))
    if arguments.write:
        write_section(HEADING, lines)


if __name__ == "__main__":
    main()
