"""Large models: worked through in pieces, with little kept, the result is the same."""

from collections.abc import Mapping

import pytest
import torch

from fedrebasin import MatchingError, Permutation, PermutationSpec, WeightMatching
from fedrebasin.matching import problem
from fedrebasin.matching.prepared import Prepared
from fedrebasin.matching.steps import gradient
from fedrebasin.models import MLP, VGG11, ResNet20

NETS = {
    "mlp": (lambda: MLP(20, width=24), (2, 20)),
    "vgg": (lambda: VGG11((3, 64, 64), width=0.07), (2, 3, 64, 64)),
    "resnet": (lambda: ResNet20(width=0.5, norm="batch"), (2, 3, 16, 16)),
}


def pair(name, seed):
    make, shape = NETS[name]
    torch.manual_seed(seed)
    model, other = make().eval(), make().eval()
    spec = PermutationSpec.trace(model, torch.zeros(shape))
    return spec, model.state_dict(), other.state_dict()


@pytest.mark.parametrize("method", ["coordinate", "frank-wolfe"])
@pytest.mark.parametrize("name", NETS)
def test_pieces_give_what_the_whole_gives(name, method, monkeypatch):
    spec, a, b = pair(name, seed=3)
    b = {key: a[key] + 0.3 * (b[key] - a[key]) if b[key].is_floating_point() else b[key] for key in b}
    b = Permutation.random(spec, torch.Generator().manual_seed(1)).apply(b)
    whole = WeightMatching(method=method)(spec, reference=a, candidate=b)
    for module in (problem, gradient):
        monkeypatch.setattr(module, "LARGE", 40)
    monkeypatch.setattr(problem, "_TURNED_BYTES", 0)
    monkeypatch.setattr(gradient, "_KEPT_BYTES", 1)
    pieces = WeightMatching(method=method)(spec, reference=a, candidate=b)
    assert pieces.permutation == whole.permutation
    assert pieces.history.objective[-1] == pytest.approx(whole.history.objective[-1], rel=1e-7)
    assert pieces.similarity == pytest.approx(whole.similarity, rel=1e-7)


def test_half_precision_is_converted_when_it_is_asked_for(monkeypatch):
    state = {"a": torch.randn(4, 3).half(), "b": torch.randn(5).half(), "c": torch.randn(2)}
    monkeypatch.setattr("fedrebasin.matching.prepared._KEPT_BYTES", 60)
    found = Prepared(state, ["a", "b", "c"], "reference")
    assert all(torch.equal(found[key], state[key].float()) for key in state)
    assert found["a"] is found["a"]
    assert found["b"] is not found["b"]  # there was no room for another copy
    assert found["c"].data_ptr() == state["c"].data_ptr()
    with pytest.raises(KeyError):
        found["d"]


def test_what_a_mapped_file_gives_out_is_not_held():
    class Mapped(Mapping):
        def __init__(self):
            self.asked = 0

        def __getitem__(self, key):
            self.asked += 1
            return torch.ones(3)

        def __iter__(self):
            return iter(["a"])

        def __len__(self):
            return 1

    state = Mapped()
    found = Prepared(state, ["a"], "reference")
    before = state.asked
    assert found["a"].sum() + found["a"].sum() == 6
    assert state.asked == before + 2


def test_values_that_are_not_finite_are_named():
    with pytest.raises(MatchingError, match="candidate: a has 2 values"):
        Prepared({"a": torch.tensor([1.0, torch.inf, torch.nan])}, ["a"], "candidate")
