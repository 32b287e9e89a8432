"""Checkpoints: state dicts in files, mapped into memory and never executed.

Both formats are mapped: a tensor is read from the file when it is looked at, and its pages can leave memory again.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedrebasin.errors import DataError, nearby
from fedrebasin.files import legacy
from fedrebasin.files.entries import model_in
from fedrebasin.files.folder import Layout, config_of, demand_no_adapter, layout_of
from fedrebasin.files.mapped import MappedState
from fedrebasin.keys import COUNTERS, pair, shared_prefix
from fedrebasin.state import demand_numbers, flaws
from fedrebasin.writing import written_atomically

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A state dict in a file, or in a folder as hubs lay them out.

    Args:
        path: of the file or the folder.
        state: its tensors, by key.
        form: ``safetensors``, ``torch`` or ``folder``.
        prefix: what was removed from every key.
        renamed: a key in the file and what it is called here, where the name of a wrapper was taken out of some.
        dropped: entries of the state dict that are not tensors.
        layout: of a folder.
        keys: what the tensors are called in the file, by their keys here.
        choices: a line for each thing that was chosen.
    """

    path: Path
    state: MappedState
    form: str
    prefix: str = ""
    renamed: tuple[str, str] | None = None
    dropped: tuple[str, ...] = ()
    layout: Layout | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()

    def without_prefix(self, like: Collection[str] | None = None) -> Checkpoint:
        """The checkpoint without the prefixes and wrappers that its keys have and those of ``like`` do not.

        Args:
            like: the keys of the model. Without them ``model.`` may well be the model's own name, and stays.
        """
        prefix = shared_prefix(list(self.state), like)
        kept = [key for key in self.state if key not in COUNTERS or not prefix]
        short = [key.removeprefix(prefix) for key in kept]
        pairs = pair(list(like), short) if like else None
        names = {key: name for name, key in (pairs or {}).items()}
        changed = next(((key, name) for key, name in names.items() if key != name), self.renamed)
        if not prefix and changed is self.renamed:
            return self
        found = self.called({names.get(key, key): old for key, old in zip(short, kept, strict=True)})
        return replace(found, prefix=self.prefix + prefix, renamed=changed)

    def called(self, names: Mapping[str, str]) -> Checkpoint:
        """The checkpoint with some of its tensors; ``names`` maps what they are called then to what they are now."""
        keys = {new: self.keys.get(old, old) for new, old in names.items()}
        return replace(self, state=self.state.renamed(names), keys=keys)

    def key_in_file(self, key: str) -> str:
        """What a tensor is called in the file."""
        return self.keys.get(key, key)

    def sha256(self) -> str:
        """Of the file, or of all files of weights, one after the other."""
        digest = hashlib.sha256()
        for path in self.state.paths:
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        return digest.hexdigest()


