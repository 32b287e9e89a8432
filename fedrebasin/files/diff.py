"""Two checkpoints layer by layer: as they are, and with the second one's units matched to the first one's."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fedrebasin.analysis import singular_values
from fedrebasin.files.calibrate import Progress
from fedrebasin.files.checkpoint_set import CheckpointSet
from fedrebasin.matching import MethodName, WeightMatching
from fedrebasin.merging import permuted
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import State, cosine, distance, layer_of, length

# Numbers of a weight whose singular values are computed; larger ones take minutes.
_DECOMPOSED = 2**23


@dataclass(frozen=True)
class LayerDifference:
    """A layer of two models: a module with tensors of its own.

    Args:
        layer: its name.
        numbers: in its tensors.
        similarity: the cosine of both models' tensors, as they are.
        matched: the same with B's units in A's order.
        distance: Euclidean, relative to the length of A's, as they are.
        distance_matched: the same with B's units in A's order.
        moved: units along its axes that have another place in A's order.
        units: along its axes that may move.
        stable_ranks: of A's and B's largest weight; None for layers without a matrix, and for very large ones.
        spectral_distance: of their singular values, relative to A's; whatever the order of the units. None likewise.
    """

    layer: str
    numbers: int
    similarity: float
    matched: float
    distance: float
    distance_matched: float
    moved: int
    units: int
    stable_ranks: tuple[float, float] | None
    spectral_distance: float | None


@dataclass(frozen=True)
class Difference:
    """Two checkpoints side by side.

    Args:
        a: path of the first.
        b: path of the second.
        model: its name, or "".
        similarity: the cosine of all weights as they are.
        matched: the same with B's units in A's order.
        layers: in the order of the first one's tensors.
    """

    a: str
    b: str
    model: str
    similarity: float
    matched: float
    layers: tuple[LayerDifference, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def diff_files(
    opened: CheckpointSet,
    spec: PermutationSpec,
    *,
    method: MethodName = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Difference:
    """Compare two checkpoints layer by layer, one tensor of each in memory at a time.

    Args:
        opened: two checkpoints.
        spec: of both.
        method: of weight matching.
        seed: of the order in which groups are matched.
        progress: called with what is at work, how much is done, and of how much; None where nobody knows.

    Raises:
        SpecError: if the spec does not fit.
        MatchingError: if a weight is not finite.
    """
    report = progress or (lambda what, done, total: None)
    first, second = opened.checkpoints
    a, b = first.state, second.state
    matcher = WeightMatching(method=method, seed=seed, progress=lambda sweep, _: report("matching, sweep", sweep, None))
    found = matcher(spec.bind(a), reference=a, candidate=b)
    bound = found.permutation.spec
    keys = bound.voting(a)
    layers: dict[str, list[str]] = {}
    for key in keys:
        layers.setdefault(layer_of(key), []).append(key)
    rows = []
    for number, (layer, own) in enumerate(layers.items()):
        report("comparing layers", number, len(layers))
        rows.append(_row(layer, own, a, b, found.permutation))
    return Difference(str(first.path), str(second.path), opened.name, cosine(a, b, keys), found.similarity, tuple(rows))


def _row(layer: str, keys: Sequence[str], a: State, b: State, permutation: Permutation) -> LayerDifference:
    ours, theirs = {key: a[key] for key in keys}, {key: b[key] for key in keys}
    moved = {key: permuted(permutation, key, tensor) for key, tensor in theirs.items()}
    size = length(ours) or 1.0
    groups = [group for group in permutation.spec.groups.values() if any(axis.key in ours for axis in group.axes)]
    counts = permutation.units_moved()
    ranks, apart = _spectra(ours, theirs)
    return LayerDifference(
        layer,
        sum(tensor.numel() for tensor in ours.values()),
        *(cosine(ours, theirs), cosine(ours, moved)),
        *(distance(ours, theirs) / size, distance(ours, moved) / size),
        sum(counts.get(group.name, 0) for group in groups),
        sum(permutation[group.name].numel() for group in groups),
        ranks,
        apart,
    )


def _spectra(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> tuple[tuple[float, float] | None, float | None]:
    """Stable ranks of the largest weight, and how far apart its singular values are."""
    weights = [key for key, tensor in a.items() if tensor.dim() > 1 and not tensor.is_complex()]
    largest = max(weights, key=lambda key: a[key].numel(), default=None)
    if largest is None or not 0 < a[largest].numel() <= _DECOMPOSED:
        return None, None
    ours, theirs = singular_values(a[largest]), singular_values(b[largest])
    size = float(torch.linalg.vector_norm(ours.values)) or 1.0
    apart = float(torch.linalg.vector_norm(ours.values - theirs.values)) / size
    return (ours.stable_rank, theirs.stable_rank), apart
