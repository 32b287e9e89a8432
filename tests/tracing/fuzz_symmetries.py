"""Brute force: all permutations of the entries of a small net's state dict that leave its function as it is.

Nothing here knows how nets are built: only their outputs are looked at. If a permutation p keeps the function, then
setting entry i apart from all others of its kind gives the same output as setting p(i) apart, and likewise for pairs.
So the symmetries are automorphisms of a coloured complete graph on the entries, which individualisation and refinement
(McKay's nauty) lists; each is then tried on random states, and only those that keep the function count. The order of
the group is the product of the orbits along a chain of stabilisers (Schreier and Sims).

What is found is always there. It is all there is, except where a net takes decisions at ties (argmax, top-k): these
hide symmetries at the states in which entries are equal.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.tracing.fuzz_colours import STATES, close, live_entries, stable_cells
from tests.tracing.fuzz_entries import INPUTS, Entries
from tests.tracing.fuzz_search import Search, Symmetries


def symmetries(entries: Entries, seed: int = 0) -> Symmetries:
    """All symmetries of a net, as permutations of its entries.

    Raises:
        UndecidedError: if there are too many candidates to try.
    """
    generator = torch.Generator().manual_seed(seed)
    live = live_entries(entries, generator)
    colours = stable_cells(entries, live, generator)
    _, cells, counts = np.unique(colours, return_inverse=True, return_counts=True)
    some = np.flatnonzero((counts[cells] > 1) & live.numpy())
    found = Symmetries(live)
    if some.size:
        Search(entries, some, cells, found, generator).run()
    return found


def twins(entries: Entries, found: Symmetries, seed: int = 1) -> Tensor:
    """A number for each entry; entries of one tensor that can be swapped alone have the same.

    These are the entries that the function sees only the sum of (or another symmetric function), or not at all.
    """
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(STATES, entries.number, generator=generator, dtype=torch.float64)
    before = entries.outputs(u, INPUTS)
    owner, classes = entries.owner, torch.arange(entries.number)
    dead = torch.where(found.live, -1, owner)
    for which in range(int(owner.max()) + 1):
        some = torch.nonzero(dead == which).flatten()
        classes[some] = some[:1].expand_as(some)
    moving = torch.zeros_like(found.live)
    for image in found.generators:
        moving |= image != torch.arange(len(image))
    first, second = torch.combinations(torch.nonzero(moving).flatten(), 2).T
    same = owner[first] == owner[second]
    first, second = first[same], second[same]
    for row, expected in zip(u, before, strict=True):
        if not len(first):
            break
        rows = row.repeat(len(first), 1)
        rows.scatter_(1, first[:, None], row[second][:, None]).scatter_(1, second[:, None], row[first][:, None])
        kept = close(entries.outputs(rows, INPUTS), expected[None])
        first, second = first[kept], second[kept]
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        classes[classes == classes[other]] = int(classes[one])
    return torch.unique(classes, return_inverse=True)[1]
