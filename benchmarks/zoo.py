"""The tracer over whole model zoos: every torchvision classifier; Hugging Face and timm where they are installed.

One row per model: seconds (export, tracing and the check), groups, coverage, log10 of the number of symmetries, the
largest relative change of an output under random members with random parameters in float64, operators without a rule.
Seconds are given by the clock and of the processor: only the latter mean something where other processes run beside.

Memory, by ``--memory NAME``: how much a fresh process grows while it traces a torchvision model without and with the
check, in multiples of the model's own size.

    python benchmarks/zoo.py [torchvision] [transformers] [timm] [--models NAME ...] [--rows FILE] [--write]
    python benchmarks/zoo.py --memory vgg16 vit_l_16
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from support.section import stamp, write_section
from torch import nn

from fedrebasin import PermutationSpec, RebasinError
from fedrebasin.tracing import largest_change

MODERATE = 30_000_000  # parameters
MEANS = """\
`python benchmarks/zoo.py torchvision transformers timm --memory NAME ... --rows DIR --write` writes this section. The
input is 1 x 3 x 224 x 224, or what the model wants. The models were traced beside other work on the machine: the
clock's seconds are inflated by that, the processor's less so. The check runs the model in float64
once for every two-fold of its parts (a group in a block) and two times more, and again for groups of few units. (timm's
StarNet multiplies activations with each other, layer after layer: moving its parameters by rounding errors changes its
outputs as much as a member does, which the check allows for.)"""
GROWTH_MEANS = """\
Growth of the peak of a process's resident memory while it traces, in multiples of the model's size; the model itself,
and a peak while it was built, are not counted."""
COLUMNS = (
    "| model | seconds | processor seconds | of which check | groups | coverage | log10 symmetries | largest change"
    " | without a rule |"
)
GROWTH = """
import resource, sys, torch, torchvision
from fedrebasin import PermutationSpec
image = torch.zeros(1, 3, 224, 224)
PermutationSpec.trace(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 2, 3)), image)
model = torchvision.models.get_model(sys.argv[1]).eval()
size = sum(tensor.nbytes for tensor in model.state_dict().values())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
PermutationSpec.trace(model, image, check=bool(sys.argv[2]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / size)
"""
Case = tuple[str, Callable[[], tuple[nn.Module, Any]]]


class Row(NamedTuple):
    """One line of the table."""

    name: str
    seconds: float
    processor: float
    check: float
    groups: int
    coverage: float
    log10: float
    change: float
    without_rule: str

    def __str__(self) -> str:
        return (
            f"| {self.name} | {self.seconds:.2f} | {self.processor:.2f} | {self.check:.2f} | {self.groups}"
            f" | {self.coverage:.4f} | {self.log10:.1f} | {self.change:.1e} | {self.without_rule or 'none'} |"
        )


def measure(name: str, make: Callable[[], tuple[nn.Module, Any]]) -> Row:
    torch.manual_seed(0)
    model, inputs = make()
    clock, started = time.perf_counter(), time.process_time()
    spec = PermutationSpec.trace(model, inputs, check=False)
    traced = time.process_time()
    change = largest_change(spec, model, inputs, seed=0).size
    checked = time.process_time()
    seconds = time.perf_counter() - clock
    unknown = sorted({row.operator for row in spec.unpermuted if "no rule" in row.reason})
    return Row(
        name,
        seconds,
        checked - started,
        checked - traced,
        sum(not group.frozen for group in spec.groups.values()),
        spec.coverage,
        spec.log10_symmetries,
        change,
        ", ".join(unknown),
    )


def kept_or_measured(folder: Path | None, zoo: str, name: str, make: Callable[[], tuple[nn.Module, Any]]) -> Row:
    """The row from the folder if it is there; otherwise it is measured and put there."""
    if folder is None:
        return measure(name, make)
    path = folder / f"{zoo}-{name.replace(':', '')}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measure(name, make)), encoding="utf-8")
    return Row(*json.loads(path.read_text(encoding="utf-8")))


def memory(name: str) -> str:
    """The growth of a fresh process's resident memory at its peak, by whether the check runs."""
    grown = [
        float(subprocess.run([sys.executable, "-c", GROWTH, name, check], check=True, capture_output=True).stdout)
        for check in ("", "check")
    ]
    return f"{name}: {grown[0]:.2f} times the model's memory without the check, {grown[1]:.2f} times with it"


def from_torchvision() -> Iterator[Case]:
    for name in torchvision.models.list_models(module=torchvision.models):

        def make(name: str = name) -> tuple[nn.Module, Any]:
            slow_start = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            size = 299 if name == "inception_v3" else 224
            return torchvision.models.get_model(name, weights=None, **slow_start).eval(), torch.randn(1, 3, size, size)

        yield name, make


def from_transformers() -> Iterator[Case]:
    import transformers as t

    text = {"vocab_size": 99, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    tokens, image, sound = torch.randint(5, 90, (2, 7)), torch.randn(2, 3, 32, 32), torch.randn(2, 8, 30)
    seq2seq = {"decoder_input_ids": tokens}
    whisper = t.WhisperConfig(
        vocab_size=99, d_model=48, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, num_mel_bins=8, max_source_positions=15, max_target_positions=20, use_cache=False,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    clip = t.CLIPConfig(text_config={**text, "eos_token_id": 98, "bos_token_id": 97}, vision_config=vision)
    llama = t.LlamaConfig(**{**text, "num_attention_heads": 6}, num_key_value_heads=2, use_cache=False)
    found: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
        "BERT": (lambda: t.BertForSequenceClassification(t.BertConfig(**text)), {"input_ids": tokens}),
        "GPT-2": (
            lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=99, n_embd=48, n_layer=2, n_head=4, use_cache=False)),
            {"input_ids": tokens},
        ),
        "ViT": (lambda: t.ViTForImageClassification(t.ViTConfig(**vision)), {"pixel_values": image}),
        "Llama, grouped queries": (lambda: t.LlamaForCausalLM(llama), {"input_ids": tokens}),
        "T5": (
            lambda: t.T5ForConditionalGeneration(
                t.T5Config(vocab_size=99, d_model=48, d_kv=12, d_ff=64, num_layers=2, num_heads=4, use_cache=False)
            ),
            {"input_ids": tokens, **seq2seq},
        ),
        "CLIP": (lambda: t.CLIPModel(clip), {"input_ids": tokens, "pixel_values": image}),
        "Whisper": (lambda: t.WhisperForConditionalGeneration(whisper), {"input_features": sound, **seq2seq}),
        "ConvNeXt": (
            lambda: t.ConvNextForImageClassification(
                t.ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1])
            ),
            {"pixel_values": image},
        ),
    }
    for name, (build, inputs) in found.items():
        yield name, lambda build=build, inputs=inputs: (build().eval(), inputs)  # type: ignore[misc]


