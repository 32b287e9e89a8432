"""Folders of images, a folder for each class, as arrays."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrebasin.errors import DataError

from .known import Arrays

TRAIN, TEST = ("train", "training"), ("test", "val", "valid", "validation")
TEST_SHARE = 0.25


def image_folder_arrays(folder: Path, size: int, most: int, seed: int) -> Arrays:
    """Images ``(n, 3, size, size)`` and labels of the training set, then those of the test set.

    Args:
        folder: with ``train`` and ``test`` or ``val`` in it; without them a fixed quarter of all images is for testing.
        size: images become squares of this size.
        most: at most so many of each set; 0 for all.
        seed: of that choice, and of the test images where they have no folder.

    Raises:
        DataError: if there are no images, or the sets have different classes.
    """
    random = np.random.default_rng(seed)
    places = [next((folder / name for name in names if (folder / name).is_dir()), None) for names in (TRAIN, TEST)]
    if places[0] is None and places[1] is None:
        found = _open(folder)
        order = random.permutation(len(found.samples))
        cut = max(1, round(TEST_SHARE * len(order)))
        return *_read(found, order[cut:], size, most), *_read(found, order[:cut], size, most)
    arrays: list[NDArray[np.generic]] = []
    classes: list[str] | None = None
    for place, names in zip(places, (TRAIN, TEST), strict=True):
        if place is None:
            raise DataError(f"data set image-folder: no folder {' or '.join(names)} in {folder}")
        found = _open(place)
        if classes is not None and found.classes != classes:
            raise DataError(f"data set image-folder: {place} has classes {found.classes} where train has {classes}")
        classes = found.classes
        index = np.arange(len(found.samples))
        arrays += _read(found, random.permutation(index) if most else index, size, most)
    return arrays[0], arrays[1], arrays[2], arrays[3]


def _open(place: Path) -> Any:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(place))
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"data set image-folder in {place}: {reason}") from None


def _read(
    found: Any, index: NDArray[np.int64], size: int, most: int
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    index = index[:most] if most else index
    if not len(index):
        raise DataError(f"data set image-folder in {found.root}: too few images to keep some for testing")
    images = np.empty((len(index), 3, size, size), np.uint8)
    for place, number in enumerate(index):
        path, _ = found.samples[number]
        try:
            image = found.loader(path).convert("RGB").resize((size, size))
        except OSError as error:
            raise DataError(f"{path}: not a readable image: {' '.join(str(error).split())}") from None
        images[place] = np.asarray(image).transpose(2, 0, 1)
    return images, np.asarray(found.targets)[index]
