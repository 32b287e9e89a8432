import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrebasin import AlreadyAligned, Permutation, PermutationSpec, WeightMatching

AXES = {"0.weight": ("P", None), "0.bias": ("P",), "2.weight": ("Q", "P"), "2.bias": ("Q",), "4.weight": (None, "Q")}


def make_state(seed, p=7, q=5):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (p, 4), "0.bias": (p,), "2.weight": (q, p), "2.bias": (q,), "4.weight": (3, q)}
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


class Counting:
    def __init__(self):
        self.calls = 0

    def __call__(self, spec, reference, candidate):
        self.calls += 1
        return WeightMatching(method="coordinate")(spec, reference=reference, candidate=candidate)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), noise=st.floats(0, 3))
def test_what_is_skipped_the_matcher_would_not_have_moved(seed, noise):
    reference, step = make_state(seed), make_state(seed + 1)
    candidate = {key: tensor + noise * step[key] for key, tensor in reference.items()}
    inner = Counting()
    alignment = AlreadyAligned(inner)(PermutationSpec.from_axes(AXES), reference=reference, candidate=candidate)
    if inner.calls == 0:
        plain = WeightMatching(method="coordinate")
        spec = PermutationSpec.from_axes(AXES, like=reference)
        assert alignment.permutation.is_identity
        assert plain(spec, reference=reference, candidate=candidate).permutation.is_identity


def test_a_model_close_to_the_reference_is_skipped_and_a_permuted_one_is_matched():
    reference = make_state(0)
    spec = PermutationSpec.from_axes(AXES, like=reference)
    near = {key: tensor + 0.01 for key, tensor in reference.items()}
    inner = Counting()
    matcher = AlreadyAligned(inner)
    assert matcher(spec, reference=reference, candidate=near).permutation.is_identity
    assert inner.calls == 0
    moved = Permutation.random(spec, torch.Generator().manual_seed(3)).apply(near)
    back = matcher(spec, reference=reference, candidate=moved).apply(moved)
    assert inner.calls == 1
    assert all(torch.equal(back[key], near[key]) for key in near)


def test_the_similarity_is_the_cosine():
    reference = make_state(0)
    near = {key: tensor + 0.01 for key, tensor in reference.items()}
    alignment = AlreadyAligned(Counting())(PermutationSpec.from_axes(AXES), reference=reference, candidate=near)
    a, b = (torch.cat([t.flatten() for t in state.values()]) for state in (reference, near))
    assert abs(alignment.similarity - float(torch.cosine_similarity(a, b, dim=0))) < 1e-5


def test_an_axis_twice_in_one_tensor_is_left_to_the_matcher():
    state = {"w": torch.randn(4, 4), "b": torch.randn(4)}
    inner = Counting()
    AlreadyAligned(inner)(PermutationSpec.from_axes({"w": ("P", "P"), "b": ("P",)}), reference=state, candidate=state)
    assert inner.calls == 1


def test_the_distance_is_euclidean_and_a_frozen_group_stays():
    reference = make_state(0)
    near = {key: tensor + 0.01 for key, tensor in reference.items()}
    spec = PermutationSpec.from_axes(AXES, like=reference)
    close = AlreadyAligned(Counting()).closeness(spec, reference, near)
    entries = sum(tensor.numel() for tensor in reference.values())
    assert abs(close.distance - 0.01 * entries**0.5) < 1e-6
    swapped = Permutation.random(spec, torch.Generator().manual_seed(1)).apply(near)
    assert AlreadyAligned(Counting()).closeness(spec, reference, swapped) is None
    assert AlreadyAligned(Counting()).closeness(spec.freeze(["P", "Q"]), reference, swapped) is not None


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), noise=st.floats(0, 1))
def test_few_entries_never_claim_more_than_all(seed, noise):
    generator = torch.Generator().manual_seed(seed)
    axes = {"a": ("P", None), "b": ("P",), "c": (None, "P", None, None)}
    shapes = {"a": (6, 300), "b": (6,), "c": (90, 6, 3, 3)}
    reference = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    candidate = {key: t + noise * torch.randn(t.shape, generator=generator) for key, t in reference.items()}
    close = AlreadyAligned(Counting()).closeness(PermutationSpec.from_axes(axes), reference, candidate)
    units = [torch.cat([s["a"], s["b"][:, None], s["c"].movedim(1, 0).flatten(1)], 1) for s in (reference, candidate)]
    apart = torch.cdist(units[0], units[0]) + torch.diag(torch.full((6,), torch.inf))
    ratio = float(((units[0] - units[1]).norm(dim=1) / (apart.amin(1) / 2)).max())
    assert (close is not None) == (ratio < 1) or abs(ratio - 1) < 1e-3
