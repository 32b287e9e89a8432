"""Data sets as four tensors; known ones are standardised by the mean and deviation of the training set."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedrebasin import DataError, RebasinError
from fedrebasin.registry import make

from ..registries import LOADERS
from .image_folder import image_folder_arrays
from .known import Arrays, named_arrays

DIGITS_TEST_SHARE = 0.25
BETA_SHARE = 0.2
SPLIT_SEED = 20230501  # of the fixed splits, which no simulation's seed changes
IMAGE_FOLDER_SIZE = 32


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs, of images ``(n, channels, height, width)``, as float32, labels ``(n,)`` as int64.

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
    def sample_shape(self) -> tuple[int, ...]:
        """``(channels, height, width)`` of images."""
        return tuple(self.train_inputs.shape[1:])

    def test_split(self) -> tuple[Tensor, Tensor]:
        """Indices of the test set: the 20 % that beta is fitted on, and the 80 % that is reported (LEWC, section 3.1).

        The split is the same whatever the seed of the simulation.
        """
        order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(len(self.test_labels)))
        cut = round(BETA_SHARE * len(order))
        return order[:cut], order[cut:]


@lru_cache(maxsize=2)
def load_dataset(name: str, data_dir: str = "", image_size: int = 0, most: int = 0) -> Dataset:
    """A data set by its name; the last two stay in memory.

    Args:
        name: of ``LOADERS``: ``digits`` (scikit-learn's 1797 8x8 digits, a quarter of them for testing), ``mnist`` or
            ``fashion-mnist`` (``data_dir`` is a torchvision root or a folder with the four IDX files, gzipped or not),
            ``cifar10``, ``cifar100``, ``svhn`` (a torchvision root), ``image-folder`` (a folder for each class,
            inside of ``train`` and ``test`` or ``val`` where there are such), or one that was registered; or
            ``package.module:function``. Such a function or a registered one returns a training and a test set, each a
            data set of inputs and labels or a pair of arrays, which are taken as they are, or a :class:`Dataset`; it is
            given those of the other arguments that it has as parameters without a default.
        data_dir: see ``name``. "" downloads what is not in the folder of downloads yet, ``~/.cache/fedrebasin`` or
            what ``FEDREBASIN_DATA`` names, unless ``FEDREBASIN_OFFLINE`` is set.
        image_size: of an image folder's images, which become squares; 0 for 32.
        most: at most so many examples of each set of an image folder; 0 for all.

    Raises:
        DataError: if the files are missing or are not what they should be.
    """
    settings = {"data_dir": lambda: data_dir, "image_size": lambda: image_size, "most": lambda: most}
    load = None if ":" in name else LOADERS.pick(name)
    try:
        found = make(f"data set {name}", _function(name) if load is None else load, settings)
        if isinstance(found, Dataset):
            return found
        train, test = found
    except RebasinError:
        raise
    except Exception as error:
        function = name.partition(":")[2] or name
        reason = " ".join(str(error).split())
        raise DataError(
            f"data {name}: {function}() does not give (train, test): {type(error).__name__}: {reason}"
        ) from None
    train_inputs, train_labels = _as_tensors(name, train)
    test_inputs, test_labels = _as_tensors(name, test)
    if train_inputs.shape[1:] != test_inputs.shape[1:]:
        shapes = f"{tuple(train_inputs.shape[1:])} for training and {tuple(test_inputs.shape[1:])} for testing"
        raise DataError(f"data {name}: samples have shapes {shapes}")
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    return Dataset(train_inputs, train_labels, test_inputs, test_labels, classes)


def _function(name: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return resolve_name(name)


def _as_tensors(name: str, part: Any) -> tuple[Tensor, Tensor]:
    """Inputs ``(n, ...)`` as float32 and labels ``(n,)``, from a pair of arrays or a data set of samples.

    Whole numbers with a label each, ``(n, places)`` both, are tokens, and stay what they are.
    """
    try:
        if isinstance(part, tuple | list) and len(part) == 2 and len(part[0]) == len(part[1]):
            inputs, labels = (torch.as_tensor(np.asarray(array)) for array in part)
        else:
            samples = [part[place] for place in range(len(part))]
            inputs = torch.stack([torch.as_tensor(np.asarray(sample[0])) for sample in samples])
            labels = torch.stack([torch.as_tensor(np.asarray(sample[1])) for sample in samples])
        labels = labels.to(torch.int64)
        tokens = labels.dim() > 1 and not inputs.is_floating_point()
        if (
            labels.shape != inputs.shape[: 2 if tokens else 1]
            or inputs.dim() < 2
            or not len(labels)
            or labels.min() < 0
        ):
            raise DataError(f"inputs of shape {tuple(inputs.shape)} with labels of shape {tuple(labels.shape)}")
        return (inputs.to(torch.int64) if tokens else inputs.float()).contiguous(), labels
    except Exception as error:
        reason = " ".join(str(error).split())
        raise DataError(f"data {name}: not a data set of inputs with a class each: {reason}") from None


def digits() -> Dataset:
    """scikit-learn's, every pixel standardised."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = bunch.images[:, None], bunch.target
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    cut = round(DIGITS_TEST_SHARE * len(labels))
    test, train = order[:cut], order[cut:]
    return _standardised((images[train], labels[train], images[test], labels[test]), each_pixel=True)


def image_folder(data_dir: str, image_size: int, most: int) -> Dataset:
    """A folder of images by class.

    Raises:
        DataError: if there is none.
    """
    if not data_dir:
        raise DataError("data set image-folder needs data-dir: the folder where it lies")
    return _standardised(image_folder_arrays(Path(data_dir), image_size or IMAGE_FOLDER_SIZE, most, SPLIT_SEED))


def _named(name: str) -> Callable[[str], Dataset]:
    def load(data_dir: str) -> Dataset:
        return _standardised(named_arrays(name, data_dir))

    return load


mnist, fashion_mnist, cifar10, cifar100, svhn = map(_named, ("mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"))


def _standardised(arrays: Arrays, each_pixel: bool = False) -> Dataset:
    """Each channel, or each pixel of each channel, gets mean 0 and deviation 1 over the training set."""
    train, test = (torch.from_numpy(np.array(inputs, np.float32)) for inputs in arrays[::2])
    train_labels, test_labels = (torch.from_numpy(np.array(labels, np.int64)) for labels in arrays[1::2])
    over = (0,) if each_pixel else (0, 2, 3)
    mean = train.mean(over, keepdim=True)
    deviation = train.std(over, keepdim=True)
    deviation[deviation == 0] = 1  # a pixel that is always empty stays 0
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    return Dataset((train - mean) / deviation, train_labels, (test - mean) / deviation, test_labels, classes)
