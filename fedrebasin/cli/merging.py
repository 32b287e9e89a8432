"""The work of ``fedrebasin merge``: match, average in pieces, calibrate, write."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fedrebasin
from fedrebasin.calibration import batch_norms, fit_temperature, recalibrate_batch_norm
from fedrebasin.cli.bars import Bars
from fedrebasin.cli.data import Data
from fedrebasin.cli.inputs import Inputs
from fedrebasin.errors import MergeError
from fedrebasin.files import load_checkpoint, save_checkpoint
from fedrebasin.matching import Alignment, History, Method, State, WeightMatching
from fedrebasin.merging import Aligner, CycleConsistent, MeanInPieces, MergeMany, normalised
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import cosine
from fedrebasin.sums import evaluate, logits_of

METHODS = ("weight-matching", "frank-wolfe", "merge-many", "cycle-consistent", "average")
#: The methods that align to one model, which may be a base; they hold one model's pages at a time.
REFERENCED = ("weight-matching", "frank-wolfe", "average")
# Frank-Wolfe holds three matrices for each group: beyond this many bytes of them weight matching goes without.
_RELAXED_BYTES = 3e8
_RELEASE_BYTES = 2**26


@dataclass(frozen=True)
class Row:
    """What became of one checkpoint.

    Args:
        name: its path.
        sha256: of its file.
        weight: its share.
        before: its cosine to what it was aligned to, as it was given.
        after: the same, aligned.
        moved: units that have another place now.
        units: all that may move.
        seconds: that aligning it took.
        least_similar: the layer that agrees least, and its cosine; None where layers were not measured.
    """

    name: str
    sha256: str
    weight: float
    before: float
    after: float
    moved: int
    units: int
    seconds: float
    least_similar: tuple[str, float] | None = None


@dataclass(frozen=True)
class Calibration:
    """What was done with data, and how good the merged model is on the part that nothing was fitted on.

    Args:
        data: as it was given.
        examples: that the figures are taken on.
        batch_norms: layers whose running statistics were taken anew.
        accuracy: in [0, 1].
        loss: mean NLL in nats.
        beta: inverse temperature, fitted on other examples; it is not folded into the weights.
        calibrated_loss: mean NLL of ``beta * logits``.
        accuracy_before: before BatchNorm was recalibrated.
        loss_before: likewise.
    """

    data: str
    examples: int
    batch_norms: int
    accuracy: float
    loss: float
    beta: float
    calibrated_loss: float
    accuracy_before: float
    loss_before: float


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Args:
        method: one of ``METHODS``.
        model: its name, or "".
        reference: the path of the model that the others were aligned to; "" if they were aligned to their mean.
        base: whether the result is the base and weighted differences from it.
        rows: one for each checkpoint.
        seconds: that everything took.
        calibration: None without data.
    """

    method: str
    model: str
    reference: str
    base: bool
    rows: tuple[Row, ...]
    seconds: float = 0.0
    calibration: Calibration | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def metadata(self) -> dict[str, str]:
        """For the header of the file: texts only."""
        inputs = [
            {
                "name": Path(row.name).name,
                "sha256": row.sha256,
                "weight": row.weight,
                "similarity_before": round(row.before, 6),
                "similarity": round(row.after, 6),
                "units_moved": row.moved,
            }
            for row in self.rows
        ]
        texts = {
            "format": "pt",
            "made_by": f"fedrebasin {fedrebasin.__version__}",
            "torch": torch.__version__,
            "method": self.method,
            "inputs": json.dumps(inputs),
            "reference": Path(self.reference).name,
        }
        if self.base:
            texts["base"] = Path(self.reference).name
        if self.model:
            texts["model"] = self.model
        if self.calibration is not None:
            texts["calibration"] = json.dumps(asdict(self.calibration))
            texts["beta"] = repr(self.calibration.beta)
        return texts


