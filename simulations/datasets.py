"""Data sets as four tensors, standardised by the mean and deviation of the training set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrebasin import DataError

from .config import DATASETS, choose
from .idx import read_idx

DIGITS_TEST_SHARE = 0.25
BETA_SHARE = 0.2
SPLIT_SEED = 20230501  # of the fixed splits, which no simulation's seed changes
IMAGE_FOLDER_SIZE = 32

IDX_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images ``(n, channels, height, width)`` as float32, labels ``(n,)`` as int64.

    Args:
        train_inputs: what the clients share out.
        train_labels: their classes.
        test_inputs: what models are judged on.
        test_labels: their classes.
        classes: number of classes.
    """

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    classes: int

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)``."""
        channels, height, width = self.train_inputs.shape[1:]
        return channels, height, width

    def test_split(self) -> tuple[Tensor, Tensor]:
        """Indices of the test set: the 20 % that beta is fitted on, and the 80 % that is reported (LEWC, section 3.1).

        The split is the same whatever the seed of the simulation.
        """
        order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(len(self.test_labels)))
        cut = round(BETA_SHARE * len(order))
        return order[:cut], order[cut:]


@lru_cache(maxsize=2)
def load_dataset(name: str, data_dir: str = "") -> Dataset:
    """A data set by its name; the last two stay in memory.

    Args:
        name: ``digits`` (scikit-learn's 1797 8x8 digits, a quarter of them for testing), ``mnist`` or
            ``fashion-mnist`` (``data_dir`` is a torchvision root or a folder with the four IDX files, gzipped or not),
            ``cifar10``, ``cifar100``, ``svhn`` (a torchvision root), or ``image-folder`` (a folder with ``train`` and
            ``test`` or ``val``, a folder for each class in both; images become 32x32 RGB).
        data_dir: see ``name``.

    Raises:
        DataError: if the files are missing or are not what they should be.
    """
    choose("dataset", name, DATASETS)
    if name == "digits":
        return _digits()
    if not data_dir:
        raise DataError(f"data set {name} needs data-dir: the folder where it lies")
    folder = Path(data_dir)
    if name in IDX_FOLDERS:
        return _idx(name, folder)
    try:
        return _image_folder(folder) if name == "image-folder" else _torchvision(name, folder)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"data set {name} in {folder}: {reason}") from None


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = bunch.images[:, None], bunch.target
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    cut = round(DIGITS_TEST_SHARE * len(labels))
    test, train = order[:cut], order[cut:]
    return _standardised(images[train], labels[train], images[test], labels[test], each_pixel=True)


def _idx(name: str, folder: Path) -> Dataset:
    places = [folder, folder / IDX_FOLDERS[name] / "raw", folder / "raw"]
    parts = []
    for part in ("train", "t10k"):
        images = read_idx(_find(name, places, f"{part}-images-idx3-ubyte"), 3)
        labels = read_idx(_find(name, places, f"{part}-labels-idx1-ubyte"), 1)
        if len(images) != len(labels):
            raise DataError(f"data set {name} in {folder}: {len(images)} images with {len(labels)} labels in {part}")
        parts += [images[:, None], labels]
    return _standardised(*parts)


def _find(name: str, places: list[Path], stem: str) -> Path:
    for place in places:
        for path in (place / stem, place / f"{stem}.gz"):
            if path.is_file():
                return path
    raise DataError(f"data set {name}: no {stem} or {stem}.gz in {places[0]} or in {places[1]}")


def _torchvision(name: str, folder: Path) -> Dataset:
    from torchvision import datasets

    if name == "svhn":
        train, test = (datasets.SVHN(folder, split=split) for split in ("train", "test"))
        return _standardised(train.data, train.labels, test.data, test.labels)
    train, test = (getattr(datasets, TORCHVISION[name])(folder, train=part) for part in (True, False))
    images = [np.asarray(part.data).transpose(0, 3, 1, 2) for part in (train, test)]
    return _standardised(images[0], np.asarray(train.targets), images[1], np.asarray(test.targets))


def _image_folder(folder: Path) -> Dataset:
    from torchvision.datasets import ImageFolder

    parts: list[NDArray[np.generic]] = []
    classes: list[str] | None = None
    for names in (("train",), ("test", "val")):
        place = next((folder / name for name in names if (folder / name).is_dir()), None)
        if place is None:
            raise DataError(f"data set image-folder: no folder {' or '.join(names)} in {folder}")
        found = ImageFolder(str(place))
        if classes is not None and found.classes != classes:
            raise DataError(f"data set image-folder: {place} has classes {found.classes} where train has {classes}")
        classes = found.classes
        size = (IMAGE_FOLDER_SIZE, IMAGE_FOLDER_SIZE)
        images = [np.asarray(found.loader(path).convert("RGB").resize(size)) for path, _ in found.samples]
        parts += [np.stack(images).transpose(0, 3, 1, 2), np.asarray(found.targets)]
    return _standardised(*parts)


def _standardised(
    train_inputs: NDArray[np.generic],
    train_labels: NDArray[np.generic],
    test_inputs: NDArray[np.generic],
    test_labels: NDArray[np.generic],
    *,
    each_pixel: bool = False,
) -> Dataset:
    """Each channel, or each pixel of each channel, gets mean 0 and deviation 1 over the training set."""
    train = torch.from_numpy(np.array(train_inputs, np.float32))
    test = torch.from_numpy(np.array(test_inputs, np.float32))
    over = (0,) if each_pixel else (0, 2, 3)
    mean = train.mean(over, keepdim=True)
    deviation = train.std(over, keepdim=True)
    deviation[deviation == 0] = 1  # a pixel that is always empty stays 0
    return Dataset(
        (train - mean) / deviation,
        torch.from_numpy(np.array(train_labels, np.int64)),
        (test - mean) / deviation,
        torch.from_numpy(np.array(test_labels, np.int64)),
        classes=int(max(train_labels.max(), test_labels.max())) + 1,
    )
