"""Checkpoints merged into one: matched, averaged in pieces, calibrated, written."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fedrebasin.errors import MergeError, choose
from fedrebasin.files.aligned import aligned
from fedrebasin.files.calibrate import Data, Progress, calibrated
from fedrebasin.files.card import model_card
from fedrebasin.files.checkpoint_set import CheckpointSet, open_checkpoints
from fedrebasin.files.folder import config_of
from fedrebasin.files.merged import MergedFile, MergedFiles
from fedrebasin.files.output import Output, Pieces, whole
from fedrebasin.merge_methods import METHODS, REFERENCED
from fedrebasin.merging import MeanInPieces, normalised
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import State, computable, dtype_name, is_narrow, runnable
from fedrebasin.sums import Score, evaluate

_RELEASE_BYTES = 2**26


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
    dtype: torch.dtype | None = None,
    force: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> MergedFiles:
    """Permute checkpoints until their units correspond, and average them into a file, or a folder.

    The files are mapped into memory and read piece by piece, sums are taken in float64; what was done is written into
    the header of the result, and into a folder's model card.

    Args:
        checkpoints: safetensors files, files that ``torch.save`` wrote, or folders as hubs lay them out; or what
            :func:`open_checkpoints` opened, with its base and model.
        out: the merged model, a safetensors file; or, if the first checkpoint (or the base) is a folder, one of the
            same layout, with its configuration and tokenizer.
        spec: of the models; None recognises a stack of dense layers.
        method: ``"weight-matching"``, ``"frank-wolfe"``, ``"merge-many"``, ``"cycle-consistent"`` or ``"average"``.
        weights: one for each checkpoint, equal if None.
        base: align to this model instead of the first, and add the weighted differences from it to it, with the weights
            as they are (task arithmetic, Ilharco et al., ICLR 2023).
        model: the architecture, which the checkpoints have to fit; needed with data.
        data: recalibrates BatchNorm and fits a temperature; the models are judged on it, before and after.
        dtype: of the result's floating-point tensors; None for the first checkpoint's (or the base's).
        force: whether what lies at ``out`` may be replaced, one of the checkpoints too.
        seed: of the order in which groups are matched.
        progress: called with what is at work, how much is done, and of how much; None where nobody knows.

    Raises:
        DataError: if a file cannot be read.
        SpecError: if the spec does not fit, or none is given and the model is no plain stack.
        MergeError: if the checkpoints do not belong together, or the weights cannot be used, or something lies at
            ``out``, or a number of the result is not finite where those of the checkpoints are.
        OSError: if the file cannot be written.
    """
    started = time.perf_counter()
    choose("method", method, METHODS)
    report = progress or (lambda what, done, total: None)
    opened = checkpoints if isinstance(checkpoints, CheckpointSet) else open_checkpoints(checkpoints, base, model)
    if data is not None and opened.model is None:
        raise MergeError("data: the model is needed, too, to run on it: give model=")
    if opened.base is not None and method not in REFERENCED:
        raise MergeError(f"base: {method} does not align to a reference; choose {', '.join(REFERENCED)}")
    if spec is None:
        spec = opened.no_groups() if method == "average" else opened.plain_stack()
    output = Output(Path(out), opened.leading, dtype)
    output.demand_free([one.path for one in opened.opened], force)
    states = [one.state for one in opened.checkpoints]
    base_state = None if opened.base is None else opened.base.state
    mean = MeanInPieces(states, [None] * len(states), weights, base_state, dtype)  # refuses weights before the work
    names = [str(one.path) for one in opened.checkpoints]
    digests = [one.sha256() for one in opened.checkpoints]
    equal = (1 / len(states),) * len(states)
    shares = normalised(weights, len(states)) if base_state is None else tuple(weights or equal)
    config = config_of(opened.leading.path) if opened.leading.layout is not None else {}
    total = output.nbytes

    def write(content: MergedFiles, pieces: Pieces) -> None:
        def written(done: int) -> None:
            report("writing (MB)", done >> 20, total >> 20)
            if done - released[-1] > _RELEASE_BYTES:  # one tensor can be most of a file
                released.append(done)
                for one in opened.opened:
                    one.state.release()

        released = [0]
        card = model_card(content, config, dtype_name(dtype) if dtype else "", data is not None and data.tokens)
        output.save(pieces, content.metadata(), card, written)

    found, merged = aligned(opened, spec.bind(opened.first), method, seed, weights, report)
    rows = tuple(
        MergedFile(
            *(name, digest, share, before, alignment.similarity),
            moved=sum(alignment.permutation.units_moved().values()),
            units=sum(index.numel() for index in alignment.permutation.values()),
            seconds=seconds,
            by_layer=alignment.by_layer,
        )
        for name, digest, share, (alignment, before, seconds) in zip(names, digests, shares, found, strict=True)
    )
    reference = str(opened.base.path) if opened.base else names[0] if method in REFERENCED else ""
    result = MergedFiles(method, opened.name, reference, base_state is not None, rows)
    in_order = replace(mean, permutations=[_or_none(one.permutation) for one, _, _ in found])
    if data is not None and opened.model is not None:
        unaligned = None if method == "average" else _whole(mean, opened.first)
        result = _judged(result, opened, unaligned, data, report)
        state = _whole(in_order, opened.first) if merged is None else runnable(merged)
        merged, calibration = calibrated(opened.model, state, data, report)
        result = replace(result, calibration=calibration)
    infinite: dict[str, None] = {}
    write(result, _numbers(in_order if merged is None else whole(merged, output.like(opened.first)), infinite))
    return replace(result, seconds=time.perf_counter() - started, infinite=tuple(infinite))


def _whole(mean: MeanInPieces, like: State) -> dict[str, Tensor]:
    """The mean in memory, in float32 at least: a model is run with it."""

    def tensor(key: str, first: Tensor) -> Tensor:
        dtype = torch.float32 if is_narrow(first) else None
        parts = [part.reshape(-1) for part in replace(mean, dtype=dtype)(key)]
        return torch.cat(parts).reshape(first.shape) if parts else first

    return {key: tensor(key, first) for key, first in like.items()}


def _judged(
    result: MergedFiles, opened: CheckpointSet, unaligned: State | None, data: Data, progress: Progress
) -> MergedFiles:
    """How good the checkpoints are, each by itself and averaged as they are."""
    model = opened.model
    assert model is not None

    def score(state: State, number: int) -> Score:
        progress("judging", number, len(opened.checkpoints) + 1)
        return evaluate(model, runnable(state), data.reported)

    rows = [
        replace(row, score=score(one.state, number))
        for number, (row, one) in enumerate(zip(result.rows, opened.checkpoints, strict=True))
    ]
    last = None if unaligned is None else score(unaligned, len(rows))
    return replace(result, rows=tuple(rows), unaligned=last)


def _numbers(pieces: Pieces, infinite: dict[str, None]) -> Pieces:
    """The same pieces, with the promise that no number is none; keys of infinite ones are noted."""

    def checked(key: str) -> Iterator[Tensor]:
        for part in pieces(key):
            if part.is_floating_point():
                numbers = computable(part)
                if not bool(numbers.isfinite().all()):
                    infinite[key] = None
                if bool(numbers.isnan().any()):
                    raise MergeError(
                        f"{key}: the mean is not a number: a checkpoint is damaged, or infinite numbers cancel"
                    )
            yield part

    return checked


def _or_none(permutation: Permutation) -> Permutation | None:
    return None if permutation.is_identity else permutation
