"""What a simulation is run with: one frozen description, the same in the command, the run config and the messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from fedrebasin.errors import RebasinError, choose
from fedrebasin.models import MODELS

DATASETS = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "image-folder")
PARTITIONS = ("iid", "dirichlet", "shards", "label-skew")
INITS = ("independent", "shared")
OPTIMIZERS = ("adam", "adamw", "sgd")
DEVICES = ("auto", "cpu", "cuda")
AUGMENTS = ("none", "crop", "crop-flip")


@dataclass(frozen=True)
class SimulationConfig:
    """Data, model, clients and local training of one federation.

    Args:
        dataset: one of ``DATASETS``, or ``package.module:function``, see :func:`load_dataset`.
        data_dir: where the data set lies; "" for digits, and to download the others.
        model: a name of ``fedrebasin.models.MODELS``.
        width: units of each hidden layer (mlp) or the multiplier; 0 for the papers' width.
        clients: number of clients.
        partition: how the training set is split, one of ``PARTITIONS``.
        alpha: concentration of the Dirichlet partition; small is uneven.
        init: ``independent`` (in round 1 every client starts from its own initialisation) or ``shared`` (from the
            server's).
        rounds: of federated training.
        local_epochs: passes of a client over its data in each round.
        batch_size: of local training.
        optimizer: ``adam`` (its weight decay is an L2 term, as in LEWC, F.10), ``adamw`` (decoupled) or ``sgd``
            (momentum 0.9).
        learning_rate: constant.
        weight_decay: see ``optimizer``.
        seed: of everything random: partition, initialisations, order of the batches.
        device: where clients train: ``auto`` takes the GPU where there is one.
        augment: of training images: ``crop`` (padded by 4 and cropped at random) or ``crop-flip`` (mirrored at
            random, too; the papers' for CIFAR).
        image_size: of the images of an image folder; 0 for 32.

    Raises:
        RebasinError: naming the option, what it was and what is allowed.
    """

    dataset: str = "digits"
    data_dir: str = ""
    model: str = "mlp"
    width: float = 0
    clients: int = 4
    partition: str = "iid"
    alpha: float = 0.5
    init: str = "independent"
    rounds: int = 1
    local_epochs: int = 60
    batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 3e-3
    seed: int = 0
    device: str = "auto"
    augment: str = "none"
    image_size: int = 0

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _as_kind(name, getattr(self, name), kind))
        if ":" not in self.dataset:
            choose("dataset", self.dataset, DATASETS)
        choose("augment", self.augment, AUGMENTS)
        choose("model", self.model, MODELS)
        choose("partition", self.partition, PARTITIONS)
        choose("init", self.init, INITS)
        choose("optimizer", self.optimizer, OPTIMIZERS)
        choose("device", self.device, DEVICES)
        for name in ("clients", "rounds", "local_epochs", "batch_size", "alpha", "learning_rate"):
            if not getattr(self, name) > 0:
                raise RebasinError(f"{_kebab(name)} {getattr(self, name)}: it must be positive")
        for name in ("width", "weight_decay", "seed", "image_size"):
            if not getattr(self, name) >= 0:
                raise RebasinError(f"{_kebab(name)} {getattr(self, name)}: it must not be negative")
        if self.data_dir and not Path(self.data_dir).is_dir():
            raise RebasinError(f"data-dir {self.data_dir}: there is no such folder")
        if self.dataset == "image-folder" and not self.data_dir:
            raise RebasinError("dataset image-folder needs data-dir: the folder where it lies")

    @staticmethod
    def from_flower(values: Mapping[str, Any]) -> SimulationConfig:
        """From kebab-case keys, as in a run config or a ConfigRecord; keys of other things are passed over.

        Raises:
            RebasinError: if a value is not allowed.
        """
        known = {_kebab(field.name): field.name for field in fields(SimulationConfig)}
        return SimulationConfig(**{known[key]: value for key, value in values.items() if key in known})

    def to_flower(self) -> dict[str, str | int | float]:
        """With kebab-case keys, for a run config or a ConfigRecord."""
        return {_kebab(name): value for name, value in asdict(self).items()}


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _as_kind(name: str, value: Any, kind: type) -> Any:
    """The value in its field's type, so that 512 and 512.0 describe the same simulation."""
    if kind is str and isinstance(value, str):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is not str and number and (kind is float or value == int(value)):
        return kind(value)
    expected = {str: "a text", int: "a whole number", float: "a number"}[kind]
    raise RebasinError(f"{_kebab(name)} {value!r}: it must be {expected}")
