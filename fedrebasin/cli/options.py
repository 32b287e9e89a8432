"""Options that several commands have, made from the keys of the run config; nothing here loads torch."""

import importlib.util
import inspect
import re
from collections.abc import Callable, Collection
from dataclasses import Field, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from fedrebasin.simulations import BASES, CALIBRATORS, DEVICES, LOADERS, SimulationConfig

MODEL_HELP = (
    "torchvision:NAME, timm:NAME (options after commas: timm:NAME,num_classes=10), transformers:FOLDER with its "
    "config.json, package.module:callable, or a spec's JSON file; not needed for plain stacks, nor for folders whose "
    "config.json names it."
)
INPUT_HELP = (
    "Shape of an example input, as 1,3,224,224; or each of them with its name and dtype: "
    "--input input_ids:int64:1,16. transformers and timm say themselves what they take."
)
KEY_HELP = "The entry of a torch file that holds the model, where there are several: state_dict_ema."
PREFIX_HELP = "What the keys of the model begin with, where a file has several copies: model_ema."
DATA_HELP = "A data set's name, a folder of images by class, or package.module:function giving (train, test)."

KEYS = {one.name: one for one in fields(SimulationConfig)}
KINDS: dict[str, Callable[[str], Any]] = get_type_hints(SimulationConfig)
SEVERAL = " Several with commas."
RANGES = " Several with commas, or as 0..2."
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_LONGEST_RANGE = 100_000

DataDir = Annotated[str, typer.Option(help=KEYS["data_dir"].metadata["text"])]
# Of the commands that are given checkpoints.
Inputs = Annotated[list[str] | None, typer.Option("--input", help=INPUT_HELP)]
Key = Annotated[str, typer.Option(help=KEY_HELP)]
Prefix = Annotated[str, typer.Option(help=PREFIX_HELP)]
SpecFile = Annotated[Path | None, typer.Option(help="A spec that 'fedrebasin spec --out' wrote.")]
MatchingSeed = Annotated[int, typer.Option(help="Seed of the order in which layers are matched.")]
A = Annotated[Path, typer.Argument(help="A safetensors file, one that torch.save wrote, or a model's folder.")]
B = Annotated[Path, typer.Argument(help="Another one.")]

Command = TypeVar("Command", bound=Callable[..., None])


def run_config(several: bool = False, **defaults: Any) -> Callable[[Command], Command]:
    """Give a command, behind its first parameter, an option for every key of the run config; it takes ``**config``.

    Args:
        several: whether keys that can have several values are texts with commas.
        defaults: other than those of the config.
    """

    def decorate(command: Command) -> Command:
        first, *rest = inspect.signature(command, eval_str=True).parameters.values()
        options = [_option(key, several, defaults) for key in KEYS.values()]
        named = [parameter for parameter in rest if parameter.kind is not parameter.VAR_KEYWORD]
        command.__signature__ = inspect.Signature([first, *options, *named], return_annotation=None)  # type: ignore[attr-defined]
        return command

    return decorate


def _option(key: Field[Any], several: bool, defaults: dict[str, Any]) -> inspect.Parameter:
    text, allowed = key.metadata["text"], key.metadata["allowed"]
    several = several and key.metadata["several"]
    default, kind = defaults.get(key.name, key.default), KINDS[key.name]
    text = (", ".join(allowed) if allowed else "") + text + ((RANGES if kind is int else SEVERAL) if several else "")
    names = ("--seed", "--seeds") if several and key.name == "seed" else ()
    option = typer.Option(*names, help=text, autocompletion=completing(allowed) if allowed else None)
    return inspect.Parameter(
        key.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=f"{default}" if several else default,
        annotation=Annotated[str if several else kind, option],
    )


def parse_values(text: str, kind: Callable[[str], Any]) -> list[Any]:
    """The values of a text with commas; whole numbers may be ranges with both ends: 0..2 is 0,1,2.

    Raises:
        ValueError: if a part is none.
    """
    found: list[Any] = []
    for part in filter(None, map(str.strip, text.split(","))):
        if kind is int and (ends := _RANGE.fullmatch(part)):
            first, last = map(int, ends.groups())
            if not first <= last < first + _LONGEST_RANGE:
                raise ValueError(f"{part} is no range: write the smaller number first, as in 0..2")
            found += range(first, last + 1)
            continue
        try:
            found.append(kind(part))
        except ValueError:
            wanted = "a whole number: write 0,1,2 or 0..2" if kind is int else "a number"
            raise ValueError(f"{part!r} is not {wanted}") from None
    return found


def completing(names: Collection[str]) -> Callable[[str], list[str]]:
    """What the shell offers for one name, or behind the last comma of several."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names if name.startswith(last)]

    return complete


def complete_experiment(incomplete: str) -> list[str]:
    """What the shell offers for experiments, read from their sources: importing them would load torch."""
    papers = importlib.util.find_spec("fedrebasin.simulations.papers")
    places = (papers and papers.submodule_search_locations) or ()
    sources = (file.read_text(encoding="utf-8") for place in places for file in sorted(Path(place).glob("*.py")))
    own = [name for source in sources for name in re.findall(r'^@experiment\(\s*"([^"]+)"', source, re.MULTILINE)]
    return completing([*own, *(point.name for point in entry_points(group="fedrebasin.experiments"))])(incomplete)


def complete_model(incomplete: str) -> list[str]:
    """What the shell offers before the colon of a model's name."""
    return completing(("torchvision:", "timm:", "transformers:"))(incomplete)


def complete_strategy(incomplete: str) -> list[str]:
    """What the shell offers for strategies: bases, and calibrators behind a +."""
    before, plus, last = incomplete.rpartition("+")
    if not plus or "," in last:
        return completing(BASES)(incomplete)
    return [f"{before}+{name}" for name in CALIBRATORS if name.startswith(last)]


#: What the name of a strategy is put together from.
STRATEGY = f"{', '.join(BASES)}; then any of {', '.join(f'+{name}' for name in CALIBRATORS)}, as in rebasin+head."

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", autocompletion=completing(DEVICES))]
Model = Annotated[str, typer.Option(help=MODEL_HELP, autocompletion=complete_model)]
complete_dataset = completing(LOADERS)
