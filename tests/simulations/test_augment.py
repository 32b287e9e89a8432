"""Augmentation: windows of the bordered image, mirrored or not; the labels' images stay recognisable."""

import pytest
import torch
from fedrebasin.simulations.training.augment import PADDING, augmented
from fedrebasin.simulations.training.training import train

from fedrebasin import DataError
from fedrebasin.simulations import SimulationConfig, load_dataset


def batch(count=40):
    return torch.rand(count, 2, 7, 5, generator=torch.Generator().manual_seed(0)) + 1


def crops(image):
    bordered = torch.nn.functional.pad(image, (PADDING,) * 4)
    return [bordered[:, i : i + 7, j : j + 5] for i in range(2 * PADDING + 1) for j in range(2 * PADDING + 1)]


def test_nothing_is_done_without_augmentation():
    images, generator = batch(), torch.Generator()
    before = generator.get_state()
    assert augmented(images, "none", generator) is images
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("how", ["crop", "crop-flip"])
def test_every_image_is_a_window_of_itself_with_a_border(how):
    images = batch()
    result = augmented(images, how, torch.Generator().manual_seed(1))
    assert result.shape == images.shape
    mirrored = 0
    for image, found in zip(images, result, strict=True):
        straight = any(torch.equal(found, crop) for crop in crops(image))
        flipped = any(torch.equal(found.flip(-1), crop) for crop in crops(image))
        assert straight or flipped
        mirrored += flipped and not straight
    assert (mirrored > 5) == (how == "crop-flip")
    assert torch.equal(result, augmented(images, how, torch.Generator().manual_seed(1)))
    assert not torch.equal(result, augmented(images, how, torch.Generator().manual_seed(2)))


def test_what_is_no_image_is_refused():
    with pytest.raises(DataError, match="are no images"):
        augmented(torch.ones(3, 64), "crop", torch.Generator())


def test_training_uses_it_and_only_training():
    digits = load_dataset("digits")
    seen = []

    class Watch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(64, 10)

        def forward(self, inputs):
            seen.append(inputs)
            return self.head(inputs.flatten(1))

    inputs, labels = digits.train_inputs[:32], digits.train_labels[:32]
    for augment in ("none", "crop"):
        config = SimulationConfig(local_epochs=2, batch_size=32, augment=augment)
        train(Watch(), inputs, labels, config, seed=0)
    plain, shifted = seen[:2], seen[2:]
    assert all(torch.allclose(batch.sum(0), inputs.sum(0), atol=1e-4) for batch in plain)
    assert not any(torch.allclose(batch.sum(0), inputs.sum(0), atol=1e-4) for batch in shifted)
    assert not torch.equal(*shifted)
