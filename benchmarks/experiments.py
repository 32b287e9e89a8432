"""Write results/experiments.md from what ``fedrebasin reproduce`` wrote.

Run: ``fedrebasin reproduce NAME --out FOLDER`` for the experiments of interest, then
``python benchmarks/experiments.py FOLDER [FOLDER ...]``. ``--run FOLDER`` runs those that it does not have yet, with
``--data-dir DIR`` some of them on Fashion-MNIST too, into ``FOLDER/fashion-mnist``. The page that is there is
replaced.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from support.section import stamp, write_section

from fedrebasin.simulations import EXPERIMENTS, reproduce

HEADING = "## Experiments"
#: Those that are run on Fashion-MNIST too.
FASHION = (
    "grb-merge-32",
    "grb-merge-many",
    "grb-split",
    "grb-width",
    "lewc-features",
    "lewc-width",
    "sim-trajectory",
)
INTRODUCTION = """
What `fedrebasin reproduce NAME` finds at small scale, beside what the papers say. `±` is the sample standard deviation
over the seeds. "The paper's" is its number where its text gives one, else empty: the scales differ (the papers train
wider networks for longer on larger data), so that orderings are compared and not values. A claim that does not hold is
shown with what was found instead. Seconds are of CPU, training included; a model that several experiments use counts in
each of them.
"""


def section(folders: list[Path]) -> list[str]:
    records = [json.loads(file.read_text()) for folder in folders for file in sorted(folder.glob("*.json"))]
    lines = [
        INTRODUCTION.strip(),
        "",
        f"Written on {stamp()}",
        "",
        "| experiment | data | claim | verdict | seconds | device |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        data = record["setting"]["recipe"]["dataset"]
        for number, claim in enumerate(record["result"]["claims"]):
            first = number == 0
            cells = [
                f"`{record['name']}` ({record['source']})" if first else "",
                f"{data}, {_counted(len(record['setting']['seeds']), 'seed')}" if first else "",
                claim["text"],
                claim["verdict"] + (f": {claim['why']}" if claim["verdict"] != "holds" and claim["why"] else ""),
                f"{record['cpu_seconds']:.0f}" if first else "",
                record["device"].replace("1 threads", "1 thread") if first else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| experiment | data | quantity | ours | the paper's |", "|---|---|---|---|---|"]
    for record in records:
        data = record["setting"]["recipe"]["dataset"]
        for number, figure in enumerate(record["result"]["figures"]):
            spread = f" ± {figure['deviation']:.2g}" if len(figure["values"]) > 1 else ""
            value = "not finite" if figure["mean"] is None else f"{figure['mean']:.4g}{spread} {figure['unit']}".strip()
            name = f"`{record['name']}`" if number == 0 else ""
            lines.append(f"| {name} | {data if number == 0 else ''} | {figure['what']} | {value} | {figure['paper']} |")
    return lines


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


def run(folder: Path, names: Iterable[str], dataset: str = "", data_dir: str = "") -> None:
    """Run the experiments that a folder has no file of."""
    for name in names:
        if not (folder / f"{name}.json").exists():
            reproduce(name, folder, dataset=dataset, data_dir=data_dir).write(folder)
            print(f"{name} {dataset}".strip(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("out")], help="with NAME.json")
    parser.add_argument("--run", type=Path, help="first run the experiments that this folder has no NAME.json of")
    parser.add_argument("--data-dir", default="", help="where Fashion-MNIST lies: run some experiments on it as well")
    arguments = parser.parse_args()
    folders = arguments.folders
    if arguments.run:
        folders = [arguments.run]
        run(arguments.run, EXPERIMENTS)
        if arguments.data_dir:
            folders.append(arguments.run / "fashion-mnist")
            run(folders[-1], FASHION, "fashion-mnist", arguments.data_dir)
    write_section(HEADING, section(folders))


if __name__ == "__main__":
    main()
