"""The recipe of one trained model: everything that decides its weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ..config import SimulationConfig
from ..data import Dataset
from ..training import derive_seed

INITIALISATION, BATCHES, CHILDREN, HALVES = range(4)


@dataclass(frozen=True)
class Recipe:
    """How one model is trained; the same recipe gives the same model.

    Args:
        dataset: name of the data set.
        model: name of the architecture.
        width: units or multiplier, 0 for the papers' width.
        seed: of the initialisation and, before ``spawn``, of the order of the batches.
        epochs: in all.
        learning_rate: constant.
        weight_decay: an L2 term for adam and sgd, decoupled for adamw.
        optimizer: adam, adamw, sgd, or lbfgs, a quasi-Newton method on all examples at once.
        batch_size: examples in a step.
        examples: of the training set, 0 for all of it.
        part: "" for all examples; "first" or "second" for the halves of a biased split (Git Re-Basin, 5.4); "half" for
            a random half that follows from the seed (Git Re-Basin, Figure 13).
        order: of the batches after ``spawn``; None for one that follows from the seed.
        spawn: the epoch after which the order of the batches is that of ``order``; the optimizer starts anew there.
        keep: epochs after which the model is kept besides the last; 0 is the initialisation.
    """

    dataset: str = "digits"
    model: str = "mlp"
    width: float = 0
    seed: int = 0
    epochs: int = 60
    learning_rate: float = 1e-3
    weight_decay: float = 3e-3
    optimizer: str = "adam"
    batch_size: int = 64
    examples: int = 0
    part: str = ""
    order: int | None = None
    spawn: int = 0
    keep: tuple[int, ...] = ()

    def digest(self, data: Dataset) -> str:
        """A name for the file that the model trained on these data is kept in: other data, another file."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        for tensor in (data.train_inputs, data.train_labels):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:20]

    def member(self, seed: int, number: int = 0) -> Recipe:
        """The recipe of model ``number`` of a seed's set."""
        return replace(self, seed=1000 * seed + number)

    def config(self, epochs: int) -> SimulationConfig:
        """The settings of a training of so many epochs by stochastic gradients."""
        return SimulationConfig(
            batch_size=self.batch_size,
            local_epochs=epochs,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            optimizer=self.optimizer,
        )

    def part_of(self, labels: Tensor) -> Tensor:
        """The training examples, as indices; the biased halves hold 20 % of one half of the classes, 80 % of the other.

        Args:
            labels: of the whole training set, shape ``(n,)``.
        """
        index = torch.arange(len(labels))[: self.examples or None]
        if not self.part:
            return index
        if self.part == "half":
            generator = torch.Generator().manual_seed(derive_seed(self.seed, HALVES))
            return index[torch.randperm(len(index), generator=generator)[: len(index) // 2].sort().values]
        low = labels[index] < (int(labels.max()) + 1) / 2
        rank = torch.zeros(len(index), dtype=torch.float64)
        for half in (low, ~low):
            rank[half] = torch.linspace(0, 1, int(half.sum()) + 1, dtype=torch.float64)[:-1]
        share = torch.where(low, 0.2, 0.8)
        return index[rank < share] if self.part == "first" else index[rank >= share]


NO_DECAY = Recipe(weight_decay=0.0)
#: Git Re-Basin, A.3: the MLP, and (but for warm-up and cosine decay) VGG and ResNet-20 on CIFAR-10.
PAPER_MLP = Recipe("mnist", width=512, epochs=100, weight_decay=0.0)
PAPER_CONV = Recipe("cifar10", optimizer="sgd", learning_rate=0.1, weight_decay=5e-4, batch_size=128, epochs=250)
