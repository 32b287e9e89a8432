"""ActivationMatching: align two models by what their units do on data (Git Re-Basin, section 3.1)."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn

from fedrebasin.errors import MatchingError
from fedrebasin.matching.alignment import Alignment
from fedrebasin.matching.problem import Problem
from fedrebasin.matching.weight import WeightMatching
from fedrebasin.running import Batch, demand_batches, number_of_examples
from fedrebasin.spec import Axis, Factor, Group, Layout, Permutation, PermutationSpec
from fedrebasin.state import State
from fedrebasin.sums import ActivationCorrelation, collect_sums, mean_products
from fedrebasin.watching import unit_places


@dataclass(frozen=True, eq=False)
class ActivationMatching:
    """Pair the units whose activations agree: for each group, maximise ``<P, Z_A Z_B^T>`` (Git Re-Basin, Eq. 1).

    Only sums over the data are kept, one matrix for each group, so the batches may be a stream. They are the sums that
    clients send who keep their data (:class:`fedrebasin.ActivationCorrelation`), taken where each group's units are
    last seen (:func:`fedrebasin.unit_places`); groups that are never seen stay as they are and are named in the
    history's reason.

    Args:
        model: the architecture; its parameters and its mode are left as they are.
        batches: ``(inputs, labels)`` or inputs; labels are not used.
        correlation: correlate the activations (centred, divided by their standard deviations) in place of their plain
            inner products, so that no unit counts for more because its activations are large.
        threads: for assignments inside blocks.
    """

    model: nn.Module
    batches: Iterable[Batch]
    correlation: bool = False
    threads: int = 1

    def __call__(self, spec: PermutationSpec, reference: State, candidate: State) -> Alignment:
        """Match two models: see :class:`fedrebasin.matching.Matcher`.

        Returns:
            the alignment; its history's objective is the mean over the data, summed over the groups.

        Raises:
            SpecError: if the spec does not fit.
            MatchingError: if a weight or an activation is not finite, or there is no data.
        """
        with torch.no_grad():
            problem = Problem(spec, reference, candidate)
            relations = self._relations(problem.spec, reference, candidate)
            found = _match(problem.spec, relations, self.threads)
            permutation = Permutation(problem.spec, found.permutation.indices)
            products = problem.inner_products(permutation.indices)
        unseen = [name for name in problem.moved if not set(problem.families[name]) & set(relations)]
        history = found.history
        if unseen:
            history = replace(history, reason=f"{history.reason}; never seen, left as they are: {', '.join(unseen)}")
        similarity = problem.similarity(sum(products.values()))
        return Alignment(permutation, similarity, history, problem.by_layer(products))

    def _relations(self, spec: PermutationSpec, reference: State, candidate: State) -> dict[str, Tensor]:
        """By group how well the units go together: what a client's sums say of its data, with the data in hand."""
        batches = (batch for batch in demand_batches(self.batches) if number_of_examples(batch))
        first = next(batches, None)
        if first is None:
            raise MatchingError("no activations: the batches are empty")
        places = unit_places(self.model, reference, first, spec)
        if not places:
            if spec.groups:
                raise MatchingError("no activations: no weight that the model multiplies reads or writes a group")
            return {}
        statistic = ActivationCorrelation(places, reference)
        sums = collect_sums(statistic, self.model, candidate, chain([first], batches))
        for key, total in sums.items():
            if not bool(total.isfinite().all()):
                raise MatchingError(f"group {key.rpartition('.')[0]!r}: its activations are not finite on this data")
        return statistic.finish(sums) if self.correlation else mean_products(sums)


def match_relations(spec: PermutationSpec, relations: Mapping[str, Tensor], threads: int = 1) -> Permutation:
    """The permutation of a candidate that maximises ``<P, R>`` summed over the groups (Git Re-Basin, Eq. 1).

    Args:
        spec: with sizes.
        relations: by group, how well each unit of the reference goes with each of the candidate: shape (units, units),
            the units of a nested group being those of all blocks, block by block. Groups without one stay.
        threads: for assignments inside blocks.

    Raises:
        MatchingError: if a relation is not finite or has another shape.
    """
    for name, relation in relations.items():
        units = math.prod(spec.shape(name)) if name in spec.groups else -1
        if relation.shape != (units, units):
            shape = tuple(relation.shape)
            raise MatchingError(f"group {name!r}: relations of shape {shape} instead of {units} by {units}")
    return Permutation(spec, _match(spec, relations, threads).permutation.indices)


def _match(spec: PermutationSpec, relations: Mapping[str, Tensor], threads: int) -> Alignment:
    # What a block's units do says what the block does: where inner groups are seen, the outer one is not needed.
    covered = {group.name for name in relations for group in spec.ancestors(name)}
    inner = {name: relation for name, relation in relations.items() if name not in covered}
    surrogate, a, b = _as_weights(spec, inner)
    return WeightMatching(method="coordinate", threads=threads)(surrogate, reference=a, candidate=b)


def _as_weights(
    spec: PermutationSpec, relations: dict[str, Tensor]
) -> tuple[PermutationSpec, dict[str, Tensor], dict[str, Tensor]]:
    """A weight matching problem with the same groups whose cost matrices are the given ones.

    Each seen group gets one tensor: the relation matrix in the reference, whose rows are the group's units, and the
    unit matrix in the candidate.
    """
    axes: dict[str, list[Axis]] = {name: [] for name in spec.groups}
    reference, candidate = {}, {}
    for name, relation in relations.items():
        shape = spec.shape(name)
        reference[name] = relation.reshape(*shape, -1)
        candidate[name] = torch.eye(len(relation), dtype=relation.dtype, device=relation.device).reshape(*shape, -1)
        lineage = [*reversed([group.name for group in spec.ancestors(name)]), name]
        for depth, member in enumerate(lineage, 1):
            levels = tuple(Factor(dim, shape[dim]) for dim in range(depth))
            layout = None if len(lineage) == 1 else Layout(levels)
            axes[member].append(Axis(name, depth - 1, layout))
    groups = {
        name: Group(name, group.size, tuple(axes[name]), group.parent, group.frozen)
        for name, group in spec.groups.items()
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in reference.items()}
    return PermutationSpec(groups, shapes), reference, candidate
