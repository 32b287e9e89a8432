"""Folders as hubs lay them out: a configuration, weights in one file or in shards with an index, a tokenizer."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrebasin.errors import DataError

INDEX = "model.safetensors.index.json"
#: Weights in one file, or the index of shards, in the order in which they are looked for.
_WEIGHTS = (INDEX, "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
_LARGEST_TEXT = 2**26  # bytes of an index or a configuration
_COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_LARGEST_COPIED = 2**28


@dataclass(frozen=True)
class Layout:
    """Where the tensors of a folder lie.

    Args:
        files: of weights, by name.
        shards: the file of each tensor; empty where there is one file, without an index.
    """

    files: tuple[str, ...]
    shards: Mapping[str, str]


def layout_of(folder: Path) -> Layout:
    """What files of weights a folder has.

    Raises:
        DataError: if there are none or too many, or the index is not one, or names what is not in the folder.
    """
    name = next((name for name in _WEIGHTS if (folder / name).is_file()), None)
    if name is None:
        name = _only_weights(folder)
    if not name.endswith(".index.json"):
        inside(folder, name)
        return Layout((name,), {})
    shards = read_json(inside(folder, name)).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(file, str) for file in shards.values()):
        raise DataError(f"{folder / name}: no index of shards: a weight_map with a file for each tensor is needed")
    files = tuple(sorted(set(shards.values())))
    for file in files:
        inside(folder, file)
    return Layout(files, shards)


def inside(folder: Path, name: str) -> Path:
    """A file of a folder, by its plain name.

    Raises:
        DataError: if the name leads out of the folder, or the file is missing, or a link out of it. A hub's cache,
            whose snapshots are links to its own blobs, may have those.
    """
    path = folder / name
    if Path(name).name != name or "\\" in name or name.startswith("."):
        raise DataError(f"{folder}: {name!r} is no file of the folder")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    roots = [folder.resolve()]
    if folder.absolute().parent.name == "snapshots":
        roots.append(folder.resolve().parent.parent / "blobs")
    if path.resolve().parent not in roots:
        raise DataError(f"{path}: a link out of the folder, which is not followed")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        DataError: if it is too large, or none.
    """
    try:
        if path.stat().st_size > _LARGEST_TEXT:
            raise ValueError("it is too large")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: not a JSON object")
    return found


def config_of(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``; empty where there is none.

    Raises:
        DataError: if it is not readable, or says that the weights are quantised.
    """
    if not (folder / "config.json").is_file():
        return {}
    config = read_json(inside(folder, "config.json"))
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise DataError(
            f"{folder}: its weights are quantised ({method or 'quantization_config'}), and quantised numbers have no "
            "mean: dequantise the model and save it, then merge"
        )
    return config


def demand_no_adapter(folder: Path) -> None:
    """Refuse a folder that holds an adapter.

    Raises:
        DataError: with what to do.
    """
    if (folder / "adapter_config.json").is_file():
        raise DataError(
            f"{folder}: an adapter without its base: factors are not averaged one by one; merge it into the base "
            "(merge_and_unload), save the model, then merge"
        )


def output_shards(layout: Layout) -> Mapping[str, str]:
    """The file of each tensor in a folder that is written like this one: always safetensors."""
    return {key: _as_safetensors(file) for key, file in layout.shards.items()}


def output_file(layout: Layout) -> str:
    """The one file of a folder without shards, likewise."""
    return "model.safetensors" if layout.shards else _as_safetensors(layout.files[0])


def index_text(shards: Mapping[str, str], nbytes: int, numbers: int) -> str:
    """The index of shards.

    Args:
        shards: the file of each tensor.
        nbytes: of all tensors.
        numbers: in all of them.
    """
    metadata = {"total_parameters": numbers, "total_size": nbytes}
    return json.dumps({"metadata": metadata, "weight_map": dict(sorted(shards.items()))}, indent=2) + "\n"


def copy_companions(source: Path, target: Path, config: Mapping[str, Any]) -> list[str]:
    """Copy what is no weights: the tokenizer, settings, a licence. Their names.

    Args:
        source: a folder.
        target: another one, which exists.
        config: entries of ``config.json`` that are other than the source's, such as the dtype.
    """
    copied = []
    for path in sorted(source.iterdir()):
        wanted = path.suffix in _COPIED or path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))
        if not wanted or path.name.startswith(".") or path.name.endswith(".index.json") or not path.is_file():
            continue
        try:
            if inside(source, path.name).stat().st_size > _LARGEST_COPIED:
                continue
        except DataError:
            continue
        if path.name == "config.json" and config:
            text = json.dumps({**read_json(path), **config}, indent=2) + "\n"
            (target / path.name).write_text(text, encoding="utf-8")
        else:
            shutil.copyfile(path, target / path.name)
        copied.append(path.name)
    return copied


def _only_weights(folder: Path) -> str:
    demand_no_adapter(folder)
    found = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    if len(found) != 1:
        what = f"{len(found)} files of weights ({', '.join(found[:3])}, ...)" if found else "no weights"
        raise DataError(f"{folder}: a folder with {what}, where {', '.join(_WEIGHTS[1::2])} or an index is needed")
    return found[0]


def _as_safetensors(name: str) -> str:
    stem = re.sub(r"\.[a-z]+$", "", name)
    return stem.replace("pytorch_model", "model") + ".safetensors"
