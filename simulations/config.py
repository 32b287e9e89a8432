"""What a simulation is run with: one frozen description, the same in the command, the run config and the messages."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, get_type_hints

from fedrebasin.errors import RebasinError, choose
from fedrebasin.registry import MODELS

from .registries import LOADERS

DATASETS = tuple(LOADERS)
PARTITIONS = ("iid", "dirichlet", "shards", "label-skew")
INITS = ("independent", "shared")
OPTIMIZERS = ("adam", "adamw", "sgd")
DEVICES = ("auto", "cpu", "cuda")
AUGMENTS = ("none", "crop", "crop-flip")


def key(
    default: Any,
    text: str,
    allowed: Collection[str] | None = None,
    *,
    above: float | None = None,
    least: float | None = None,
    several: bool = False,
) -> Any:
    """A key of the run config, which the commands' options, their help and their completion are made from.

    Args:
        default: its value.
        text: what the help says after the allowed values.
        allowed: names to choose from.
        above: bound of a number that it must not reach.
        least: bound of a number that it may reach.
        several: whether ``compare`` takes several values, with commas.
    """
    metadata = {"text": text, "allowed": allowed, "above": above, "least": least, "several": several}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class SimulationConfig:
    """Data, model, clients and local training of one federation.

    Args:
        dataset: a name in ``LOADERS``, or ``package.module:function``, see :func:`load_dataset`.
        data_dir: where the data set lies; "" for digits, and to download the others.
        model: a name in ``fedrebasin.registry.MODELS``.
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

    dataset: str = key("digits", ", or package.module:function that gives (train, test).", LOADERS)
    data_dir: str = key("", "Folder of the data set; digits needs none, others are downloaded if it is not given.")
    model: str = key("mlp", "; -bn: with BatchNorm.", MODELS, several=True)
    width: float = key(
        0, "Units of a hidden layer (mlp) or multiplier; 0: the papers' (512 or 1).", least=0, several=True
    )
    clients: int = key(4, "Number of clients: the federation's nodes.", above=0, several=True)
    partition: str = key("iid", ": how the training set is split.", PARTITIONS, several=True)
    alpha: float = key(0.5, "Concentration of the dirichlet partition; small is uneven.", above=0, several=True)
    init: str = key("independent", ": clients' initialisation.", INITS, several=True)
    rounds: int = key(1, "Rounds of federated training.", above=0)
    local_epochs: int = key(60, "A client's passes over its data in a round.", above=0)
    batch_size: int = key(64, "Examples in a batch of local training.", above=0)
    optimizer: str = key("adam", "; adam has L2 weight decay, adamw decoupled.", OPTIMIZERS)
    learning_rate: float = key(1e-3, "Learning rate of local training.", above=0)
    weight_decay: float = key(3e-3, "Weight decay of local training.", least=0)
    seed: int = key(0, "Seed of partition, initialisations and order of batches.", least=0, several=True)
    device: str = key("auto", ": where clients train.", DEVICES)
    augment: str = key("none", ": how training images are augmented, as in the papers for CIFAR.", AUGMENTS)
    image_size: int = key(0, "Images of an image folder are resized to squares of this size; 0: 32.", least=0)

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for one in fields(self):
            value = _as_kind(one.name, getattr(self, one.name), kinds[one.name])
            object.__setattr__(self, one.name, value)
            allowed, above, least = (one.metadata[bound] for bound in ("allowed", "above", "least"))
            if allowed is not None and not (one.name == "dataset" and ":" in value):
                choose(_kebab(one.name), value, allowed)
            if above is not None and not value > above:
                raise RebasinError(f"{_kebab(one.name)} {value}: it must be positive")
            if least is not None and not value >= least:
                raise RebasinError(f"{_kebab(one.name)} {value}: it must not be negative")
        if self.data_dir and not Path(self.data_dir).is_dir():
            raise RebasinError(f"data-dir {self.data_dir}: there is no such folder")
        if self.dataset == "image-folder" and not self.data_dir:
            raise RebasinError("dataset image-folder needs data-dir: the folder where it lies")

    @classmethod
    def from_flower(cls, values: Mapping[str, Any]) -> Self:
        """From kebab-case keys, as in a run config or a ConfigRecord; keys of other things are passed over.

        Raises:
            RebasinError: if a value is not allowed.
        """
        known = {_kebab(one.name): one.name for one in fields(cls)}
        return cls(**{known[name]: value for name, value in values.items() if name in known})

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
