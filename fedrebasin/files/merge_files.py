"""Checkpoints merged into one file: matched, averaged in pieces, calibrated, written."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedrebasin.errors import MergeError, choose
from fedrebasin.files.calibrate import Calibration, Data, Progress, calibrated
from fedrebasin.files.checkpoint_set import CheckpointSet, open_checkpoints
from fedrebasin.files.checkpoints import load_checkpoint, save_checkpoint
from fedrebasin.matching import Alignment, WeightMatching
from fedrebasin.merge_methods import METHODS, REFERENCED
from fedrebasin.merging import (
    AlignTo,
    CycleConsistent,
    MeanInPieces,
    MergeMany,
    TwoStepAligner,
    average,
    normalised,
    unmoved,
)
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import State, cosine

# Frank-Wolfe holds three matrices for each group: beyond this many bytes of them weight matching goes without.
_RELAXED_BYTES = 3e8
_RELEASE_BYTES = 2**26


@dataclass(frozen=True)
class MergedFile:
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
class MergedFiles:
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
    rows: tuple[MergedFile, ...]
    seconds: float = 0.0
    calibration: Calibration | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def metadata(self) -> dict[str, str]:
        """For the header of the file: texts only."""
        from fedrebasin import __version__  # the package imports this file

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
            "made_by": f"fedrebasin {__version__}",
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


def merge_files(
    checkpoints: Sequence[str | os.PathLike[str]] | CheckpointSet,
    out: str | os.PathLike[str],
    spec: PermutationSpec | None = None,
    *,
    method: str = "weight-matching",
    weights: Sequence[float] | None = None,
    base: str | os.PathLike[str] | None = None,
    model: nn.Module | None = None,
    data: Data | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> MergedFiles:
    """Permute checkpoints until their units correspond, and average them into a file.

    The files are mapped into memory and read piece by piece; what was done is written into the header of the result.

    Args:
        checkpoints: safetensors files, or files that ``torch.save`` wrote; or what :func:`open_checkpoints` opened,
            with its base and model.
        out: the merged model, a safetensors file.
        spec: of the models; None recognises a stack of dense layers.
        method: ``"weight-matching"``, ``"frank-wolfe"``, ``"merge-many"``, ``"cycle-consistent"`` or ``"average"``.
        weights: one for each checkpoint, equal if None.
        base: align to this model instead of the first, and add the weighted differences from it to it, with the weights
            as they are (task arithmetic, Ilharco et al., ICLR 2023).
        model: the architecture, which the checkpoints have to fit; needed with data.
        data: recalibrates BatchNorm and fits a temperature.
        seed: of the order in which groups are matched.
        progress: called with what is at work, how much is done, and of how much; None where nobody knows.

    Raises:
        DataError: if a file cannot be read.
        SpecError: if the spec does not fit, or none is given and the model is no plain stack.
        MergeError: if the checkpoints do not belong together, or the weights cannot be used.
        OSError: if the file cannot be written.
    """
    started = time.perf_counter()
    choose("method", method, METHODS)
    report = progress or (lambda what, done, total: None)
    opened = checkpoints if isinstance(checkpoints, CheckpointSet) else open_checkpoints(checkpoints, base, model)
    if data is not None and opened.model is None:
        raise MergeError("data: to run on them the model is needed, too: give model=")
    if opened.base is not None and method not in REFERENCED:
        raise MergeError(f"base: {method} aligns to no reference; choose {', '.join(REFERENCED)}")
    if spec is None:
        spec = opened.no_groups() if method == "average" else opened.plain_stack()
    states = [one.state for one in opened.checkpoints]
    base_state = None if opened.base is None else opened.base.state
    mean = MeanInPieces(states, [None] * len(states), weights, base_state)  # refuses weights before the work
    names = [str(one.path) for one in opened.checkpoints]
    digests = [one.sha256() for one in opened.checkpoints]
    equal = (1 / len(states),) * len(states)
    shares = normalised(weights, len(states)) if base_state is None else tuple(weights or equal)
    total = sum(tensor.nbytes for tensor in opened.first.values())

    def write(content: MergedFiles, like: State, mean: MeanInPieces | None) -> None:
        def written(done: int) -> None:
            report("writing (MB)", done >> 20, total >> 20)
            if done - released[-1] > _RELEASE_BYTES:  # one tensor can be most of a file
                released.append(done)
                for one in opened.opened:
                    one.state.release()

        released = [0]
        save_checkpoint(
            out, like, None if mean is None else partial(_demand_numbers, mean), content.metadata(), written
        )

    found, merged = _aligned(opened, spec.bind(opened.first), method, seed, weights, report)
    rows = tuple(
        MergedFile(
            *(name, digest, share, before, alignment.similarity),
            moved=sum(alignment.permutation.units_moved().values()),
            units=sum(index.numel() for index in alignment.permutation.values()),
            seconds=seconds,
            least_similar=alignment.least_similar,
        )
        for name, digest, share, (alignment, before, seconds) in zip(names, digests, shares, found, strict=True)
    )
    reference = str(opened.base.path) if opened.base else names[0] if method in REFERENCED else ""
    result = MergedFiles(method, opened.name, reference, base_state is not None, rows)
    if merged is None:
        write(result, opened.first, replace(mean, permutations=[_or_none(one.permutation) for one, _, _ in found]))
    else:
        write(result, merged, None)
    if data is not None and opened.model is not None:
        state, calibration = calibrated(opened.model, load_checkpoint(out).state, data, report)
        result = replace(result, calibration=calibration)
        write(result, state, None)
    return replace(result, seconds=time.perf_counter() - started)


def _demand_numbers(mean: MeanInPieces, key: str) -> Iterator[Tensor]:
    for part in mean(key):
        if part.is_floating_point() and bool((part.float() if part.itemsize == 1 else part).isnan().any()):
            raise MergeError(f"{key}: the mean is not a number: a checkpoint is damaged, or infinite numbers cancel")
        yield part


def _aligned(
    opened: CheckpointSet,
    spec: PermutationSpec,
    method: str,
    seed: int,
    weights: Sequence[float] | None,
    progress: Progress,
) -> tuple[list[tuple[Alignment, float, float]], State | None]:
    """For every checkpoint its alignment, its similarity before, and seconds; and the mean, if it is known already.

    Where there is a reference one candidate is looked at at a time.
    """

    def match(spec: PermutationSpec, reference: State, candidate: State) -> Alignment:
        if method == "average":
            return unmoved(spec, cosine(reference, candidate, spec.voting(reference)), "left as it is")
        matcher = WeightMatching(
            method="frank-wolfe" if method == "frank-wolfe" else "auto" if _relaxable(spec) else "coordinate",
            seed=seed,
            progress=lambda sweep, objective: progress(what, sweep, None),
        )
        return matcher(spec, reference=reference, candidate=candidate)

    aligners: dict[str, TwoStepAligner] = {
        "merge-many": MergeMany(seed=seed),
        "cycle-consistent": CycleConsistent(seed=seed),
    }
    placer = aligners.get(method, AlignTo(match, reference=opened.first)).begin(spec)
    found = []
    for checkpoint in opened.checkpoints:
        started = time.perf_counter()
        what = f"matching {checkpoint.path.name}, sweep"
        if placer.reference is not None:
            progress(what, 0, None)
        if (alignment := placer.place(checkpoint.state)) is not None:
            found.append((alignment, _before(alignment), time.perf_counter() - started))
        checkpoint.state.release()
    if found:
        return found, None
    states = [one.state for one in opened.checkpoints]
    progress(f"{method} of {len(states)} checkpoints", 0, None)
    before = _cosines_to_mean(spec, states, weights)
    merge = placer.finish(weights)
    seconds = merge.history.seconds / len(states)
    return [(one, was, seconds) for one, was in zip(merge.alignments, before, strict=True)], merge.merged


def _relaxable(spec: PermutationSpec) -> bool:
    """Whether the matrices of Frank-Wolfe are small enough."""
    return 3 * sum(8 * spec.shape(name)[-1] ** 2 for name in spec.groups) <= _RELAXED_BYTES


def _before(alignment: Alignment) -> float:
    """The similarity of the models as they were: the objective is its multiple by both norms."""
    objective = alignment.history.objective
    if not objective or objective[-1] == 0:
        return alignment.similarity
    return alignment.similarity * objective[0] / objective[-1]


def _cosines_to_mean(spec: PermutationSpec, states: Sequence[State], weights: Sequence[float] | None) -> list[float]:
    mean = average(({key: state[key] for key in spec.voting(state)} for state in states), weights)
    return [cosine(mean, state, spec.voting(state)) for state in states]


def _or_none(permutation: Permutation) -> Permutation | None:
    return None if permutation.is_identity else permutation
