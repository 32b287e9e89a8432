"""Where to start: the order in which the candidate's units have the reference's signatures.

Copies are models that are one another's, permuted, perhaps with some noise. Matching strangers is hard and has no
certain answer; a copy has one, and what no permutation changes shows it first: the sums of the tensors agree. Then the
units are paired by their signatures. Where groups lie in the blocks of others, signatures are a start for strangers,
too: an ascent from the order given pairs blocks before their insides, and gets stuck.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

import torch

from fedrebasin.matching.prepared import Totals, totals
from fedrebasin.matching.problem import Indices, Problem
from fedrebasin.matching.signatures import pair_by_signature
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import State

#: The certificate of an exact copy.
EXACT = "the candidate is the reference, permuted"

# Sums of strangers' tensors differ by about 1.4 deviations of such a sum; of copies with noise of a share s of each
# tensor's deviation by s of them. The median over all tensors is compared to this.
_SUMS = 0.3
# Signatures of paired units, see Paired.distance: strangers' are further apart than that.
_SIGNATURES = 0.25
# A tensor whose deviation is this share of its size is a constant, and its sum says nothing.
_CONSTANT = 1e-3
# Layers of models this similar are in the same order already.
_IN_ORDER = 0.9


def order_by_signatures(problem: Problem, products: dict[str, float], threads: int = 1) -> Indices | None:
    """The order to start an ascent from; None where it is the order given.

    Costs nothing for strangers without groups in blocks: the sums and norms are known already.

    Args:
        problem: two models.
        products: their inner products by tensor as they are, see :meth:`Problem.inner_products`.
        threads: for assignments.
    """
    copies = _sums_agree(problem.reference.totals, problem.candidate.totals)
    if not (copies or problem.nested) or min(problem.by_layer(products).values(), default=1.0) > _IN_ORDER:
        return None
    found = pair_by_signature(problem, threads)
    return found.indices if problem.nested or found.distance < _SIGNATURES else None


def is_exact(problem: Problem, indices: Indices) -> bool:
    """Whether the candidate in this order is the reference, number by number."""
    if problem.reference.exponent != problem.candidate.exponent:
        return False
    return all(torch.equal(ours, moved) for key in problem.reference for ours, moved in problem.pieces(key, indices))


def orders_by_signatures(spec: PermutationSpec, states: Sequence[State], threads: int = 1) -> list[Permutation | None]:
    """For every model the permutation into the order that most copies of the same model are in.

    Args:
        spec: bound to the models.
        states: of any number of models.
        threads: for assignments.

    Returns:
        None for a model that stays as it is; with groups in blocks, models that are no copies take the order of the
        first.
    """
    known = [{key: totals(key, state[key], "a model") for key in spec.voting(state)} for state in states]
    nested = any(group.parent is not None for group in spec.groups.values())
    found: list[Permutation | None] = []
    anchors = []
    for k, state in enumerate(states):
        firsts = [j for j in range(k) if found[j] is None and _sums_agree(known[j], known[k])]
        firsts += [0] if nested and k else []
        order = None
        if firsts:
            problem = Problem(spec, states[firsts[0]], state)
            products = problem.inner_products(problem.start(None))
            order = order_by_signatures(problem, products, threads)
        found.append(None if order is None else Permutation(spec, order))
        anchors.append(firsts[0] if firsts else k)
    for anchor in set(anchors):
        _to_the_most(spec, found, [k for k in range(len(states)) if anchors[k] == anchor])
    return found


def _to_the_most(spec: PermutationSpec, found: list[Permutation | None], copies: Sequence[int]) -> None:
    """Copies in the order of the first of them: all into the order that most of them came in, so that these stay."""
    still = Permutation.identity(spec)
    orders = [found[k] or still for k in copies]
    most = max(orders, key=orders.count)  # the first of these
    for k, order in zip(copies, orders, strict=True):
        back = most.inverse().compose(order)
        found[k] = None if back.is_identity else back


def _sums_agree(ours: Mapping[str, Totals], theirs: Mapping[str, Totals]) -> bool:
    pairs = ((found, theirs[key]) for key, found in ours.items())
    found = [apart for a, b in pairs if (apart := _sums_apart(a, b)) is not None]
    return bool(found) and statistics.median(found) < _SUMS


def _sums_apart(a: Totals, b: Totals) -> float | None:
    """How far the sums of two tensors are apart, in deviations of a sum; None for tensors of one number."""
    if a.entries < 2 or a.norm == 0:
        return None
    ratio = min(1.0, abs(a.sum) / a.norm / math.sqrt(a.entries))
    share = math.sqrt(1 - ratio**2)  # of the norm, that is deviation
    return None if share < _CONSTANT else abs(a.sum - b.sum) / a.norm / share
