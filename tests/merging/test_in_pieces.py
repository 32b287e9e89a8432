"""The mean in pieces is the mean; with a base it is task arithmetic."""

import pytest
import torch
from torch import nn

from fedrebasin import MergeError, Permutation, PermutationSpec, average
from fedrebasin.merging import in_pieces
from fedrebasin.merging.in_pieces import MeanInPieces
from fedrebasin.models import VGG11, ResNet20


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
        self.head = nn.Linear(12, 2)

    def forward(self, inputs):
        return self.head(self.inner(inputs)[:, 0])


NETS = {
    "vgg": (lambda: VGG11((3, 64, 64), width=0.05), (2, 3, 64, 64)),
    "resnet": (lambda: ResNet20(width=0.4, norm="batch"), (2, 3, 16, 16)),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1, groups=4), nn.Flatten(), nn.Linear(48, 2)),
        (2, 3, 2, 2),
    ),
    "attention": (Attention, (2, 5, 12)),
}


def models(name, count, seed):
    make, shape = NETS[name]
    torch.manual_seed(seed)
    built = [make().eval() for _ in range(count)]
    spec = PermutationSpec.trace(built[0], torch.zeros(shape))
    generator = torch.Generator().manual_seed(seed)
    return [model.state_dict() for model in built], [Permutation.random(spec, generator) for _ in built]


def whole(pieces, like):
    return {key: torch.cat([part.reshape(-1) for part in pieces(key)]).reshape(like[key].shape) for key in like}


@pytest.mark.parametrize("entries", [60, 2**20])
@pytest.mark.parametrize("name", NETS)
def test_it_is_the_average_of_the_permuted_models(name, entries, monkeypatch):
    monkeypatch.setattr(in_pieces, "_PIECE", entries)
    states, permutations = models(name, 3, seed=4)
    permutations[0] = None
    aligned = [state if p is None else p.apply(state) for p, state in zip(permutations, states, strict=True)]
    for weights in (None, [2.0, 0.5, 1.0]):
        found = whole(MeanInPieces(states, permutations, weights), states[0])
        expected = average(aligned, weights)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_with_a_base_it_is_task_arithmetic():
    (base, a, b), (_, p, q) = models("resnet", 3, seed=1)
    kept = MeanInPieces([a, b], [p, q], [0.7, -0.2], base)
    found, x, y = whole(kept, base), p.apply(a), q.apply(b)
    for key, tensor in base.items():
        if tensor.is_floating_point():
            expected = tensor + 0.7 * (x[key] - tensor) - 0.2 * (y[key] - tensor)
            assert torch.allclose(found[key], expected, atol=1e-6)
    mean = whole(MeanInPieces([a, b], [p, q], None, base), base)
    average_of_both = average([x, y])
    assert all(torch.allclose(mean[key].double(), average_of_both[key].double(), atol=1e-6) for key in base)


@pytest.mark.parametrize("weights", [[1.0], [1.0, float("nan")]])
@pytest.mark.parametrize("based", [False, True])
def test_weights_that_cannot_be_used_are_refused(weights, based):
    (a, b, c), _ = models("grouped", 3, seed=0)
    with pytest.raises(MergeError):
        MeanInPieces([a, b], [None, None], weights, c if based else None)


@pytest.mark.parametrize("name", NETS)
def test_one_tensor_is_what_it_is_in_the_permuted_model(name):
    states, permutations = models(name, 1, seed=5)
    for key, tensor in permutations[0].apply(states[0]).items():
        assert torch.equal(in_pieces.permuted(permutations[0], key, states[0][key]), tensor), key


def test_one_tensor_without_entries_stays():
    spec = PermutationSpec.from_axes({"weight": ("P", None), "bias": ("P",)})
    state = {"weight": torch.zeros(0, 3), "bias": torch.zeros(0)}
    assert in_pieces.permuted(Permutation.identity(spec.bind(state)), "weight", state["weight"]) is state["weight"]
