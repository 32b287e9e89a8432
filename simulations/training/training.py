"""Local training and evaluation: deterministic, and independent of where and in which order clients run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..config import SimulationConfig
from .augment import augmented

AUGMENTATION = 1  # the purpose of a seed
EpochDone = Callable[[int], None]
EVALUATION_BATCH = 2048
# One thread: as many threads everywhere give the same rounding in every engine, and for the small models of the
# simulations more of them cost more than they save.
THREADS = 1


@contextmanager
def reproducible() -> Iterator[None]:
    """Fix what rounding depends on besides the seeds: the number of threads and cuDNN's choice of kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
            yield
    finally:
        torch.set_num_threads(before)


def derive_seed(*path: int) -> int:
    """A seed for one purpose: ``derive_seed(seed, purpose, node, round)``; different paths give independent seeds."""
    return int(np.random.SeedSequence(path).generate_state(1)[0])


def train(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    config: SimulationConfig,
    seed: int,
    epoch_done: EpochDone | None = None,
) -> float:
    """Train the model in place, on the device of its parameters, for ``config.local_epochs``.

    Args:
        model: starts from the parameters that it has.
        inputs: shape ``(n, ...)``, on the model's device.
        labels: shape ``(n,)``, likewise.
        config: optimizer, learning rate, weight decay, batch size, augmentation.
        seed: of the order of the batches.
        epoch_done: called after each epoch with its number, from 1.

    Returns:
        the mean loss of the last epoch.
    """
    optimizer = _optimizer(model, config)
    generator = torch.Generator().manual_seed(seed)
    shifts = torch.Generator().manual_seed(derive_seed(seed, AUGMENTATION))
    count, size = len(labels), config.batch_size
    # a rest of one example cannot be normalised by BatchNorm
    starts = [start for start in range(0, count, size) if count - start > 1 or count == 1]
    model.train()
    total = torch.zeros((), device=inputs.device)
    for epoch in range(config.local_epochs):
        order = torch.randperm(count, generator=generator).to(inputs.device)
        total.zero_()
        for start in starts:
            batch = order[start : start + size]
            optimizer.zero_grad()
            loss = cross_entropy(model(augmented(inputs[batch], config.augment, shifts)), labels[batch])
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.detach()
        if epoch_done is not None:
            epoch_done(epoch + 1)
    return float(total) / len(starts)


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits ``(n, classes)`` on the CPU."""
    device = next(model.parameters()).device
    model.eval()
    return torch.cat([model(batch.to(device)).cpu() for batch in torch.split(inputs, EVALUATION_BATCH)])


def _optimizer(model: nn.Module, config: SimulationConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay, fused=True)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=decay, fused=True)