def without_weights() -> str:
    """A Llama of 1.1 billion parameters on the meta device, where no weight is allocated."""
    import transformers as t

    config = t.LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
        vocab_size=32000, use_cache=False,
    )  # fmt: skip
    with torch.device("meta"):
        model, tokens = t.LlamaForCausalLM(config).eval(), torch.zeros(1, 8, dtype=torch.long)
    number = sum(parameter.numel() for parameter in model.parameters())
    before, clock, busy = peak(), time.perf_counter(), time.process_time()
    spec = PermutationSpec.trace(model, {"input_ids": tokens})
    return (
        f"On the meta device a Llama of {number / 1e9:.2f}e9 parameters ({4 * number / 2**30:.1f} GiB, not allocated):"
        f" {time.perf_counter() - clock:.1f} s by the clock, {time.process_time() - busy:.1f} s of the processor,"
        f" {peak() - before:.0f} MB of memory; {len(spec.groups)} groups, log10 symmetries {spec.log10_symmetries:.1f}."
    )


def peak() -> float:
    """This process's largest resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def from_timm() -> Iterator[Case]:
    """Of every module of timm, which are its families, the first model that is not large."""
    import timm
    from timm.models import list_modules

    for module in list_modules():
        for name in timm.list_models(module=module):
            with torch.device("meta"):
                size = sum(tensor.numel() for tensor in timm.create_model(name).parameters())
            if size < MODERATE:
                break
        else:
            continue

        def make(name: str = name) -> tuple[nn.Module, Any]:
            model = timm.create_model(name).eval()
            return model, torch.randn(1, *model.default_cfg["input_size"])

        yield f"{module}: {name}", make


ZOOS = {"torchvision": from_torchvision, "transformers": from_transformers, "timm": from_timm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoos", nargs="*", help=f"of {', '.join(ZOOS)}; by default the first two that are installed")
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--rows", type=Path, help="a folder that keeps the rows, to go on from after a break")
    parser.add_argument("--memory", nargs="+", default=[], metavar="NAME", help="measure these torchvision models' too")
    parser.add_argument("--write", action="store_true", help="write the page in benchmarks/results/")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    # The first export of a process loads much of torch: not the first model's time.
    PermutationSpec.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    lines: list[str] = []
    zoos = options.zoos or ([] if options.memory else ["torchvision", "transformers"])
    for zoo in zoos:
        if importlib.util.find_spec(zoo) is None:
            print(f"{zoo} is not installed")
            continue
        lines += section(zoo, options.models, options.rows)
        if zoo == "transformers" and not options.models:
            lines += [without_weights(), ""]
            print(lines[-2])
    if options.memory:
        lines += ["### Memory", "", GROWTH_MEANS, "", *(f"- {memory(name)}" for name in options.memory)]
        print("\n".join(lines[-len(options.memory) :]))
    if options.write:
        write_section("## Zoo", [MEANS, stamp(), "", *lines])


def section(zoo: str, only: list[str] | None, kept: Path | None) -> list[str]:
    lines = [f"### {zoo}", "", COLUMNS, "| --- " * 9 + "|"]
    print("\n".join(lines), flush=True)
    rows = []
    for name, make in ZOOS[zoo]():
        if only and name not in only:
            continue
        try:
            rows.append(kept_or_measured(kept, zoo, name, make))
            lines.append(str(rows[-1]))
        except (RebasinError, RuntimeError, ValueError) as error:
            lines.append(f"| {name} | failed: {str(error).splitlines()[0][:200]} |")
        print(lines[-1], flush=True)
    if rows:
        summary = (
            f"{len(rows)} models: {sum(row.groups == 0 for row in rows)} without a group,"
            f" {sum(row.change > 1e-9 for row in rows)} changed by more than 1e-9. Processor seconds on"
            f" {torch.get_num_threads()} thread(s): export and tracing, median and largest"
            f" {spread([row.processor - row.check for row in rows])}; with the check"
            f" {spread([row.processor for row in rows])}."
        )
        lines += ["", summary, ""]
        print(lines[-2], flush=True)
    return lines


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} and {max(seconds):.2f}"


if __name__ == "__main__":
    main()
