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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedrebasin.errors import DataError
from fedrebasin.files import legacy
from fedrebasin.files.mapped import MappedState
from fedrebasin.keys import pair, shared_prefix
from fedrebasin.state import demand_numbers, flaws
from fedrebasin.writing import written_atomically

#: Where training scripts keep the state dict.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")

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
    """A state dict in a file.

    Args:
        path: of the file.
        state: its tensors, by key.
        form: ``safetensors`` or ``torch``.
        prefix: what was taken off every key.
        renamed: a key in the file and what it is called here, where the name of a wrapper was taken out of some.
        dropped: entries of the state dict that are not tensors.
    """

    path: Path
    state: MappedState
    form: str
    prefix: str = ""
    renamed: tuple[str, str] | None = None
    dropped: tuple[str, ...] = ()

    def without_prefix(self, like: Collection[str] | None = None) -> Checkpoint:
        """The checkpoint without the prefixes and wrappers that its keys have and those of ``like`` do not.

        Args:
            like: the keys of the model. Without them ``model.`` may well be the model's own name, and stays.
        """
        prefix = shared_prefix(list(self.state), like)
        short = [key.removeprefix(prefix) for key in self.state]
        pairs = pair(list(like), short) if like else None
        names = {key: name for name, key in (pairs or {}).items()}
        changed = next(((key, name) for key, name in names.items() if key != name), self.renamed)
        if not prefix and changed is self.renamed:
            return self
        new = {names.get(key, key): old for key, old in zip(short, self.state, strict=True)}
        return replace(self, state=self.state.renamed(new), prefix=self.prefix + prefix, renamed=changed)

    def sha256(self) -> str:
        """Of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Map a checkpoint: a safetensors file, or one that ``torch.save`` wrote (a state dict, or a dict with one in it).

    Torch files are read with ``weights_only=True``: a pickle that asks for anything but plain tensors is refused, and
    nothing in it is called.

    Raises:
        DataError: if the file is missing, cannot be read, is not plain tensors, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: {'a folder, not a checkpoint' if path.is_dir() else 'there is no such file'}")
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
    entries = _state_dict(path, loaded)
    tensors = {key: value.detach() for key, value in entries.items() if isinstance(value, Tensor)}
    if unusual := [key for key, value in tensors.items() if value.layout != torch.strided or value.is_quantized]:
        raise DataError(f"{path}: {unusual[0]} is sparse or quantised: only dense tensors can be merged")
    if empty := [key for key, value in tensors.items() if value.is_meta]:
        raise DataError(f"{path}: {empty[0]} has no numbers: it was saved from the meta device")
    size = path.stat().st_size
    if larger := [key for key, value in tensors.items() if value.nbytes > size]:
        raise DataError(f"{path}: {larger[0]} would be larger than the file: it repeats a few numbers")
    return Checkpoint(
        path, MappedState(tensors, path), "torch", dropped=tuple(str(key) for key in entries if key not in tensors)
    )


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


def _state_dict(path: Path, loaded: Any) -> Mapping[str, Any]:
    def has_tensors(value: Any) -> bool:
        return isinstance(value, Mapping) and any(isinstance(entry, Tensor) for entry in value.values())

    if isinstance(loaded, Mapping):
        inside = [loaded[name] for name in _WRAPPERS if has_tensors(loaded.get(name))]
        if inside or has_tensors(loaded):
            found = inside[0] if inside else loaded
            return {str(key): value for key, value in found.items()}
    what = f"its keys are {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, Mapping) else "it is none"
    raise DataError(f"{path}: no state dict in it ({what}): expected tensors by name, also under {_WRAPPERS[0]!r}")


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
    for key in order:
        tensor = like[key]
        if tensor.dtype not in _DTYPES:
            raise DataError(f"{key}: {tensor.dtype} cannot be written as safetensors")
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
