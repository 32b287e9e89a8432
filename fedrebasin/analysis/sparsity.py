"""Sparse networks: iterative magnitude pruning with rewinding, and a mask carried to another network by a permutation.

Simultaneous connectivity, section 5.2 and Appendix F. A mask is a state dict of ones and zeros for the tensors that may
be pruned; what it does not name is dense.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils import prune

from fedrebasin.errors import MergeError
from fedrebasin.spec import Permutation
from fedrebasin.state import State, computable, demand_numbers

Mask = Mapping[str, Tensor]
Rewinding = Literal["weights", "learning-rate"]
#: ``train(state, mask)`` trains from the start of the schedule and keeps pruned weights at zero.
MaskedTraining = Callable[[State, Mask], State]


def prunable(state: State) -> tuple[str, ...]:
    """The keys of the tensors that are pruned by default: weights of two dimensions or more."""
    demand_numbers(state)
    return tuple(key for key, tensor in state.items() if tensor.is_floating_point() and tensor.dim() >= 2)


def dense_mask(state: State, keys: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The mask that prunes nothing.

    Args:
        state: a state dict.
        keys: what may be pruned; :func:`prunable` by default.
    """
    return {key: torch.ones_like(state[key]) for key in (prunable(state) if keys is None else keys)}


def apply_mask(state: State, mask: Mask) -> dict[str, Tensor]:
    """The state with pruned entries set to zero; other tensors are shared.

    Raises:
        MergeError: if the mask does not fit.
    """
    demand_numbers(state)
    for key, tensor in mask.items():
        if key not in state or state[key].shape != tensor.shape:
            raise MergeError(f"the mask's {key} of shape {tuple(tensor.shape)} does not fit the model")
    pairs = {key: (computable(state[key]), computable(tensor)) for key, tensor in mask.items()}
    return {**state, **{key: (weight * kept.to(weight)).to(state[key].dtype) for key, (weight, kept) in pairs.items()}}


def sparsity_of(mask: Mask) -> float:
    """The share of entries that the mask prunes, in [0, 1]; 0 for a mask of nothing."""
    entries = sum(tensor.numel() for tensor in mask.values())
    return 1 - sum(float(computable(tensor).sum()) for tensor in mask.values()) / entries if entries else 0.0


def prune_smallest(state: State, mask: Mask, share: float) -> dict[str, Tensor]:
    """Prune a share of the weights that are left, those of smallest magnitude in the whole network.

    Args:
        state: a trained state dict.
        mask: what is left.
        share: in [0, 1), of the weights that are left.

    Raises:
        MergeError: if the share is out of its range, or the mask is empty or does not fit.
    """
    if not 0 <= share < 1:
        raise MergeError(f"share {share}: it must be at least 0 and below 1")
    if not mask:
        raise MergeError("the mask names no tensor: there is nothing to prune")
    apply_mask(state, mask)
    device = state[next(iter(mask))].device
    kept = torch.cat([computable(mask[key].flatten()).to(device) for key in mask])
    flat = torch.cat([computable(state[key].detach().flatten()) for key in mask])
    left = kept > 0
    if amount := round(share * int(left.sum())):
        method = prune.L1Unstructured(amount)
        kept[left] = method.compute_mask(flat[left], kept[left])  # type: ignore[no-untyped-call]
    parts = torch.split(kept, [tensor.numel() for tensor in mask.values()])
    return {key: part.reshape(mask[key].shape).to(mask[key]) for key, part in zip(mask, parts, strict=True)}


@dataclass(frozen=True)
class Pruned:
    """One level of a pruned network.

    Args:
        mask: what is left.
        state: trained under the mask.
        sparsity: share of pruned entries, in [0, 1].
    """

    mask: Mask
    state: State
    sparsity: float


def iterative_pruning(
    train: MaskedTraining,
    rewind_to: State,
    levels: int,
    share: float = 0.2,
    keys: Iterable[str] | None = None,
    rewinding: Rewinding = "weights",
) -> tuple[Pruned, ...]:
    """Iterative magnitude pruning: train, prune, rewind, again and again (Simultaneous connectivity, section 5.2).

    Args:
        train: trains a state dict under a mask, from the rewinding point to the end.
        rewind_to: the checkpoint at the rewinding point.
        levels: how often to prune.
        share: of the remaining weights, pruned at each level.
        keys: what may be pruned; :func:`prunable` by default.
        rewinding: "weights" goes back to ``rewind_to``; "learning-rate" keeps the trained weights and only repeats the
            schedule (Figure 13).

    Returns:
        the dense network and one for each level: sparsity ``1 - (1 - share) ** level``.

    Raises:
        MergeError: if an argument is out of its range.
    """
    if rewinding not in ("weights", "learning-rate"):
        raise MergeError(f"rewinding {rewinding!r} is neither 'weights' nor 'learning-rate'")
    mask: Mask = dense_mask(rewind_to, keys)
    state = train(rewind_to, mask)
    found = [Pruned(mask, state, 0.0)]
    for _ in range(levels):
        mask = prune_smallest(state, mask, share)
        start = rewind_to if rewinding == "weights" else state
        state = train(apply_mask(start, mask), mask)
        found.append(Pruned(mask, state, sparsity_of(mask)))
    return tuple(found)


def one_shot_pruning(train: MaskedTraining, start: State, trained: State, sparsity: float) -> Pruned:
    """The baseline: prune once to the full sparsity by the trained magnitudes, and train from ``start`` again.

    Args:
        train: see :func:`iterative_pruning`.
        start: what is trained under the mask.
        trained: whose magnitudes decide.
        sparsity: share of pruned entries, in [0, 1).

    Raises:
        MergeError: if the sparsity is out of its range.
    """
    mask = prune_smallest(trained, dense_mask(trained), sparsity)
    return Pruned(mask, train(apply_mask(start, mask), mask), sparsity_of(mask))


def transport_mask(permutation: Permutation, mask: Mask, state: State) -> dict[str, Tensor]:
    """A mask found on B carried into A's order of units, to prune A with (Simultaneous connectivity, section 5.2).

    Identity: ``apply_mask(p.apply(b), transport_mask(p, m, b)) == p.apply(apply_mask(b, m))``.

    Args:
        permutation: of B towards A.
        mask: of B.
        state: B's state dict, for the tensors that the mask does not name.

    Raises:
        SpecError: if the permutation does not fit.
    """
    whole = {key: mask[key] if key in mask else torch.ones_like(tensor) for key, tensor in state.items()}
    moved = permutation.apply(whole)
    return {key: moved[key] for key in mask}


def mask_agreement(first: Mask, second: Mask) -> float:
    """Entries kept by both over entries kept by either, in [0, 1].

    Raises:
        MergeError: if the masks are of different tensors.
    """
    if first.keys() != second.keys():
        raise MergeError(f"the masks differ in the keys {', '.join(sorted(first.keys() ^ second.keys()))}")
    both = sum(float((first[key] * second[key].to(first[key])).sum()) for key in first)
    either = sum(float(torch.maximum(first[key], second[key].to(first[key])).sum()) for key in first)
    return both / either if either else 1.0
