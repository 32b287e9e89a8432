"""The papers' augmentation of training images: shifted by up to four pixels, mirrored."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedrebasin.errors import DataError

PADDING = 4


def augmented(images: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """Every image of a batch cropped from itself with a border, and perhaps mirrored.

    The border is zero: in standardised images the mean colour.

    Args:
        images: shape ``(n, channels, height, width)``.
        how: ``none``, ``crop`` or ``crop-flip``.
        generator: on the CPU.

    Returns:
        images of the same shape; with ``none`` the same tensor.

    Raises:
        DataError: if they are no images.
    """
    if how == "none":
        return images
    if images.dim() != 4:
        raise DataError(f"augment {how}: samples of shape {tuple(images.shape[1:])} are no images")
    count, _, height, width = images.shape
    rows, columns = (_windows(count, size, generator) for size in (height, width))
    if how == "crop-flip":
        mirrored = torch.rand(count, generator=generator) < 0.5
        columns[mirrored] = columns[mirrored].flip(1)
    where = torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    bordered = pad(images, (PADDING,) * 4)
    found = bordered.movedim(1, -1)[tuple(index.to(images.device) for index in where)]
    return found.movedim(-1, 1).contiguous()


def _windows(count: int, size: int, generator: torch.Generator) -> Tensor:
    """For each image the positions of its window along one dimension of the bordered image."""
    offsets = torch.randint(0, 2 * PADDING + 1, (count,), generator=generator)
    return offsets[:, None] + torch.arange(size)
