"""Write the section "Experiments" of RESULTS.md from what ``fedrebasin reproduce`` wrote.

Run: ``fedrebasin reproduce NAME --out FOLDER`` for the experiments of interest, then
``python benchmarks/experiments.py FOLDER [FOLDER ...]``. ``--run FOLDER`` runs those that it does not have yet. The
section replaces the one that is there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from support.section import stamp, write_section

from fedrebasin.simulations import EXPERIMENTS, reproduce

HEADING = "## Experiments"
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
                f"{data}, {len(record['setting']['seeds'])} seeds" if first else "",
                claim["text"],
                claim["verdict"] + (f": {claim['why']}" if claim["verdict"] != "holds" and claim["why"] else ""),
                f"{record['cpu_seconds']:.0f}" if first else "",
                record["device"] if first else "",
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("out")], help="with NAME.json")
    parser.add_argument("--run", type=Path, help="first run the experiments that this folder has no NAME.json of")
    arguments = parser.parse_args()
    folders = [arguments.run] if arguments.run else arguments.folders
    for name in EXPERIMENTS if arguments.run else ():
        if not (arguments.run / f"{name}.json").exists():
            reproduce(name, arguments.run).write(arguments.run)
            print(name, flush=True)
    write_section(HEADING, section(folders))


if __name__ == "__main__":
    main()
