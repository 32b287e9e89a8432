"""What attackers can do to Flower's robust strategies behind an alignment: accuracy on digits, over seeds.

Every client has its own initialisation, so that the reference is a client's model. The same replies are aggregated
aligned by us (``Aligned``, as ``FedRebasin`` does it by default), aligned beforehand (by an oracle: the honest ones
alone choose the order) and not aligned. Settings were fixed on seeds 0 to 9; seeds 10 to 29 are reported.

    python benchmarks/attackers.py [--settings NAME ...] [--attacks NAME ...] [--alignments NAME ...] [--seeds 20]
        [--first 10] [--rows DIR] [--only-kept] [--write]
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from support.attacked import ALIGNMENTS, NONE, SETTINGS, US, Cell, Federation
from support.attacker_tables import Cells, section
from support.attacks import ADAPTIVE, ATTACKS, HIDDEN
from support.federation import State, remembering
from support.section import stamp, write_section

from fedrebasin.writing import json_text, write_text

FIRST = 10  # the settings were fixed on the seeds before


def path_of(folder: Path, *parts: object) -> Path:
    """A cell's file."""
    return folder / ("_".join(re.sub(r"[^\w.]+", "-", str(part)).strip("-") for part in parts) + ".json")


def measured(
    name: str,
    seeds: Iterable[int],
    attacks: Sequence[str],
    alignments: Sequence[str],
    folder: Path | None,
    only_kept: bool = False,
) -> Iterator[tuple[str, str, int, Cell]]:
    """Every cell of a setting, from the folder if it is there; otherwise it is measured and put there."""
    for seed in seeds:
        federation: Federation | None = None
        started = time.process_time()
        with remembering():
            for attack in attacks:
                sent: list[State] | None = None
                for alignment in alignments:
                    path = None if folder is None else path_of(folder, name, seed, attack, alignment)
                    if path is not None and path.exists():
                        cell = Cell(**json.loads(path.read_text(encoding="utf-8")))
                    elif only_kept:
                        continue
                    else:
                        federation = federation or Federation.trained(SETTINGS[name], seed)
                        sent = sent or federation.sent(attack)
                        cell = federation.measure(attack, sent, alignment)
                        if path is not None:
                            write_text(path, json_text(asdict(cell)))
                    yield attack, alignment, seed, cell
        if federation is not None:
            print(f"{name}, seed {seed}: {time.process_time() - started:.0f} s of the processor", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--attacks", nargs="+", default=[*ATTACKS, *HIDDEN, *ADAPTIVE])
    parser.add_argument("--alignments", nargs="+", default=list(ALIGNMENTS), choices=ALIGNMENTS)
    parser.add_argument("--seeds", type=int, help="how many at most")
    parser.add_argument("--first", type=int, default=FIRST, help="of the seeds")
    parser.add_argument("--rows", type=Path, help="a folder that keeps the cells, to go on from after a break")
    parser.add_argument("--only-kept", action="store_true", help="measure nothing: tables of the cells in the folder")
    parser.add_argument("--write", action="store_true", help="write the page in benchmarks/results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    if options.rows is not None:
        options.rows.mkdir(parents=True, exist_ok=True)
    # Who knows the rules is sent by them: without our alignment there is nothing to know.
    attacks = [NONE, *(attack for attack in options.attacks if US in options.alignments or attack not in ADAPTIVE)]
    cells: Cells = {}
    for name in options.settings:
        count = min(SETTINGS[name].seeds, options.seeds or SETTINGS[name].seeds)
        seeds = range(options.first, options.first + count)
        for attack, alignment, seed, cell in measured(
            name, seeds, attacks, options.alignments, options.rows, options.only_kept
        ):
            cells.setdefault((name, attack, alignment), {})[seed] = cell
    lines = section(cells)
    print("\n".join(lines))
    if options.write:
        write_section("## Attackers", [*lines, "", stamp()])


if __name__ == "__main__":
    main()
