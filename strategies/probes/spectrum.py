"""A probe of spectra: the stable rank of weights, and of what the layers read."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

from torch import Tensor, nn

from fedrebasin.analysis import Spectrum, activation_spectra, layers_of, weight_spectra
from fedrebasin.devices import at_hand, move
from fedrebasin.errors import RebasinError
from fedrebasin.state import State

from ..round import Round, need_models
from .pairs import check_batches
from .schedule import Schedule

#: What taking one spectrum costs beside its multiplications, in multiplications.
_OVERHEAD = 1e6


@dataclass(frozen=True, eq=False)
class _Task:
    """Spectra that are taken together: those of one layer's weights, or of all layers' inputs."""

    name: str
    state: State
    layer: str | None

    @property
    def cost(self) -> float:
        """In multiplications; inputs are compared with inputs only, of models of one architecture."""
        if self.layer is None:
            return 1.0
        shapes = [tensor.shape for tensor in self.own.values() if tensor.dim() >= 2]
        sizes = [(shape[0], math.prod(shape[1:])) for shape in shapes]
        return _OVERHEAD + sum(rows * columns * min(rows, columns) for rows, columns in sizes)

    @property
    def own(self) -> dict[str, Tensor]:
        """The layer's tensors, also those that a weight is computed from (weight norm)."""
        prefix = f"{self.layer}." if self.layer else ""
        return {key: tensor for key, tensor in self.state.items() if key.startswith(prefix)}

    def spectra(self, model: nn.Module, batches: Iterable[Any] | None, round_: Round) -> Mapping[str, Spectrum]:
        """By key of the state dict, or by layer."""
        if self.layer is not None:
            return weight_spectra(model, move(self.own, round_.device), (self.layer,))
        assert batches is not None
        with at_hand(model, self.state, round_.device):
            return activation_spectra(model, move(self.state, round_.device), batches)


@dataclass(frozen=True)
class SpectrumProbe(Schedule):
    """The stable rank of every layer's weights: of the aggregate, and the mean over the clients (LLFC, Figure 20).

    With batches also that of what every layer reads, examples against units (LLFC, Figures 21 and 22). Of the clients
    it is their aligned models that are looked at, where there are some: permuting units changes no singular value.

    Args:
        model: tells which tensors are weights of layers; neither its parameters nor its mode nor its device change.
        clients: how many clients' models to look at.
        batches: on the server, with or without labels, a list or a DataLoader.

    Raises:
        RebasinError: if ``clients`` is negative, or the batches can be read only once.
    """

    model: nn.Module
    clients: int = 4
    batches: Iterable[Any] | None = None
    needs_whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clients < 0:
            raise RebasinError(f"clients {self.clients}: 0 looks at the aggregate only, and less cannot be")
        check_batches(self.batches, type(self).__name__)

    def __call__(self, round_: Round) -> Mapping[str, float]:
        """Stable ranks, and how far the time went.

        Returns:
            ``stable-rank-KEY`` of the aggregate and ``stable-rank-clients-KEY`` by key of the state dict,
            ``stable-rank-inputs-LAYER`` and ``stable-rank-inputs-clients-LAYER``. First comes the aggregate, then one
            client after the other: ``spectra`` counts the layers (of weights) and models (of inputs) that were done,
            ``spectra-left-out`` those for which there was no time.

        Raises:
            CalibrationError: if clients are to be looked at and the round does not hold their models.
        """
        if not self.due(round_):
            return {}
        tasks = list(self._tasks(round_))
        found: dict[str, list[float]] = defaultdict(list)
        done = 0
        for task in self.affordable(tasks, lambda task: task.cost, lambda task: task.layer is None):
            for key, spectrum in task.spectra(self.model, self.batches, round_).items():
                found[f"stable-rank-{task.name}{key}"].append(spectrum.stable_rank)
            done += 1
        ranks = {name: fmean(values) for name, values in found.items()}
        return {**ranks, "spectra": float(done), "spectra-left-out": float(len(tasks) - done)}

    def _tasks(self, round_: Round) -> Iterator[_Task]:
        states = need_models(round_, f"{type(self).__name__} with clients > 0") if self.clients else []
        layers = layers_of(self.model)
        for name, state in [("", round_.state), *(("clients-", state) for state in states[: self.clients])]:
            yield from (_Task(name, state, layer) for layer in layers)
            if self.batches is not None:
                yield _Task(f"inputs-{name}", state, None)
