"""Models as vectors: the laws of inner products and of the mean, against slow oracles."""

import math
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
import torch

from fedrebasin import MergeError, Permutation, PermutationSpec, average, memory
from fedrebasin.state import (
    Mean,
    cosine,
    cosine_of,
    cosines,
    demand_equal,
    distance,
    gram,
    inner,
    length,
    real,
    vectors,
)

SHAPES = {"0.weight": (7, 5), "0.bias": (7,), "1.weight": (3, 7), "scale": (), "none": (0, 2)}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]
DTYPES += [torch.float8_e4m3fn, torch.float8_e5m2]
AXES = {"0.weight": ("P", None), "0.bias": ("P",), "1.weight": (None, "P"), "scale": (), "none": (None, None)}
SPEC = PermutationSpec.from_axes(AXES)


def model(seed, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def numbers(shape):
        found = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        return torch.complex(found, found.flip(0) if found.dim() else -found) if dtype.is_complex else found

    return {key: numbers(shape).to(dtype) for key, shape in SHAPES.items()}


def flat(state):
    """All numbers, one after the other."""
    return [float(number) for tensor in state.values() for number in real(tensor).flatten()]


def slow_inner(a, b):
    return float(sum(Fraction(x) * Fraction(y) for x, y in zip(flat(a), flat(b), strict=True)))


def combined(a, b, by):
    return {key: tensor + by * b[key] for key, tensor in a.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_they_are_those_of_a_slow_oracle(dtype):
    a, b = model(0, dtype), model(1, dtype)
    assert inner(a, b) == pytest.approx(slow_inner(a, b), rel=1e-12)
    assert length(a) == pytest.approx(math.sqrt(slow_inner(a, a)), rel=1e-12)
    apart = math.sqrt(sum((x - y) ** 2 for x, y in zip(flat(a), flat(b), strict=True)))
    assert distance(a, b) == pytest.approx(apart, rel=1e-12)
    assert cosine(a, b) == pytest.approx(slow_inner(a, b) / length(a) / length(b), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_inner_products_are_bilinear_and_symmetric(seed):
    a, b, c = (model(3 * seed + k) for k in range(3))
    assert inner(combined(a, b, 0.7), c) == pytest.approx(inner(a, c) + 0.7 * inner(b, c), abs=1e-12)
    assert inner(a, b) == inner(b, a)
    assert inner(a, a) > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_law_of_cosines(seed, dtype):
    a, b = model(seed, dtype), model(seed + 1, dtype)
    assert distance(a, b) ** 2 == pytest.approx(inner(a, a) + inner(b, b) - 2 * inner(a, b), rel=1e-12)
    assert cosine(a, a) == pytest.approx(1, abs=1e-14)
    if dtype.itemsize > 1:
        assert cosine(a, {key: -tensor for key, tensor in a.items()}) == pytest.approx(-1, abs=1e-14)
    assert distance(a, a) == 0
    assert distance(a, b) <= length(a) + length(b)


def test_small_distances_are_not_lost():
    a = model(0, scale=1e6)
    assert distance(a, {key: tensor + 1e-6 for key, tensor in a.items()}) == pytest.approx(
        1e-6 * math.sqrt(len(flat(a))), rel=1e-3
    )


@pytest.mark.parametrize("seed", range(3))
def test_permuting_both_models_changes_nothing(seed):
    a, b = model(seed, torch.float32), model(seed + 9, torch.float32)
    spec = SPEC.bind(a)
    permutation = Permutation.random(spec, torch.Generator().manual_seed(seed))
    x, y, keys = permutation.apply(a), permutation.apply(b), spec.voting(a)
    for law in (inner, distance, cosine):
        assert law(x, y, keys) == pytest.approx(law(a, b, keys), rel=1e-12)
    assert cosines(x, y, keys)[1] == pytest.approx(cosines(a, b, keys)[1], rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pieces_are_the_whole(dtype, monkeypatch):
    a, b = model(0, dtype), model(1, dtype)

    def measured():
        return [inner(a, b), distance(a, b), cosine(a, b), *gram([a, b], [1]).flatten().tolist()], average([a, b])

    numbers, mean = measured()
    monkeypatch.setattr(memory, "_CACHED", 2)
    monkeypatch.setattr(vectors, "_COLUMN", 2)
    assert measured()[0] == pytest.approx(numbers, rel=1e-12)
    assert flat(measured()[1]) == flat(mean)


def test_only_the_keys_asked_for_count_and_layers_are_cosines_of_their_tensors():
    a, b = model(0), model(1)
    layer = ["0.weight", "0.bias"]
    found, by_layer = cosines(a, b, [*layer, "scale"])
    assert by_layer["0"] == pytest.approx(cosine(a, b, layer))
    assert by_layer["scale"] == pytest.approx(cosine(a, b, ["scale"]))
    assert found == pytest.approx(cosine({key: a[key] for key in (*layer, "scale")}, b))
    assert inner({**a, "steps": torch.tensor(3)}, {**b, "steps": torch.tensor(4)}) == inner(a, b)


def test_models_of_other_dtypes_and_layouts_are_compared():
    a = model(0, torch.float32)
    other = {key: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for key, tensor in a.items()}
    assert distance(a, {key: tensor.double() for key, tensor in other.items()}) == 0


def test_the_gram_matrix_holds_the_inner_products():
    states = [model(k, torch.bfloat16) for k in range(4)]
    expected = [[inner(a, states[k]) for k in (2, 0)] for a in states]
    assert torch.allclose(gram(states, [2, 0]), torch.tensor(expected, dtype=torch.float64), rtol=1e-12)


def test_cosines_where_something_is_zero_or_beyond_float64():
    a = model(0)
    zero, huge = ({key: tensor * by for key, tensor in a.items()} for by in (0, 1e200))
    assert cosine(zero, zero) == 1
    assert cosine(a, zero) == 0
    assert cosine(huge, huge) == 0
    assert cosine_of({"w": 2.0}, {"w": 1.0}, {"w": 1.0}) == 1  # rounding does not pass one


def slow_mean(states, weights):
    """Exact: fractions, entry by entry."""
    total = sum(map(Fraction, weights))
    columns = zip(*map(flat, states), strict=True)
    return [float(sum(Fraction(w) * Fraction(x) for w, x in zip(weights, col, strict=True)) / total) for col in columns]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_mean_is_that_of_a_slow_oracle_in_the_first_models_dtype(dtype):
    states, weights = [model(k, dtype) for k in range(4)], [3.0, 0.0, 1e-3, 7]
    mean = average(states, weights)
    assert all(tensor.dtype == dtype and tensor.shape == SHAPES[key] for key, tensor in mean.items())
    eps = max(1e-12, torch.finfo(dtype).eps)
    assert flat(mean) == pytest.approx(slow_mean(states, weights), rel=eps, abs=eps)


def test_models_of_many_dtypes_have_a_mean_of_the_first_ones():
    states = [model(k, dtype) for k, dtype in enumerate((torch.float32, torch.bfloat16, torch.float8_e5m2))]
    mean = average([*states, model(3)])
    assert all(tensor.dtype == torch.float32 for tensor in mean.values())
    assert flat(mean) == pytest.approx(slow_mean([*states, model(3)], [1] * 4), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_streams_lists_orders_and_partial_means_agree(seed):
    states = [model(k + seed, torch.float32) for k in range(6)]
    weights = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    listed = average(states, weights)
    assert all(torch.equal(tensor, listed[key]) for key, tensor in average(iter(states), weights).items())
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = average([states[k] for k in order], [weights[k] for k in order])
    assert flat(shuffled) == pytest.approx(flat(listed), rel=1e-6)
    wide = [{key: tensor.double() for key, tensor in state.items()} for state in states]
    parts = [(order[:2], 0), (order[2:3], 1), (order[3:], 2)]
    means = [average([wide[k] for k in part], [weights[k] for k in part]) for part, _ in parts]
    sums = [sum(weights[k] for k in part) for part, _ in parts]
    for turn in ([0, 1, 2], [2, 0, 1]):
        merged = average([means[k] for k in turn], [sums[k] for k in turn])
        assert flat(merged) == pytest.approx(flat(average(wide, weights)), rel=1e-12)


def test_a_mean_may_be_looked_at_and_goes_on():
    a, b = model(0), model(1)
    mean = Mean()
    mean.add(a)
    kept = {key: tensor.clone() for key, tensor in a.items()}
    first = mean.finish()
    assert all(torch.equal(tensor, kept[key]) for key, tensor in first.items())
    mean.add(b)
    assert flat(mean.finish()) == pytest.approx(slow_mean([a, b], [1, 1]), rel=1e-14)
    assert all(torch.equal(tensor, kept[key]) for state in (a, first) for key, tensor in state.items())


@pytest.mark.parametrize(
    "weights",
    [[5e-324, 1e-320], [1e308, 1.7e308], [1e-308, 1.0, 1e308], [0.0, 5e-324], [0, 0, 3], [1, 10**6, 2**60]],
    ids=str,
)
def test_weights_of_any_size_can_be_used(weights):
    states = [model(k, scale=1e290) for k in range(len(weights))]
    assert flat(average(states, weights)) == pytest.approx(slow_mean(states, weights), rel=1e-12)
    largest = {"w": torch.full((2,), 1.7e308, dtype=torch.float64)}
    assert flat(average([largest] * len(weights), weights)) == pytest.approx(flat(largest), rel=1e-14)


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf, -math.inf])
def test_weights_that_cannot_be_used_are_refused(weight):
    with pytest.raises(MergeError, match="finite"):
        Mean().add(model(0), weight)
    with pytest.raises(MergeError, match="finite"):
        average([model(0), model(1)], [1, weight])


def test_no_model_and_no_weight_have_no_mean():
    with pytest.raises(MergeError, match="no model"):
        Mean().finish()
    mean = Mean()
    mean.add(model(0), 0)
    with pytest.raises(MergeError, match="all zero"):
        mean.finish()


def test_integers_are_equal_or_averaged():
    a = {"w": torch.ones(2), "steps": torch.tensor(4), "mask": torch.tensor([True, False])}
    b = {"w": torch.zeros(2), "steps": torch.tensor(7), "mask": torch.tensor([True, True])}
    same = {**b, "mask": a["mask"].clone()}
    mean = average([a, same])
    assert (int(mean["steps"]), mean["mask"].tolist(), mean["mask"].dtype) == (4, [True, False], torch.bool)
    with pytest.raises(MergeError, match=r"^mask: 1 of 2 entries of model 2 "):
        average([a, b])
    refused = Mean()
    refused.add(a)
    for other in (b, {**same, "w": torch.ones(3)}, {**same, "w": torch.ones(2, dtype=torch.complex64)}, {}):
        with pytest.raises(MergeError):
            refused.add(other, 5)
    refused.add(same)
    assert refused.finish()["w"].tolist() == [0.5, 0.5]
    with pytest.raises(MergeError, match=r"^mask: 1 of 2 entries of model 7 "):
        demand_equal("mask", a["mask"], b["mask"], 7)
    for total in (None, 4.0):
        averaged = Mean("averaged", total=total)
        for state, weight in ((a, 3.0), (b, 1.0)):
            averaged.add(state, weight)
        found = averaged.finish()
        assert (float(found["steps"]), found["mask"].tolist()) == (4.75, [1, 0.25])
        assert {found[key].dtype for key in ("steps", "mask")} == {torch.float64}
        assert found["w"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_with_a_total_every_product_and_sum_is_rounded_as_numpy_does(dtype):
    states, weights = [model(k, dtype) for k in range(4)], [17, 33, 1, 1009]
    mean = Mean("averaged", total=sum(weights))
    for state, weight in zip(states, weights, strict=True):
        mean.add(state, weight)
    for key, tensor in mean.finish().items():
        arrays = [state[key].numpy() for state in states]  # numpy 1 made float64 of what has no dimension
        products = [np.multiply(a, w / 1060, dtype=a.dtype) for a, w in zip(arrays, weights, strict=True)]
        expected = reduce(np.add, products)
        assert tensor.numpy().tobytes() == expected.tobytes()


@pytest.mark.cuda
def test_models_on_two_devices():
    a, b = model(0, torch.float32), model(1, torch.float32)
    there = {key: tensor.cuda() for key, tensor in b.items()}
    assert distance(a, there) == pytest.approx(distance(a, b))
    assert gram([a, there], [1]).tolist() == pytest.approx(gram([a, b], [1]).tolist())
    assert all(tensor.device.type == "cpu" for tensor in average([a, there]).values())