def merge_inputs(
    inputs: Inputs,
    spec: PermutationSpec,
    method: str,
    weights: Sequence[float] | None,
    seed: int,
    out: Path,
    data: Data | None,
    bars: Bars,
) -> Merged:
    """Merge checkpoints into the file ``out``.

    Raises:
        RebasinError: if weights are not finite, or cannot be used.
        OSError: if the file cannot be written.
    """
    started = time.perf_counter()
    base = None if inputs.base is None else inputs.base.state
    states = [one.state for one in inputs.checkpoints]
    mean = MeanInPieces(states, [None] * len(states), weights, base)  # refuses weights before the work
    names = [str(one.path) for one in inputs.checkpoints]
    digests = [one.sha256() for one in inputs.checkpoints]
    shares = normalised(weights, len(states)) if base is None else tuple(weights or (1 / len(states),) * len(states))

    def rows(found: Sequence[tuple[Alignment, float, float]]) -> tuple[Row, ...]:
        return tuple(
            Row(
                *(name, digest, share, before, one.similarity),
                moved=sum(one.permutation.units_moved().values()),
                units=sum(index.numel() for index in one.permutation.values()),
                seconds=seconds,
                least_similar=one.least_similar,
            )
            for name, digest, share, (one, before, seconds) in zip(names, digests, shares, found, strict=True)
        )

    reference = str(inputs.base.path) if inputs.base else names[0] if method in REFERENCED else ""
    result = Merged(method, inputs.name, reference, base is not None, ())
    like: State = inputs.first
    total = sum(tensor.nbytes for tensor in like.values())

    def write(content: Merged, like: State, mean: MeanInPieces | None) -> None:
        def written(done: int) -> None:
            bars("writing (MB)", done >> 20, total >> 20)
            if done - released[-1] > _RELEASE_BYTES:  # one tensor can be most of a file
                released.append(done)
                for one in (*inputs.checkpoints, *([inputs.base] if inputs.base else [])):
                    one.state.release()

        released = [0]
        save_checkpoint(out, like, mean, content.metadata(), written)

    if method in REFERENCED:
        found = _aligned(inputs, spec, method, seed, bars)
        result = replace(result, rows=rows(found))
        write(result, like, replace(mean, permutations=[_or_none(one.permutation) for one, _, _ in found]))
    else:
        bars(f"{method} of {len(states)} checkpoints", 0, None)
        before = _cosines_to_mean(spec, states, weights)
        merge = _aligner(method, seed)(spec, states, weights)
        seconds = merge.history.seconds / len(states)
        measured = [(one, was, seconds) for one, was in zip(merge.alignments, before, strict=True)]
        result = replace(result, rows=rows(measured))
        write(result, merge.merged, None)
    if data is not None and inputs.model is not None:
        state, calibration = _calibrated(inputs.model, load_checkpoint(out).state, data, bars)
        result = replace(result, calibration=calibration)
        write(result, state, None)
    return replace(result, seconds=time.perf_counter() - started)


def _aligned(
    inputs: Inputs, spec: PermutationSpec, method: str, seed: int, bars: Bars
) -> list[tuple[Alignment, float, float]]:
    """For every checkpoint its alignment, its similarity before, and seconds: one candidate is looked at at a time."""
    first = inputs.first
    found = []
    for checkpoint in inputs.checkpoints:
        started = time.perf_counter()
        name = checkpoint.path.name
        bars(f"matching {name}, sweep", 0, None)
        if method == "average" or checkpoint.state is first:
            similarity = 1.0 if checkpoint.state is first else cosine(first, checkpoint.state, spec.voting(first))
            alignment = Alignment(Permutation.identity(spec), similarity, History((), 0.0, True, "left as it is"))
        else:
            matcher = WeightMatching(
                method=_matching(spec, method),
                seed=seed,
                progress=lambda sweep, objective, name=name: bars(f"matching {name}, sweep", sweep, None),  # type: ignore[misc]
            )
            alignment = matcher(spec, reference=first, candidate=checkpoint.state)
        checkpoint.state.release()
        found.append((alignment, _before(alignment), time.perf_counter() - started))
    return found


def _matching(spec: PermutationSpec, method: str) -> Method:
    if method == "frank-wolfe":
        return "frank-wolfe"
    squares = sum(8 * spec.shape(name)[-1] ** 2 for name in spec.groups)
    return "auto" if 3 * squares <= _RELAXED_BYTES else "coordinate"


def _before(alignment: Alignment) -> float:
    """The similarity of the models as they were: the objective is its multiple by both norms."""
    objective = alignment.history.objective
    if not objective or objective[-1] == 0:
        return alignment.similarity
    return alignment.similarity * objective[0] / objective[-1]


def _aligner(method: str, seed: int) -> Aligner:
    return MergeMany(seed=seed) if method == "merge-many" else CycleConsistent(seed=seed)


def _cosines_to_mean(spec: PermutationSpec, states: Sequence[State], weights: Sequence[float] | None) -> list[float]:
    mean = fedrebasin.average(({key: state[key] for key in spec.voting(state)} for state in states), weights)
    return [cosine(mean, state) for state in states]


def _or_none(permutation: Permutation) -> Permutation | None:
    return None if permutation.is_identity else permutation


def _calibrated(model: nn.Module, state: State, data: Data, bars: Bars) -> tuple[dict[str, torch.Tensor], Calibration]:
    """New running statistics from the training part, beta from the held-out part, figures on the rest."""
    if not data.reported or not data.held_out:
        raise MergeError(f"data {data.name}: too few test examples to fit a temperature and report on others")
    model = model.eval()
    count = len(batch_norms(model))
    bars("calibration", 0, 3)
    before = evaluate(model, state, data.reported)
    bars("calibration", 1, 3)
    done = recalibrate_batch_norm(model, state, data.training) if count else dict(state)
    bars("calibration", 2, 3)
    after = evaluate(model, done, data.reported) if count else before
    beta = fit_temperature(*logits_of(model, done, data.held_out)).beta
    calibrated = evaluate(model, done, data.reported, beta)
    bars("calibration", 3, 3)
    examples = data.counts()["reported"]
    return done, Calibration(
        data.name,
        examples,
        count,
        *(after.accuracy, after.loss, beta, calibrated.loss),
        *(before.accuracy, before.loss),
    )
