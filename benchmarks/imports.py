"""What imports and the command's first answers cost: processor seconds of a whole process, beside what it needs.

    python benchmarks/imports.py [--runs 5] [--write]

The runs of all rows are taken in turn, so that other work on the machine meets them alike; the median is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from support.section import stamp, write_section

FLOWER = "import torch, flwr.app, flwr.clientapp, flwr.serverapp"
COMMAND = "import fedrebasin.cli; fedrebasin.cli.main(['{}'])"
ROWS = {
    "python": "",
    "fedrebasin --version": COMMAND.format("--version"),
    "fedrebasin --help": COMMAND.format("--help"),
    "import fedrebasin": "import fedrebasin",
    "import torch": "import torch",
    "from fedrebasin import PermutationSpec": "from fedrebasin import PermutationSpec",
    "all names of fedrebasin": "from fedrebasin import *",
    "import torch, flwr": FLOWER,
    "import fedrebasin.strategies": "import fedrebasin.strategies",
    "import fedrebasin.simulations": "import fedrebasin.simulations",
}


def processor_seconds(code: str) -> float:
    """Of a new Python that runs this."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{code}: exit code {process.returncode}")
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the page in benchmarks/results/")
    arguments = parser.parse_args()
    for code in ROWS.values():  # bytecode and disk caches
        processor_seconds(code)
    taken = [[processor_seconds(code) for code in ROWS.values()] for _ in range(arguments.runs)]
    medians = map(statistics.median, zip(*taken, strict=True))
    rows = [f"| `{name}` | {seconds:.2f} |" for name, seconds in zip(ROWS, medians, strict=True)]
    table = ["| | processor seconds |", "| --- | --- |", *rows]
    print(*table, sep="\n")
    if arguments.write:
        said = f"`python benchmarks/imports.py --write`: whole processes, medians of {arguments.runs} runs."
        write_section("## Imports", [said, stamp(), "", *table])


if __name__ == "__main__":
    main()
