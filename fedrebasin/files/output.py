"""Where a merged model goes: a file, or a folder of the same layout as the first checkpoint's; never over another."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedrebasin.errors import MergeError
from fedrebasin.files.checkpoints import Checkpoint, demand_writable_dtypes, save_checkpoint
from fedrebasin.files.folder import INDEX, config_of, copy_companions, index_text, output_file, output_shards
from fedrebasin.merging import rounded
from fedrebasin.state import dtype_name
from fedrebasin.writing import written_atomically

CARD = "README.md"
_SUFFIX = ".safetensors"
Pieces = Callable[[str], Iterable[Tensor]]


@dataclass(frozen=True)
class Output:
    """A file or a folder that is written at the end of a merge, whole or not at all.

    Args:
        path: its place; a safetensors file by its suffix, else a folder.
        leading: the checkpoint whose layout, names of tensors and companions (configuration, tokenizer) it gets.
        dtype: of its floating-point tensors; None for the leading checkpoint's own.
    """

    path: Path
    leading: Checkpoint
    dtype: torch.dtype | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.path.suffix != _SUFFIX

    def demand_free(self, inputs: Sequence[Path], force: bool) -> None:
        """Find out now what would else be found out after the work.

        Args:
            inputs: what is read.
            force: whether what lies there may be replaced, an input too.

        Raises:
            DataError: if a dtype cannot be written.
            MergeError: if something lies there, or it cannot be written there, or there is no room.
        """
        path = self.path
        if self.is_folder and self.leading.layout is None:
            raise MergeError(f"{path}: the merged model is a safetensors file: name it {path.stem}{_SUFFIX}")
        if not path.parent.is_dir():
            raise MergeError(f"{path}: there is no folder {path.parent}")
        if path.exists() or path.is_symlink():
            if not force:
                same = any(path.exists() and one.exists() and path.samefile(one) for one in inputs)
                what = "is one of the inputs" if same else "exists"
                raise MergeError(f"{path} {what}: choose another --out, or replace it with --force")
            if path.is_dir() and (not self.is_folder or not _is_model(path)):
                raise MergeError(f"{path}: a folder that is no model's is not replaced: choose another --out")
        demand_writable_dtypes(self.like(self.leading.state))
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise MergeError(f"{path}: cannot be written: {error.strerror}") from None
        needed, free = self.nbytes, shutil.disk_usage(path.parent).free
        if needed > free:
            raise MergeError(f"{path}: {needed / 1e9:.1f} GB are needed where {free / 1e9:.1f} GB are free")

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.like(self.leading.state).values())

    def like(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors without numbers of the shapes and dtypes that are written."""
        return {
            key: torch.empty_like(
                tensor, dtype=self._dtype(tensor), device="meta", memory_format=torch.contiguous_format
            )
            for key, tensor in state.items()
        }

    def save(
        self,
        pieces: Pieces,
        metadata: Mapping[str, str],
        card: str,
        written: Callable[[int], None] | None = None,
    ) -> None:
        """Write it.

        Args:
            pieces: of each tensor of the leading checkpoint, by its key there.
            metadata: for the headers.
            card: text of a folder's ``README.md``.
            written: called with the number of bytes after each part.

        Raises:
            DataError: if the parts are not what was announced.
            OSError: if it cannot be written.
        """
        like = self.like(self.leading.state)
        layout = self.leading.layout
        # A folder's tensors keep the names that its library gives them.
        keys = {key if layout is None else self.leading.key_in_file(key): key for key in like}

        def write(path: Path, names: Iterable[str], before: int = 0) -> int:
            own = {name: like[keys[name]] for name in names}
            done = None if written is None else lambda done: written(before + done)
            save_checkpoint(path, own, lambda name: pieces(keys[name]), metadata, done)
            return before + sum(tensor.nbytes for tensor in own.values())

        if not self.is_folder or layout is None:
            write(self.path, keys)
            return
        shards = {**dict.fromkeys(keys, output_file(layout)), **output_shards(layout)}
        with written_atomically(self.path) as partial:
            partial.mkdir()
            copy_companions(self.leading.path, partial, self._config())
            done = 0
            for name in sorted({shards[key] for key in keys}):
                done = write(partial / name, [key for key in keys if shards[key] == name], done)
            if layout.shards:
                numbers = sum(tensor.numel() for tensor in like.values())
                (partial / INDEX).write_text(index_text({key: shards[key] for key in keys}, self.nbytes, numbers))
            (partial / CARD).write_text(card, encoding="utf-8")

    def _dtype(self, tensor: Tensor) -> torch.dtype:
        return self.dtype if self.dtype is not None and tensor.is_floating_point() else tensor.dtype

    def _config(self) -> dict[str, str]:
        """What the configuration says of the dtype, where that is another one now."""
        if self.dtype is None:
            return {}
        name = dtype_name(self.dtype)
        return {key: name for key in ("dtype", "torch_dtype") if key in config_of(self.leading.path)}


def _is_model(folder: Path) -> bool:
    names = [path.name for path in folder.iterdir()]
    return not names or any(name == "config.json" or name.endswith((_SUFFIX, ".bin")) for name in names)


def whole(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Pieces:
    """The tensors of a state dict, each in one piece and in the dtype of ``like``."""

    def pieces(key: str) -> Iterable[Tensor]:
        yield rounded(key, state[key], like[key].dtype)

    return pieces
