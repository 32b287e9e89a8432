"""Data sets by name, from their own files or from torchvision, downloaded where they are not there yet."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrebasin.errors import DataError

from .idx import read_idx

#: Any text but "" keeps every command from downloading data.
OFFLINE = "FEDREBASIN_OFFLINE"
#: Where downloads go.
FOLDER = "FEDREBASIN_DATA"
TIMEOUT = 20.0

IDX_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN", **IDX_FOLDERS}

Arrays = tuple[NDArray[np.generic], NDArray[np.generic], NDArray[np.generic], NDArray[np.generic]]


def named_arrays(name: str, data_dir: str) -> Arrays:
    """Training images ``(n, channels, height, width)`` and labels, then those for testing, as they are in the files.

    Args:
        name: a key of ``TORCHVISION``.
        data_dir: its folder; "" for the folder of downloads, where it is put if it is not there.

    Raises:
        DataError: if the files are missing, cannot be downloaded or are not what they should be.
    """
    folder = Path(data_dir) if data_dir else download(name)
    if name in IDX_FOLDERS:
        return _idx(name, folder)
    try:
        parts = [_open(name, folder, part, download=False) for part in ("train", "test")]
    except (RuntimeError, OSError) as error:
        raise DataError(f"data set {name} in {folder}: {' '.join(str(error).split())}") from None
    images = [np.asarray(part.data) for part in parts]
    labels = [np.asarray(part.labels if name == "svhn" else part.targets) for part in parts]
    if name != "svhn":
        images = [array.transpose(0, 3, 1, 2) for array in images]
    return images[0], labels[0], images[1], labels[1]


def download(name: str) -> Path:
    """The folder of downloads, with the data set in it.

    Raises:
        DataError: if it is not there and cannot be had.
    """
    folder = Path(os.environ.get(FOLDER) or Path.home() / ".cache" / "fedrebasin")
    offline = bool(os.environ.get(OFFLINE))
    try:
        if not offline:
            folder.mkdir(parents=True, exist_ok=True)
        with _patience():
            for part in ("train", "test"):
                _open(name, folder, part, download=not offline)
    except (RuntimeError, OSError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        why = f"{OFFLINE} is set" if offline else f"the download failed: {reason}"
        raise DataError(f"data set {name} needs data-dir: it is not in {folder}, and {why}") from None
    return folder


def _open(name: str, folder: Path, part: str, download: bool) -> Any:
    from torchvision import datasets

    kind = getattr(datasets, TORCHVISION[name])
    if name == "svhn":
        return kind(folder, split=part, download=download)
    return kind(folder, train=part == "train", download=download)


@contextmanager
def _patience() -> Iterator[None]:
    """A server that does not answer ends the download."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _idx(name: str, folder: Path) -> Arrays:
    places = [folder, folder / IDX_FOLDERS[name] / "raw", folder / "raw"]
    parts = []
    for part in ("train", "t10k"):
        images = read_idx(_find(name, places, f"{part}-images-idx3-ubyte"), 3)
        labels = read_idx(_find(name, places, f"{part}-labels-idx1-ubyte"), 1)
        if len(images) != len(labels):
            raise DataError(f"data set {name} in {folder}: {len(images)} images with {len(labels)} labels in {part}")
        parts += [images[:, None], labels]
    return parts[0], parts[1], parts[2], parts[3]


def _find(name: str, places: list[Path], stem: str) -> Path:
    for place in places:
        for path in (place / stem, place / f"{stem}.gz"):
            if path.is_file():
                return path
    raise DataError(f"data set {name}: no {stem} or {stem}.gz in {places[0]} or in {places[1]}")
