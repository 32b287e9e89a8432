"""What server and clients of one simulation derive from its config: data, partition, models, initialisations."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fedrebasin import PermutationSpec
from fedrebasin.calibration import batch_norms
from fedrebasin.devices import pick_device
from fedrebasin.models import make_model

from ..config import SimulationConfig
from ..data import Dataset, Indices, from_partitioner, load_dataset, make_partition
from .training import EpochDone, derive_seed, predict, train

# The purposes that seeds are derived for.
INITIALISATION, BATCHES, PARTITION = range(3)
BATCH = 256  # bounds the memory of unfolded convolutions in float64
SERVER = 0  # its place among the seeds; the clients follow


@dataclass(frozen=True)
class Federation:
    """One simulation's world: everything follows from the config (and the partitioner), nothing is random.

    Args:
        config: the simulation.
        partitioner: one of flwr-datasets, instead of the config's partition.
    """

    config: SimulationConfig
    partitioner: Any = None

    @cached_property
    def dataset(self) -> Dataset:
        """The config's data set."""
        return load_dataset(self.config.dataset, self.config.data_dir, self.config.image_size)

    @cached_property
    def parts(self) -> list[Indices]:
        """The training examples of each client."""
        config, labels = self.config, self.dataset.train_labels.numpy()
        if self.partitioner is not None:
            return from_partitioner(labels, config.clients, self.partitioner)
        seed = derive_seed(config.seed, PARTITION)
        return make_partition(labels, config.partition, config.clients, config.alpha, seed)

    @cached_property
    def device(self) -> torch.device:
        """Where clients train and models are judged."""
        return pick_device(self.config.device)

    @cached_property
    def spec(self) -> PermutationSpec:
        """The permutations that the model allows."""
        return PermutationSpec.trace(self.server_model().cpu().eval(), self.example_inputs)

    @property
    def example_inputs(self) -> Tensor:
        """Two samples of zeros."""
        return torch.zeros(2, *self.dataset.sample_shape)

    @cached_property
    def has_batch_norm(self) -> bool:
        """Whether the model keeps running statistics."""
        return bool(batch_norms(self.server_model()))

    def server_batches(self) -> list[tuple[Tensor, Tensor]]:
        """The 20 % of the test set that nothing is judged on: the server's own data, where a matcher needs some."""
        dataset, (held_out, _) = self.dataset, self.dataset.test_split()
        return _in_batches(dataset.test_inputs[held_out], dataset.test_labels[held_out])

    def server_model(self) -> nn.Module:
        """The server's initialisation, on the device."""
        return self._model(SERVER)

    def client_model(self, partition: int, server_round: int) -> nn.Module:
        """What a client trains: its own initialisation in round 1 if ``init`` is independent, else the server's.

        The server's parameters are to be loaded over it in every other case.
        """
        return self._model(1 + partition if self.starts_alone(server_round) else SERVER)

    def starts_alone(self, server_round: int) -> bool:
        """Whether clients pass over the server's parameters in this round."""
        return self.config.init == "independent" and server_round == 1

    def train_client(
        self, model: nn.Module, partition: int, server_round: int, epoch_done: EpochDone | None = None
    ) -> tuple[float, int]:
        """Train on a client's part; the mean loss of the last epoch and the number of examples."""
        index = torch.from_numpy(self.parts[partition])
        inputs, labels = self.dataset.train_inputs[index], self.dataset.train_labels[index]
        return self._train(model, inputs, labels, 1 + partition, server_round, epoch_done), len(index)

    def client_batches(self, partition: int) -> list[tuple[Tensor, Tensor]]:
        """A client's part in batches of inputs and labels, on the device: what it takes sums over."""
        index = torch.from_numpy(self.parts[partition])
        inputs, labels = self.dataset.train_inputs[index], self.dataset.train_labels[index]
        return [(batch.to(self.device), targets.to(self.device)) for batch, targets in _in_batches(inputs, labels)]

    def train_on_all(self, epoch_done: EpochDone | None = None) -> nn.Module:
        """The upper reference: the server's initialisation trained on everything, for one round's epochs."""
        model = self.server_model()
        self._train(model, self.dataset.train_inputs, self.dataset.train_labels, SERVER, 1, epoch_done)
        return model

    def predict(self, model: nn.Module) -> Tensor:
        """Logits on the whole test set, on the CPU."""
        return predict(model, self.dataset.test_inputs)

    def _model(self, place: int) -> nn.Module:
        config = self.config
        seed = derive_seed(config.seed, INITIALISATION, place)
        shape, classes = self.dataset.sample_shape, self.dataset.classes
        return make_model(config.model, shape, classes, config.width or None, seed).to(self.device)

    def _train(
        self,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        place: int,
        server_round: int,
        epoch_done: EpochDone | None,
    ) -> float:
        seed = derive_seed(self.config.seed, BATCHES, place, server_round)
        return train(model, inputs.to(self.device), labels.to(self.device), self.config, seed, epoch_done)


def _in_batches(inputs: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(torch.split(inputs, BATCH), torch.split(labels, BATCH), strict=True))