def load_checkpoint(path: str | os.PathLike[str], key: str = "") -> Checkpoint:
    """Map a checkpoint: a safetensors file, one that ``torch.save`` wrote, or a folder with such files.

    Torch files are read with ``weights_only=True``: a pickle that asks for anything but plain tensors is refused, and
    nothing in it is called. Of what trainers write the model is taken, see :func:`fedrebasin.files.entries.model_in`.

    Args:
        path: of the file or folder.
        key: the entry of a torch file that is the state dict; "" for the usual one.

    Raises:
        DataError: if the file is missing, cannot be read, is not plain tensors, or holds no state dict.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file{nearby(path)}")
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if head[8:] == b"{":
        return Checkpoint(path, MappedState(_safetensors(path), path), "safetensors")
    if head[:2] not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise DataError(f"{path}: neither a safetensors file nor one that torch.save wrote")
    loaded = _torch(path, mapped=head[:2] == b"PK")
    entries, choice = model_in(path, loaded, key)
    tensors = {key: value.detach() for key, value in entries.items() if isinstance(value, Tensor)}
    if unusual := [key for key, value in tensors.items() if value.layout != torch.strided or value.is_quantized]:
        raise DataError(f"{path}: {unusual[0]} is sparse or quantised: only dense tensors can be merged")
    if empty := [key for key, value in tensors.items() if value.is_meta]:
        raise DataError(f"{path}: {empty[0]} has no numbers: it was saved from the meta device")
    size = path.stat().st_size
    if larger := [key for key, value in tensors.items() if value.nbytes > size]:
        raise DataError(f"{path}: {larger[0]} would be larger than the file: it repeats a few numbers")
    dropped = tuple(str(key) for key in entries if key not in tensors)
    choices = (choice,) if choice else ()
    return Checkpoint(path, MappedState(tensors, path), "torch", dropped=dropped, choices=choices)


def _folder(path: Path) -> Checkpoint:
    demand_no_adapter(path)
    config_of(path)
    layout = layout_of(path)
    tensors: dict[str, Tensor] = {}
    for name in layout.files:
        part = load_checkpoint(path / name).state
        wanted = [key for key in part if layout.shards.get(key) == name] if layout.shards else list(part)
        tensors |= {key: part[key] for key in wanted}
    if missing := [key for key in layout.shards if key not in tensors]:
        raise DataError(f"{path}: {missing[0]} is not in {layout.shards[missing[0]]}, where the index has it")
    files = [path / name for name in layout.files]
    return Checkpoint(path, MappedState(tensors, files), "folder", layout=layout)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: not a readable safetensors file: {' '.join(str(error).split())}") from None


def _torch(path: Path, mapped: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if mapped:
                _demand_stored(path)
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with legacy.mapped(path) as file:
                return torch.load(cast(IO[bytes], file), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:GLOBAL|[Gg]lobal|class) `?([\w.]+\.[\w.]+)", str(error))
        what = f" (it asks for {wanted.group(1)})" if wanted else ""
        raise DataError(
            f"{path}: not plain tensors{what}: refused, and nothing in it was run; "
            "save model.state_dict(), or write a safetensors file"
        ) from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # whatever a damaged file makes the readers raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: cannot be read as a torch checkpoint: {reason}") from None


def _demand_stored(path: Path) -> None:
    """Refuse a file with compressed members, which torch.save never writes: they may unfold to any size."""
    with zipfile.ZipFile(path) as packed:
        for member in packed.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise DataError(f"{member.filename} is compressed, which torch.save does not do")


def demand_writable_dtypes(like: Mapping[str, Tensor]) -> None:
    """Refuse what safetensors files have no name for.

    Raises:
        DataError: with the first such tensor.
    """
    if found := next((key for key, tensor in like.items() if tensor.dtype not in _DTYPES), None):
        raise DataError(f"{found}: {like[found].dtype} cannot be written as safetensors")


def save_checkpoint(
    path: str | os.PathLike[str],
    like: Mapping[str, Tensor],
    pieces: Callable[[str], Iterable[Tensor]] | None = None,
    metadata: Mapping[str, str] | None = None,
    written: Callable[[int], None] | None = None,
) -> Path:
    """Write a safetensors file tensor by tensor; it appears when it is whole, or not at all.

    Args:
        path: of the file.
        like: keys, shapes and dtypes.
        pieces: the tensor of a key, in parts that follow one another in memory; None writes ``like``.
        metadata: texts by name, kept in the file's header.
        written: called with the number of bytes after each part.

    Raises:
        DataError: if an entry is no dense tensor, a dtype has no name in the format, or the parts are not what ``like``
            announces.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    if pieces is None:
        demand_numbers(like, DataError)
    elif found := flaws(like):
        raise DataError(found[0])
    order = sorted(like, key=lambda key: (-like[key].element_size(), key))
    header: dict[str, Any] = {"__metadata__": dict(metadata or {})}
    offset = 0
    demand_writable_dtypes(like)
    for key in order:
        tensor = like[key]
        end = offset + tensor.nbytes
        header[key] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with written_atomically(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            start = file.tell()
            for part in [like[key]] if pieces is None else pieces(key):
                if part.dtype != like[key].dtype:
                    raise DataError(f"{key}: {part.dtype} where {like[key].dtype} was announced")
                flat = part.detach().cpu().resolve_conj().contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
                if written is not None:
                    written(file.tell())
            if file.tell() - start != like[key].nbytes:
                raise DataError(f"{key}: {file.tell() - start} bytes where {like[key].nbytes} were announced")
    return path
