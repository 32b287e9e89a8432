"""Kinds of nets that people have and that a tracer gets wrong, with the symmetries that they have on paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.tracing.kinds_nets import (
    Bag,
    Buffered,
    Chosen,
    Complex,
    Constant,
    Flow,
    Hidden,
    Interactions,
    Messages,
    Numbered,
    Packed,
    Radial,
    Routed,
    Sampled,
    Shuffled,
    Table,
)
from tests.tracing.nets import Branches, members


class Kind(NamedTuple):
    """A net, its inputs, and log10 of its number of symmetries on paper."""

    make: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    log10: float


def _below_zero(y: Tensor) -> Tensor:
    y = y.clone()
    y[y < 0] = 0
    return y


def _statistic(y: Tensor) -> Tensor:
    _ = y[:, :4].mean()
    return y.relu()


def _written(y: Tensor) -> Tensor:
    y = y.clone()
    y[:, 2] = 0.5
    return y.tanh()


ROW, EDGES = torch.randn(3, 4), torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
WORDS, LENGTHS = torch.tensor([[3, 10, 2, 7, 1, 4], [5, 6, 0, 0, 0, 0], [9, 8, 1, 1, 0, 0]]), torch.tensor([6, 4, 2])
SIX = members((6,))
KINDS: dict[str, Kind] = {
    **{f"mask of {kind}": Kind(lambda kind=kind: Buffered(kind), (ROW,), SIX) for kind in ("units", "weights")},
    "weights of 8 bits": Kind(lambda: Buffered("int8"), (ROW,), SIX),
    "a buffer that numbers units": Kind(Numbered, (ROW,), members((3,))),
    "an attribute of ones": Kind(lambda: Constant(attribute=True), (ROW,), members((5,))),
    "a buffer of ones that is not saved": Kind(lambda: Constant(attribute=False), (ROW,), members((5,))),
    "interactions": Kind(Interactions, (torch.tensor([0, 1]), torch.tensor([2, 3])), members((4,))),
    **{
        f"messages by {kind}": Kind(lambda kind=kind: Messages(kind), (torch.randn(4, 4), EDGES), members((6,), (5,)))
        for kind in ("index_add", "scatter", "index_put")
    },
    "bag of words": Kind(Bag, (torch.tensor([0, 1, 2]), torch.tensor([0, 2])), SIX),
    "radial basis": Kind(Radial, (ROW,), SIX),
    "grid sample": Kind(Sampled, (torch.randn(2, 3, 6, 6), torch.rand(2, 4, 4, 2) * 2 - 1), SIX),
    "written through a mask": Kind(lambda: Hidden(_below_zero), (ROW,), SIX),
    "one unit written": Kind(lambda: Hidden(_written), (ROW,), members((5,))),
    "one unit as a gate": Kind(lambda: Hidden(lambda y: y * y[:, 2:3].sigmoid()), (ROW,), members((5,))),
    "two units as gates": Kind(
        lambda: Hidden(lambda y: y * y[:, 1:2].sigmoid() * y[:, 4:5].tanh(), 8), (ROW,), members((6,))
    ),
    "a stretch as gates": Kind(
        lambda: Hidden(lambda y: y * y[:, 2:4].prod(1, keepdim=True), 8), (ROW,), members((2,), (6,))
    ),
    "units 0, 3 and 6 as gates": Kind(
        lambda: Hidden(lambda y: y * y[:, ::3].prod(1, keepdim=True), 8), (ROW,), members((3,), (5,))
    ),
    "a statistic that nothing reads": Kind(lambda: Hidden(_statistic), (ROW,), SIX),
    "time as a unit's shape": Kind(Flow, (ROW,), SIX),
    "rows that an example does not read": Kind(Table, (torch.randn(2, 5, 4),), SIX),
    "chosen experts": Kind(Chosen, (torch.randn(3, 5),), members((6,), (4, 7))),
    "routed experts": Kind(Routed, (torch.randn(4, 5),), members((6,), (4,), (4,), (4,))),
    **{
        f"packed {layer.__name__}{', unpacked' * unpacked}": Kind(
            lambda layer=layer, unpacked=unpacked: Packed(layer, unpacked, unpacked),
            (WORDS, LENGTHS),
            members((5,), (4,)),
        )
        for layer in (nn.LSTM, nn.GRU, nn.RNN)
        for unpacked in (False, True)
    },
    # Swapping both blocks of the shortcut with the four inside them is a symmetry too (a factor of 2), and not found.
    "shuffled groups with a shortcut": Kind(Shuffled, (torch.randn(2, 3, 4, 4),), members((2, 4), (4, 2))),
    "groups of a concatenation": Kind(
        lambda: nn.Sequential(
            Branches(lambda a, b: torch.cat((a, b), 1)[..., None], nn.Linear(4, 4), nn.Linear(4, 4)),
            nn.Conv1d(8, 6, 1, groups=2),
            nn.Flatten(),
            nn.Linear(6, 2),
        ),
        (ROW,),
        members((2, 4), (2, 3)),
    ),
    "complex weights": Kind(Complex, (ROW,), SIX),
    "spectrum": Kind(
        lambda: Hidden(lambda y: torch.fft.rfft(y, dim=0).abs()), (torch.randn(4, 4),), SIX
    ),
    "windows": Kind(
        lambda: Hidden(lambda y: y.unfold(1, 3, 3).logsumexp(-1), 6, 2), (ROW,), members((2,), (2, 3))
    ),
    "kernels of size 1 along time": Kind(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Conv1d(3, 3, 1), nn.GELU(), nn.Flatten(), nn.Linear(18, 2)),
        (torch.randn(2, 3, 4),),
        members((6,), (3,)),
    ),
}  # fmt: skip


def random_checkpoint(model: nn.Module, seed: int) -> dict[str, Any]:
    """Another checkpoint of the architecture: whole numbers differ too, as far as the model runs with them."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Any] = {}
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() or tensor.is_complex():
            state[key] = torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator)
        else:
            highest = 2 if tensor.dtype == torch.bool else 5
            state[key] = torch.randint(highest, tensor.shape, generator=generator).to(tensor.dtype)
    return state
