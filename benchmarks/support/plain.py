"""Git Re-Basin's Algorithm 1 as plainly as it can be written: what ours is compared to."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fedrebasin import Permutation, PermutationSpec


def plain_weight_matching(spec: PermutationSpec, a: dict[str, Tensor], b: dict[str, Tensor], seed: int) -> Permutation:
    """Solve every group in every sweep, its cost matrix computed in full, until a sweep brings nothing."""
    generator = torch.Generator().manual_seed(seed)
    index = dict(Permutation.identity(spec))
    names = list(spec.groups)
    progress = True
    while progress:
        progress = False
        for k in torch.randperm(len(names), generator=generator).tolist():
            size = len(index[names[k]])
            gain = torch.zeros(size, size)
            for axis in spec.groups[names[k]].axes:
                if axis.key in spec.statistics:
                    continue
                weight = b[axis.key]
                for name, group in spec.groups.items():
                    for other in group.axes:
                        if other.key == axis.key and other.dim != axis.dim:
                            weight = weight.index_select(other.dim, index[name])
                gain += axis.units(a[axis.key]) @ axis.units(weight).T
            new = torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])
            places = torch.arange(size)
            progress |= bool(gain[places, new].sum() > gain[places, index[names[k]]].sum() + 1e-12)
            index[names[k]] = new
    return Permutation(spec, index)
