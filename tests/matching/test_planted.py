"""The law of matching: a permutation that was planted is found again, in every kind of network, by the defaults."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedrebasin import (
    Aligner,
    AlignTo,
    CycleConsistent,
    MergeMany,
    Permutation,
    PermutationSpec,
    WeightMatching,
)
from fedrebasin.matching import Problem, signatures
from tests.zoo import State, same

NOISE = 0.01  # of each tensor's deviation


class Encoder(nn.Module):
    """A transformer: the residual stream, heads, and units inside of heads."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, heads, 48, batch_first=True, norm_first=True)
        self.read = nn.Linear(6, 32)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.read(x)).mean(1))
        return out


class GroupedQueries(nn.Module):
    """Attention in which several heads of queries read one head of keys and values."""

    def __init__(self, width: int = 24, kept: int = 3, shared: int = 2, size: int = 4) -> None:
        super().__init__()
        self.shape = kept, shared, size
        self.read = nn.Linear(5, width)
        self.q = nn.Linear(width, kept * shared * size)
        self.k, self.v = (nn.Linear(width, kept * size) for _ in range(2))
        self.o = nn.Linear(kept * shared * size, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        kept, _, size = self.shape
        q = self.q(x).unflatten(-1, self.shape).permute(0, 2, 3, 1, 4)
        k, v = (layer(x).unflatten(-1, (kept, size)).transpose(1, 2)[:, :, None] for layer in (self.k, self.v))
        mixed = torch.softmax(q @ k.mT / 2, -1) @ v
        out: Tensor = self.head(x + self.o(mixed.permute(0, 3, 1, 2, 4).flatten(2)))
        return out


class Experts(nn.Module):
    """Experts on a residual stream, all of them run and weighted by a gate."""

    def __init__(self, experts: int, width: int = 20, hidden: int = 10, layers: int = 2) -> None:
        super().__init__()
        self.read, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        self.gates = nn.ModuleList(nn.Linear(width, experts) for _ in range(layers))
        self.first = nn.ParameterList(torch.randn(experts, width, hidden) / 4 for _ in range(layers))
        self.second = nn.ParameterList(torch.randn(experts, hidden, width) / 4 for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        for gate, first, second in zip(self.gates, self.first, self.second, strict=True):
            hidden = torch.relu(torch.einsum("bd,edh->beh", x, first))
            given = torch.einsum("beh,ehd->bed", hidden, second)
            x = x + (torch.softmax(gate(x), -1)[..., None] * given).sum(1)
        out: Tensor = self.head(x)
        return out


class Recurrent(nn.Module):
    """Two layers of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 12, 2, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x)[0][:, -1])
        return out


class Bottleneck(nn.Module):
    """ResNeXt's block."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        inner = 2 * width
        self.body = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1, groups=groups, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def resnext() -> nn.Module:
    blocks = (Bottleneck(12, groups) for groups in (4, 6, 24))
    return nn.Sequential(nn.Conv2d(3, 12, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 2))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (plain, (2, 5)),
    "4 heads": (lambda: Encoder(4), (2, 3, 6)),
    "8 heads": (lambda: Encoder(8), (2, 3, 6)),
    "grouped queries": (GroupedQueries, (2, 3, 5)),
    "2 experts": (lambda: Experts(2), (4, 5)),
    "6 experts": (lambda: Experts(6), (4, 5)),
    "LSTM": (Recurrent, (2, 4, 5)),
    "ResNeXt": (resnext, (2, 3, 8, 8)),
}
SPECS: dict[str, PermutationSpec] = {}


def network(name: str, seed: int, trained: bool) -> tuple[PermutationSpec, State]:
    """A network as it is initialised, or with no constant tensor left, as after training."""
    torch.manual_seed(seed)
    make, shape = NETWORKS[name]
    model = make().eval()
    if name not in SPECS:
        SPECS[name] = PermutationSpec.trace(model, torch.randn(shape))
    state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    if trained:
        state = {key: x + 0.1 * torch.randn_like(x) if x.is_floating_point() else x for key, x in state.items()}
    return SPECS[name], state


def planted(spec: PermutationSpec, state: State, seed: int, noise: float) -> tuple[Permutation, State]:
    """A random member, and the state that it moves, with noise."""
    generator = torch.Generator().manual_seed(seed)
    member = Permutation.random(spec, generator)
    moved = member.apply(state)
    for key in spec.voting(state):
        tensor = moved[key]
        drawn = torch.randn(tensor.shape, generator=generator)
        moved[key] = tensor + noise * tensor.std(correction=0) * drawn
    return member, moved


def undone(spec: PermutationSpec, member: Permutation, found: Permutation, state: State) -> bool:
    """Whether both together leave the state as it is: units that are equal may change places."""
    return same(found.compose(member).apply(state), state)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("noise", [0.0, NOISE])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_weight_matching_finds_what_was_planted(name: str, seed: int, noise: float, trained: bool) -> None:
    spec, state = network(name, seed, trained)
    member, moved = planted(spec, state, seed, noise)
    found = WeightMatching()(spec, reference=state, candidate=moved)
    assert undone(spec, member, found.permutation, state)
    assert found.similarity == pytest.approx(1, abs=1e-12 if noise == 0 else 1e-3)
    assert min(found.by_layer.values()) == pytest.approx(1, abs=1e-6 if noise == 0 else 1e-3)
    assert found.history.converged
    assert "permuted" in found.history.reason


@pytest.mark.parametrize("aligner", [AlignTo(), MergeMany(), CycleConsistent()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("noise", [0.0, NOISE])
@pytest.mark.parametrize("name", NETWORKS)
def test_three_copies_merge_into_the_function_itself(name: str, noise: float, aligner: Aligner) -> None:
    spec, state = network(name, 7, trained=True)
    copies = [planted(spec, state, seed, noise) for seed in range(3)]
    merge = aligner(spec, [moved for _, moved in copies])
    orders = [
        alignment.permutation.compose(member).apply(state)
        for alignment, (member, _) in zip(merge.alignments, copies, strict=True)
    ]
    assert all(same(order, orders[0]) for order in orders)
    if noise == 0:
        assert all(torch.allclose(merge.merged[key], orders[0][key], rtol=1e-6, atol=1e-6) for key in state)


@pytest.mark.parametrize("noise", [0.3, 1.0])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["4 heads", "grouped queries", "2 experts", "6 experts", "ResNeXt"])
def test_nothing_found_in_blocks_is_worse_than_what_was_planted(name: str, seed: int, noise: float) -> None:
    """With noise as large as the weights, where there is no certificate: an ascent starts from the signatures."""
    spec, state = network(name, seed, trained=True)
    member, moved = planted(spec, state, seed, noise)
    known = WeightMatching(method="coordinate", init=member.inverse(), max_sweeps=1)(spec, state, moved)
    found = WeightMatching()(spec, reference=state, candidate=moved)
    assert found.history.objective[-1] >= (1 - 1e-6) * known.history.objective[0]


@pytest.mark.parametrize("name", ["dense", "6 experts"])
def test_what_was_never_permuted_stays_without_a_search(name: str) -> None:
    """Clients of one start: their layers agree, and nothing is paired by signatures."""
    spec, state = network(name, 0, trained=True)
    near = {key: x + 0.1 * x.std() * torch.randn_like(x) if x.is_floating_point() else x for key, x in state.items()}
    found = WeightMatching()(spec, reference=state, candidate=near)
    assert found.permutation.is_identity
    assert found.history.reason == "no group can be improved any more"


@pytest.mark.parametrize("name", ["dense", "ResNeXt", "2 experts"])
def test_large_tensors_have_the_same_signatures_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, state = network(name, 0, trained=True)
    member, moved = planted(spec, state, 0, NOISE)
    monkeypatch.setattr(signatures, "LARGE", 50)
    paired = signatures.pair_by_signature(Problem(spec, state, moved))
    assert paired.distance < 0.01
    assert undone(spec, member, WeightMatching()(spec, reference=state, candidate=moved).permutation, state)


def test_strangers_are_no_copies() -> None:
    for name in NETWORKS:
        spec, state = network(name, 0, trained=True)
        _, other = network(name, 100, trained=True)
        assert "permuted" not in WeightMatching()(spec, reference=state, candidate=other).history.reason
