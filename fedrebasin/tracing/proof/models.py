"""A model under a check: random parameters and inputs, and what comes out."""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fedrebasin.errors import SpecError, one_line
from fedrebasin.state import has_mean
from fedrebasin.tracing.program import Usage, preserved, tensors_of
from fedrebasin.tracing.proof.precision import in_precision, never_rounding, running_in
from fedrebasin.tracing.proof.randomising import randomised, varied
from fedrebasin.tracing.proof.trial import Trial


@dataclass(frozen=True)
class ModelRuns:
    """What a check runs: a model with inputs.

    Args:
        usage: the module and how it is run; it, its mode and the random state stay.
        training: whether it is run in train mode, without dropout; otherwise in evaluation mode.
    """

    usage: Usage
    training: bool = False

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a spec has to fit."""
        return tensors_of(self.usage.model)

    @contextmanager
    def started(self, seed: int) -> Iterator[tuple[Trial, dict[str, Tensor], list[Tensor]]]:
        """Random parameters and inputs: how to run them, the state, and its outputs."""
        with preserved(self.usage.model), torch.no_grad():
            _set_mode(self.usage.model, self.training)
            yield _first_that_runs(self.usage, seed)


@dataclass(frozen=True)
class _ModelTrial:
    """A model with inputs, run in one precision."""

    usage: Usage
    precision: torch.dtype
    seed: int

    def outputs(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """What comes out: reals (complex numbers as pairs); whole numbers where nothing else does."""
        # Tables that a model keeps out of its state dict stay as they are, but for the precision.
        model = self.usage.model
        buffers = model.named_buffers(remove_duplicate=False)
        tables = {name: in_precision(buffer, self.precision) for name, buffer in buffers if name not in state}
        with preserved(model), running_in(self.precision):
            torch.manual_seed(self.seed)
            found = self.usage.outputs({**tables, **state})
        real = [torch.view_as_real(one) if one.is_complex() else one for one in found if has_mean(one)]
        return [one.double() for one in real or found]


def _first_that_runs(usage: Usage, seed: int) -> tuple[_ModelTrial, dict[str, Tensor], list[Tensor]]:
    """The model with random parameters and inputs, as far from what was given as it can still be run.

    Raises:
        SpecError: if it cannot be run at all, or no output is finite.
    """
    model = usage.model
    own = Counter(tensor.dtype for tensor in tensors_of(model).values() if tensor.is_floating_point())
    precisions = [torch.float64, *(dtype for dtype, _ in own.most_common(1) if dtype != torch.float64)]
    failures: dict[torch.dtype, Exception] = {}
    ran = False
    for precision in precisions:
        for wide, vary in ((True, True), (False, True), (False, False)):
            generator = torch.Generator().manual_seed(seed)
            given = usage.map(partial(varied, generator=generator)) if vary else usage
            trial = _ModelTrial(given.map(partial(in_precision, dtype=precision)), precision, seed)
            drawn = randomised(model, generator, wide=wide)
            state = {key: in_precision(tensor, precision) for key, tensor in drawn.items()}
            try:
                reference = trial.outputs(state)
            except Exception as error:  # whatever a model raises on these parameters and inputs
                failures.setdefault(precision, error)
                continue
            ran = True
            if any(bool(torch.isfinite(part).any()) for part in reference):
                if torch.float64 in failures and precision != torch.float64:
                    warnings.warn(
                        f"{type(model).__name__} cannot be run in float64 ({one_line(failures[torch.float64])}): the "
                        f"spec is checked in {precision}, where changes below {never_rounding(precision):g} may pass",
                        stacklevel=2,
                    )
                return trial, state, reference
    if ran:
        raise SpecError(
            "the model's outputs are not finite (or there are none) for random parameters, so that nothing can be "
            "checked: give other example inputs, or trace with check=False"
        )
    raise SpecError(
        f"{type(model).__name__} cannot be run with random parameters, as specs are checked: "
        f"{one_line(failures[precisions[-1]])}; trace it with check=False, and try the spec on the model yourself"
    ) from failures[precisions[-1]]


def _set_mode(model: nn.Module, training: bool) -> None:
    model.train(training)
    for module in model.modules():
        # Dropout picks units by their place: it is the same function only in distribution.
        if "Drop" in type(module).__name__ or isinstance(module, nn.MultiheadAttention | nn.RNNBase):
            module.training = False
