"""Colours: what the outputs of a net tell apart among its entries, and among pairs of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.tracing.fuzz_entries import INPUTS, Entries

Cells = NDArray[np.int64]
Colours = NDArray[np.uint64]
TOLERANCE = 1e-8
SMALLEST = 0.01  # outputs below are taken for as large: a norm of equal entries is rounding errors
STATES = 12  # random ones, where a net may take decisions by its entries
CHUNK = 8192


def equal_in_colours(entries: Entries, cells: Cells, generator: torch.Generator) -> Tensor:
    """A state in which entries of one colour are equal."""
    drawn = torch.rand(int(cells.max()) + 1, generator=generator, dtype=torch.float64)
    return drawn[torch.from_numpy(cells)]


def set_apart(u: Tensor) -> Tensor:
    """Another number for each, far from the one it has; another integer too."""
    return (u + 0.5) % 1


def live_entries(entries: Entries, generator: torch.Generator) -> Tensor:
    """Which entries the net depends on."""
    live = torch.zeros(entries.number, dtype=torch.bool)
    for _ in range(STATES):
        rest = torch.nonzero(~live).flatten()
        if not len(rest):
            break
        u = torch.rand(entries.number, generator=generator, dtype=torch.float64)
        rows = u.repeat(len(rest), 1)
        rows.scatter_(1, rest[:, None], set_apart(u)[rest][:, None])
        live[rest] = ~close(entries.outputs(rows, INPUTS), entries.outputs(u[None], INPUTS))
    return live


def close(some: Tensor, others: Tensor) -> Tensor:
    """Which rows of outputs are equal but for rounding."""
    size = others.abs().amax(-1).clamp(min=SMALLEST)
    return ~((some - others).abs().amax(-1) > TOLERANCE * size)


def summed(outputs: Tensor, weights: Tensor) -> NDArray[np.float64]:
    """One number for each row, by which rows are told apart."""
    values: NDArray[np.float64] = (outputs.nan_to_num(nan=7.7e3, posinf=9.9e5, neginf=-9.9e5) @ weights).numpy()
    return values


def room(values: NDArray[np.float64]) -> float:
    """By how much equal values may differ."""
    return TOLERANCE * max(SMALLEST, float(np.abs(values).max(initial=0)))


def labelled(values: NDArray[np.float64]) -> Cells:
    """Values that are equal but for rounding get the same number."""
    order = np.argsort(values, kind="stable")
    labels = np.empty(len(values), dtype=np.int64)
    labels[order] = np.concatenate(([0], np.cumsum(np.diff(values[order]) > room(values))))
    return labels


def stable_cells(entries: Entries, live: Tensor, generator: torch.Generator) -> Cells:
    """Colours of entries: different ones are told apart by setting one entry apart from those of its colour."""
    cells = np.where(live.numpy(), entries.owner.numpy(), -1)
    _, cells = np.unique(cells, return_inverse=True)
    steady = 0
    while steady < 2:
        u = equal_in_colours(entries, cells, generator)
        rows = u.repeat(entries.number, 1)
        rows.diagonal().copy_(set_apart(u))
        outputs = entries.outputs(rows)
        weights = torch.rand(outputs.shape[-1], generator=generator, dtype=torch.float64) + 0.5
        finer = np.stack((cells, labelled(summed(outputs, weights))), 1)
        _, finer = np.unique(finer, axis=0, return_inverse=True)
        finer = finer.reshape(-1)
        steady = steady + 1 if finer.max() == cells.max() else 0
        cells = finer
    return cells


def pair_colours(entries: Entries, some: Cells, cells: Cells, generator: torch.Generator) -> Colours:
    """Colours of pairs of entries, by setting both apart; all alike where a net cannot run on many states at once."""
    found = np.zeros((len(some), len(some)), dtype=np.uint64)
    if entries.in_batches:
        u = equal_in_colours(entries, cells, generator)
        apart = set_apart(u)
        weights = torch.rand(entries.outputs(u[None]).shape[-1], generator=generator, dtype=torch.float64) + 0.5
        first, second = np.triu_indices(len(some), 1)
        values = []
        for at in range(0, len(first), CHUNK):
            rows = u.repeat(len(first[at : at + CHUNK]), 1)
            for one in (first, second):
                where = torch.from_numpy(some[one[at : at + CHUNK]])
                rows.scatter_(1, where[:, None], apart[where][:, None])
            values.append(summed(entries.outputs(rows), weights))
        found[first, second] = found[second, first] = labelled(np.concatenate(values)) + 1
    return mixed(found)


def mixed(values: Colours) -> Colours:
    """A hash of each value (splitmix64)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
