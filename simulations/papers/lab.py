"""The lab: data, architectures, and models that are trained once and kept on disk."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from fedrebasin.analysis import apply_mask, interpolate
from fedrebasin.devices import pick_device
from fedrebasin.errors import DataError
from fedrebasin.models import make_model
from fedrebasin.spec import PermutationSpec
from fedrebasin.state import State
from fedrebasin.writing import written_atomically

from ..data import Dataset, load_dataset
from ..training import derive_seed, reproducible, train
from .quasi_newton import LBFGS, quasi_newton
from .recipe import BATCHES, CHILDREN, INITIALISATION, Recipe

Batches = list[tuple[Tensor, Tensor]]
Progress = Callable[[str, int, int], None]
BATCH = 1024
SECONDS = "cpu-seconds"
MIN_HELD_OUT = 500
MATCHED_ON = 1000


@dataclass(frozen=True)
class Lab:
    """Where experiments get their data and models from.

    Args:
        folder: trained models are kept here; one that is there is not trained again.
        data_dir: where data sets other than digits lie.
        device: ``auto`` takes the GPU where there is one.
        progress: called with who is at work, how many epochs are done, and of how many.
        test_examples: at most this many test examples are used, 0 for all.
        costs: CPU seconds that models taken from the disk once took to train, by file; filled as they are used.
    """

    folder: Path
    data_dir: str = ""
    device: str = "auto"
    progress: Progress = lambda who, done, total: None
    test_examples: int = 2000
    costs: dict[str, float] = field(default_factory=dict)

    def data(self, name: str) -> Dataset:
        """A data set.

        Raises:
            DataError: if its files are missing.
        """
        return load_dataset(name, "" if name == "digits" else self.data_dir)

    def model(self, recipe: Recipe) -> nn.Module:
        """The architecture, with the recipe's initialisation, in evaluation mode."""
        data = self.data(recipe.dataset)
        seed = derive_seed(recipe.seed, INITIALISATION)
        model = make_model(recipe.model, data.sample_shape, data.classes, recipe.width or None, seed)
        return model.to(pick_device(self.device)).eval()

    def spec(self, recipe: Recipe) -> PermutationSpec:
        """The permutations that the architecture allows."""
        shape = self.data(recipe.dataset).sample_shape
        return _spec(recipe.model, shape, self.data(recipe.dataset).classes, recipe.width)

    def trained(self, recipe: Recipe) -> State:
        """The model at the end of its training."""
        return self.checkpoints(recipe)[recipe.epochs]

    def checkpoints(self, recipe: Recipe) -> dict[int, State]:
        """The model after each kept epoch and at the end, from the disk if it is there."""
        return self._kept(recipe.digest(self.data(recipe.dataset)), lambda: self._train(recipe))

    def retrained(self, recipe: Recipe, start: State, mask: State | None = None, label: str = "") -> State:
        """A state dict trained for the recipe's epochs, pruned weights staying zero; kept on disk like all models.

        Args:
            recipe: data, optimizer, epochs, and the order of the batches.
            start: to train from.
            mask: ones and zeros for the tensors that are pruned.
            label: for the progress bar.
        """
        digest = hashlib.sha256(recipe.digest(self.data(recipe.dataset)).encode())
        for part in (start, mask or {}):
            for key, tensor in sorted(part.items()):
                digest.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())

        def train() -> dict[int, State]:
            model = self.model(recipe)
            model.load_state_dict(dict(start))
            masked = _with_masks(model, mask or {})
            self._fit(model, recipe, recipe.epochs, label or "retraining", lambda epoch: None)
            for module, name in masked:
                prune.remove(module, name)  # type: ignore[no-untyped-call]
            state = model.state_dict()
            return {0: apply_mask(state, mask) if mask else state}

        return self._kept(digest.hexdigest()[:20], train)[0]

    def test(self, dataset: str) -> Batches:
        """The part of the test set that is reported, in batches on the device."""
        return self._test_part(dataset, 1)

    def held_out(self, dataset: str) -> Batches:
        """The part of the test set that inverse temperatures are fitted on: 20 % of it.

        Where that is little (digits) it is the whole test set, as is the reported part: a net that errs on none of few
        examples has no finite best temperature, while one parameter overfits n examples by about 1 / (2 n) nats.
        """
        return self._test_part(dataset, 0)

    def training_batches(self, recipe: Recipe) -> Batches:
        """The first examples that the recipe trains on, for what needs data besides test data: matchers, BatchNorm."""
        data = self.data(recipe.dataset)
        return self._batches(data.train_inputs, data.train_labels, recipe.part_of(data.train_labels)[:MATCHED_ON])

    def child(self, recipe: Recipe, order: int) -> State:
        """The end of a training whose first ``recipe.spawn`` epochs all others of the seed share."""
        return self.trained(replace(recipe, order=order))

    def _train(self, recipe: Recipe) -> dict[int, State]:
        model = self.model(recipe)
        kept: dict[int, State] = {0: _copy(model)} if 0 in recipe.keep else {}
        label = f"{recipe.dataset} {recipe.model} {recipe.width:g} seed {recipe.seed}"

        def keep(epoch: int) -> None:
            if recipe.spawn + epoch in (*recipe.keep, recipe.epochs):
                kept[recipe.spawn + epoch] = _copy(model)

        if recipe.spawn > 0:
            alone = replace(recipe, spawn=0, order=None, epochs=recipe.spawn, keep=())
            model.load_state_dict(dict(self.trained(alone)))
        self._fit(model, recipe, recipe.epochs - recipe.spawn, label, keep)
        return kept or {recipe.epochs: _copy(model)}

    def _fit(self, model: nn.Module, recipe: Recipe, epochs: int, label: str, done: Callable[[int], None]) -> None:
        purpose = (BATCHES,) if recipe.order is None else (CHILDREN, recipe.order)
        data = self.data(recipe.dataset)
        index = recipe.part_of(data.train_labels)
        device = pick_device(self.device)

        def report(epoch: int) -> None:
            done(epoch)
            self.progress(label, epoch, epochs)

        if epochs:
            with reproducible():
                inputs, labels = data.train_inputs[index].to(device), data.train_labels[index].to(device)
                if recipe.optimizer == LBFGS:
                    quasi_newton(model, inputs, labels, epochs, recipe.weight_decay, report)
                else:
                    train(model, inputs, labels, recipe.config(epochs), derive_seed(recipe.seed, *purpose), report)
        model.eval()

    def _test_part(self, dataset: str, part: int) -> Batches:
        data = self.data(dataset)
        split = data.test_split()
        index = split[part] if len(split[0]) >= MIN_HELD_OUT else torch.cat(split)
        return self._batches(data.test_inputs, data.test_labels, index[: self.test_examples or None])

    def _batches(self, inputs: Tensor, labels: Tensor, index: Tensor) -> Batches:
        device = pick_device(self.device)
        return [(inputs[part].to(device), labels[part].to(device)) for part in torch.split(index, BATCH)]

    def _kept(self, name: str, train: Callable[[], dict[int, State]]) -> dict[int, State]:
        """Models by epoch from the file of that name, which is written if it is not there."""
        file = self.folder / f"{name}.safetensors"
        if not file.is_file():
            started = time.process_time()
            found = train()
            tensors = {f"{epoch}|{key}": tensor for epoch, state in found.items() for key, tensor in state.items()}
            self._save(file, tensors, time.process_time() - started)
        return self._load(file)

    def _save(self, file: Path, tensors: dict[str, Tensor], seconds: float) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        with written_atomically(file) as partial:
            save_file(plain, partial, metadata={SECONDS: str(seconds)})
        self.costs[file.name] = 0.0  # counted in this process's time

    def _load(self, file: Path) -> dict[int, State]:
        found: dict[int, dict[str, Tensor]] = {}
        try:
            tensors = load_file(file, device=str(pick_device(self.device)))
            if file.name not in self.costs:
                with safe_open(file, "pt") as opened:
                    self.costs[file.name] = float((opened.metadata() or {}).get(SECONDS, 0.0))
        except Exception as error:
            raise DataError(f"{file}: not a kept model, delete it to train it again: {error}") from None
        for name, tensor in tensors.items():
            epoch, _, key = name.partition("|")
            found.setdefault(int(epoch), {})[key] = tensor
        return dict(sorted(found.items()))


@lru_cache(maxsize=32)
def _spec(name: str, shape: Sequence[int], classes: int, width: float) -> PermutationSpec:
    model = make_model(name, shape, classes, width or None, 0).eval()
    return PermutationSpec.trace(model, torch.zeros(2, *shape))


def _copy(model: nn.Module) -> State:
    return {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}


def _with_masks(model: nn.Module, mask: State) -> list[tuple[nn.Module, str]]:
    masked = []
    modules = dict(model.named_modules())
    for key, tensor in mask.items():
        path, _, name = key.rpartition(".")
        prune.custom_from_mask(modules[path], name, tensor)  # type: ignore[no-untyped-call]
        masked.append((modules[path], name))
    return masked


def halfway(a: State, b: State) -> State:
    """The mean of two models."""
    return interpolate(a, b, 0.5)
