"""Every benchmark, one after the other, with the machine and the date.

    python benchmarks/all.py --out DIR [--fashion-mnist FOLDER] [--only NAME ...]

Zoo, planted, attackers, forged sums, experiments, comparisons, personalisation, imports and updates write their
pages in results/ anew. Of the others DIR/NAME.txt is written, headed by machine, date and command: their pages
hold comments on the numbers, which are for people to write. What a script keeps in DIR is not measured again. One that
fails does not stop the rest; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from support.section import stamp

HERE = Path(__file__).parent
FASHION_MNIST = "--fashion-mnist"

#: These do without the data what they can.
MORE_WITH_DATA = ("comparisons", "experiments")
#: Scripts with their arguments; ``{out}`` and ``{data}`` stand for the folders. Without data, those that need it wait.
SCRIPTS: dict[str, list[str]] = {
    "comparisons": ["--out", "{out}/comparisons", FASHION_MNIST, "{data}", "--write"],
    "experiments": ["--run", "{out}/experiments", "--data-dir", "{data}"],
    "zoo": ["torchvision", "transformers", "--rows", "{out}/zoo", "--write"],
    "planted": ["torchvision", "transformers", "--rows", "{out}/planted", "--write"],
    "matching": ["--data-dir", "{data}", "--cache", "{out}/matching", "--growth", "--plot", "{out}/growth.png"],
    "calibration": ["--data-dir", "{data}", "--cache", "{out}/calibration", "--all-data"],
    "calibration_by_width": [],
    "federated_statistics": [],
    "server": [],
    "checkpoints": ["--folder", "{out}/checkpoints"],
    "attackers": ["--rows", "{out}/attackers", "--write"],
    "personalisation": ["--write"],
    "forged_sums": ["--write"],
    "long_runs": [],
    "imports": ["--write"],
    "updates": ["--write"],
}


def run(name: str, out: Path, data: str) -> bool:
    """Run one script, showing what it prints and keeping it; whether it succeeded."""
    arguments = [part.format(out=out, data=data) for part in SCRIPTS[name]]
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
    shown = f"python benchmarks/{name}.py {shlex.join(arguments)}"
    print(f"--- {shown}", flush=True)
    with (out / f"{name}.txt").open("w", encoding="utf-8") as kept:
        kept.write(f"{stamp()}\n{shown}\n\n")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                kept.write(line)
    return process.returncode == 0


def main() -> int:
    """Run what was asked for; 1 if a script failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for what is printed and kept")
    parser.add_argument(FASHION_MNIST, default="", dest="data", help="its folder")
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    verdicts = {}
    for name in arguments.only:
        needs_data = "{data}" in SCRIPTS[name] and name not in MORE_WITH_DATA
        if needs_data and not arguments.data:
            verdicts[name] = f"not run: it needs {FASHION_MNIST} FOLDER"
        else:
            verdicts[name] = "done" if run(name, arguments.out, arguments.data) else "FAILED"
    for name, verdict in verdicts.items():
        print(f"{name}: {verdict}")
    return int("FAILED" in verdicts.values())


if __name__ == "__main__":
    sys.exit(main())
