"""Merging large checkpoints: memory at its peak and time, against the checkpoints' size and the printed estimate.

Pairs are written to a folder, merged by the command in a process of its own, and compared: the second model is the
first one with other units and noise of half the size of its weights, so that it must be matched, not only recognised.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from fedrebasin import Permutation, PermutationSpec
from fedrebasin.files.checkpoints import save_checkpoint
from fedrebasin.models import MLP
from fedrebasin.spec.plain_stack import plain_stack

NOISE = 0.5


def mlp(entries: int, width: int, depth: int) -> tuple[nn.Module, PermutationSpec]:
    model = MLP(entries, width=width, depth=depth)
    return model, plain_stack(model.state_dict())


def vgg() -> tuple[nn.Module, PermutationSpec]:
    from torchvision.models import vgg16

    model = vgg16().eval()
    return model, PermutationSpec.trace(model, torch.zeros(1, 3, 224, 224), check=False)


PAIRS = {
    "VGG-16": ("torchvision:vgg16", vgg),
    "MLP, 120000 to 3 x 2048": ("", lambda: mlp(120_000, 2048, 3)),
    "MLP, 64 x 2048": ("", lambda: mlp(784, 2048, 64)),
    "MLP, 17 x 4096": ("", lambda: mlp(784, 4096, 17)),
}


def write_pair(folder: Path, name: str, form: str) -> tuple[Path, Path]:
    """The two files, made unless they are there."""
    ending = {"safetensors": "safetensors", "torch": "pt"}[form]
    stem = "".join(letter for letter in name.lower() if letter.isalnum())
    a, b = (folder / f"{stem}-{part}.{ending}" for part in "ab")
    if a.exists() and b.exists():
        return a, b
    torch.manual_seed(0)
    model, spec = PAIRS[name][1]()
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = dict(model.state_dict())
    other = {key: tensor + NOISE * tensor.std() * torch.randn(tensor.shape, generator=generator)
             if tensor.numel() > 1 else tensor for key, tensor in state.items()}  # fmt: skip
    other = Permutation.random(spec, generator).apply(other)
    for path, content in ((a, state), (b, other)):
        torch.save(content, path) if form == "torch" else save_checkpoint(path, content)
    return a, b


def measure(a: Path, b: Path, model: str, method: str, out: Path) -> dict[str, float]:
    """Run the command on a pair; peak memory and seconds of its process."""
    arguments = ["merge", str(a), str(b), "--method", method, "--json", "--force", "-o", str(out)]
    arguments += ["--model", model] if model else []
    script = "import sys; from fedrebasin.cli import main; sys.exit(main(sys.argv[1:]))"
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(done.stdout)
    row = found["rows"][1]
    return {
        "size": float(a.stat().st_size),
        "peak": 1024.0 * after.ru_maxrss,  # of the largest child, so that pairs are run in the order of their size
        "seconds": time.perf_counter() - started,
        "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "estimated": found["estimated_seconds"],
        "moved": row["moved"] / row["units"],
        "similarity": row["after"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for pairs of files, some gigabytes")
    parser.add_argument("--pairs", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--forms", nargs="*", default=["safetensors"], choices=["safetensors", "torch"])
    parser.add_argument("--methods", nargs="*", default=["weight-matching"])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print("| pair | file | method | GB each | peak GB | times one | seconds | processor | estimated | similarity |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in options.pairs:
        for form in options.forms:
            a, b = write_pair(options.folder, name, form)
            for method in options.methods:
                row = measure(a, b, PAIRS[name][0], method, options.folder / "merged.safetensors")
                print(
                    f"| {name} | {form} | {method} | {row['size'] / 1e9:.2f} | {row['peak'] / 1e9:.2f} "
                    f"| {row['peak'] / row['size']:.2f} | {row['seconds']:.0f} | {row['processor']:.0f} "
                    f"| {row['estimated']:.0f} | {row['similarity']:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
