"""Data for commands: a data set by name, a folder of images, or a function that returns data sets."""

from pathlib import Path

import torch
from torch import Tensor

from fedrebasin.errors import DataError, nearby
from fedrebasin.files import Data

BATCH = 256
SEED = 20230501


def open_data(name: str, data_dir: str, image_size: int, examples: int, device: torch.device) -> Data:
    """Load data and split it.

    Args:
        name: of a data set, a folder of images (with ``train`` and ``test`` or ``val`` in it, or with classes), or
            ``package.module:function`` that returns a training and a test set.
        data_dir: folder of a named data set.
        image_size: images of a folder become squares of this size.
        examples: at most so many training examples, and test examples; they are drawn in a fixed way.
        device: where the batches lie.

    Raises:
        DataError: if there is no such data.
    """
    from fedrebasin.simulations import load_dataset

    if Path(name).is_dir():
        name, data_dir = "image-folder", name
    elif "/" in name:
        raise DataError(f"data {name}: there is no such folder{nearby(Path(name))}")
    dataset = load_dataset(name, data_dir, image_size, examples)
    held_out, reported = dataset.test_split()

    def batches(inputs: Tensor, labels: Tensor, index: Tensor, most: int) -> list[tuple[Tensor, Tensor]]:
        chosen = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(SEED))[:most]]
        parts = torch.split(chosen, BATCH)
        return [(inputs[part].to(device), labels[part].to(device)) for part in parts]

    every = torch.arange(len(dataset.train_labels))
    return Data(
        name if name != "image-folder" else data_dir,
        batches(dataset.train_inputs, dataset.train_labels, every, examples),
        batches(dataset.test_inputs, dataset.test_labels, held_out, examples),
        batches(dataset.test_inputs, dataset.test_labels, reported, examples),
        ("" if dataset.train_inputs.is_floating_point() else "int64:") + ",".join(map(str, (2, *dataset.sample_shape))),
    )
