from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrebasin import MatchingError, Permutation, PermutationSpec, SpecError, WeightMatching
from fedrebasin.matching.problem import Problem
from tests.matching.oracle import inner_product, members, plain_algorithm_1
from tests.zoo import ZOO, State, few_examples, mlp, same, state_of

METHODS = ("auto", "coordinate", "frank-wolfe", "greedy")
specs = st.sampled_from(sorted(ZOO)).map(ZOO.__getitem__)
seeds = st.integers(0, 2**31)


def pair(spec: PermutationSpec, seed: int) -> tuple[State, State]:
    return state_of(spec, seed), state_of(spec, seed + 1)


@few_examples
@given(specs, seeds, st.sampled_from(METHODS))
def test_the_objective_is_what_it_says_and_never_falls(spec: PermutationSpec, seed: int, method: str) -> None:
    a, b = pair(spec, seed)
    found = WeightMatching(method=method, seed=seed)(spec, reference=a, candidate=b)
    aligned = found.apply(b)
    assert found.history.objective[-1] == pytest.approx(inner_product(spec, a, aligned), abs=1e-9)
    assert found.history.objective[0] == pytest.approx(inner_product(spec, a, b), abs=1e-9)
    assert method == "greedy" or list(found.history.objective) == sorted(found.history.objective)
    assert -1 <= found.similarity <= 1


@few_examples
@given(specs, seeds)
def test_results_depend_on_the_seed_only(spec: PermutationSpec, seed: int) -> None:
    a, b = pair(spec, seed)
    first = WeightMatching(seed=seed)(spec, a, b)
    second = WeightMatching(seed=seed, threads=3)(spec, a, b)
    assert first.permutation == second.permutation
    assert first.history.objective == second.history.objective


@few_examples
@given(seeds, st.sampled_from(["coordinate", "auto"]), st.sampled_from([(2, 3, 2), (2, 4, 3, 2), (3, 5, 2)]))
def test_brute_force_bounds_the_matching(seed: int, method: str, sizes: tuple[int, ...]) -> None:
    spec = mlp(*sizes)
    a, b = pair(spec, seed)
    best = max(inner_product(spec, a, member.apply(b)) for member in members(spec))
    found = WeightMatching(method=method)(spec, a, b).history.objective[-1]
    assert found <= best + 1e-9
    if len(spec.groups) == 1:
        assert found == pytest.approx(best)


@few_examples
@given(seeds)
def test_nested_groups_are_matched_exactly(seed: int) -> None:
    """Heads and the units inside them: one solve is the optimum over the whole wreath product."""
    spec = ZOO["attention"]
    a, b = pair(spec, seed)
    found = WeightMatching(method="coordinate")(spec, a, b).history.objective[-1]
    blocks = {key: (x.reshape(-1, 3, 3, 4), b[key].reshape(-1, 3, 3, 4)) for key, x in a.items() if key == "qkv"}
    blocks["out"] = (a["out"].T.reshape(1, 3, 3, 4), b["out"].T.reshape(1, 3, 3, 4))
    q, out = blocks["qkv"], blocks["out"]

    def inside(u: int, v: int, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        pairs = [(x[u], y[v]) for x, y in parts]
        orders = (list(order) for order in itertools.permutations(range(3)))
        return max(sum(float((x * y[order]).sum()) for x, y in pairs) for order in orders)

    worth = [
        [
            inside(u, v, [(q[0][0], q[1][0]), (q[0][1], q[1][1])])
            + inside(u, v, [(q[0][2], q[1][2]), (out[0][0], out[1][0])])
            for v in range(3)
        ]
        for u in range(3)
    ]
    best = max(sum(worth[u][v] for u, v in enumerate(order)) for order in itertools.permutations(range(3)))
    assert found == pytest.approx(best)


@few_examples
@given(specs, seeds, st.sampled_from(METHODS[:3]))
def test_a_planted_permutation_is_undone(spec: PermutationSpec, seed: int, method: str) -> None:
    a = state_of(spec, seed)
    planted = Permutation.random(spec, torch.Generator().manual_seed(seed))
    init = planted.inverse()
    found = WeightMatching(method=method, init=init)(spec, a, planted.apply(a))
    assert found.permutation == init
    assert found.similarity == pytest.approx(1)
    assert same(found.apply(planted.apply(a)), a)


@few_examples
@given(seeds)
def test_skipping_solves_changes_nothing(seed: int) -> None:
    """Algorithm 1 as published, everything computed anew at each step, ends at the same objective."""
    spec = mlp(4, 12, 9, 11, 3)
    a, b = pair(spec, seed)
    found = WeightMatching(method="coordinate", seed=seed)(spec, a, b)
    assert found.history.objective[-1] == pytest.approx(plain_algorithm_1(spec, a, b, seed), abs=1e-9)


@few_examples
@given(seeds)
def test_updated_cost_matrices_match_new_ones(seed: int) -> None:
    """The same in sizes where assignments are warm and float32 products are added up."""
    spec = mlp(10, 120, 130, 5)
    a, b = state_of(spec, seed, torch.float32), state_of(spec, seed + 1, torch.float32)
    found = WeightMatching(method="coordinate", seed=seed)(spec, a, b)
    assert found.history.objective[-1] == pytest.approx(plain_algorithm_1(spec, a, b, seed), rel=1e-5)


def test_auto_is_no_worse_than_what_it_chooses_from() -> None:
    spec = mlp(20, 64, 64, 64, 10)
    a, b = pair(spec, 0)
    value = {method: WeightMatching(method=method)(spec, a, b).history.objective[-1] for method in METHODS}
    assert value["auto"] >= max(value["coordinate"], value["frank-wolfe"]) - 1e-9


def test_more_orders_are_no_worse() -> None:
    spec = mlp(5, 20, 20, 20, 3)
    a, b = pair(spec, 4)
    one, many = (WeightMatching(method="coordinate", restarts=n)(spec, a, b) for n in (1, 8))
    assert many.history.objective[-1] >= one.history.objective[-1]


@pytest.mark.parametrize("seed", range(4))
def test_coordinate_ascent_finds_the_swap_that_greedy_misses(seed: int) -> None:
    """Git Re-Basin, A.7.2: in every order of the layers; the halfway model computes (1 + eps / 2) x, greedy's 0.5 x."""
    eps = 1e-2
    spec = PermutationSpec.from_axes({"0": ("P_1", None), "1": ("P_2", "P_1"), "2": (None, "P_2")})
    read = torch.tensor([[1.0], [1.0 + eps]])
    a = {"0": read, "1": torch.tensor([[1.0, 0.0], [0.0, eps]]), "2": torch.tensor([[1.0, 0.0]])}
    b = {"0": read, "1": torch.tensor([[0.0, 0.0], [0.0, 1.0]]), "2": torch.tensor([[0.0, 1.0]])}
    swap, stay = torch.tensor([1, 0]), torch.tensor([0, 1])
    coordinate = WeightMatching(method="coordinate", seed=seed, restarts=1)(spec, a, b)
    greedy = WeightMatching(method="greedy", seed=seed)(spec, a, b)
    assert all(torch.equal(coordinate.permutation[name], swap) for name in ("P_1", "P_2"))
    assert all(torch.equal(greedy.permutation[name], stay) for name in ("P_1", "P_2"))
    for found, slope in ((coordinate, 1 + eps / 2), (greedy, 0.5)):
        middle = {key: (a[key] + tensor) / 2 for key, tensor in found.apply(b).items()}
        assert float(middle["2"] @ middle["1"] @ middle["0"]) == pytest.approx(slope, abs=eps)


def test_a_counterexample_has_no_connecting_permutation() -> None:
    """Git Re-Basin, A.6: two nets of one function, no permutation of which classifies as they do in between."""
    spec = PermutationSpec.from_axes(
        {"0": ("P_1", None), "0b": ("P_1",), "1": ("P_2", "P_1"), "1b": ("P_2",), "2": (None, "P_2")}
    )
    outer = torch.tensor([[-1.0, -1.0]])
    a = {"0": -torch.eye(2), "0b": torch.tensor([1.0, 0.0]), "1": torch.diag(torch.tensor([-1.0, 1.0]))}
    b = {"0": torch.eye(2), "0b": torch.tensor([0.0, 1.0]), "1": torch.diag(torch.tensor([1.0, -1.0]))}
    a |= {"1b": a["0b"], "2": outer}
    b |= {"1b": b["0b"], "2": outer}
    line = torch.linspace(-0.95, 0.95, 20)
    points = torch.cartesian_prod(line, line).T

    def predicts(state: State) -> torch.Tensor:
        hidden = torch.relu(state["0"] @ points + state["0b"][:, None])
        return (state["2"] @ torch.relu(state["1"] @ hidden + state["1b"][:, None]))[0] >= -1e-6

    labels = (points[0] < 0) & (points[1] > 0)
    assert torch.equal(predicts(a), labels)
    assert torch.equal(predicts(b), labels)
    barriers = []
    for member in members(spec.bind(a)):
        moved = member.apply(b)
        paths = [{key: (1 - lam) * a[key] + lam * moved[key] for key in a} for lam in (0.25, 0.5, 0.75)]
        barriers.append(max(float((predicts(state) != labels).float().mean()) for state in paths))
    assert len(barriers) == 4
    assert min(barriers) > 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_are_kept_and_matched_in_enough_precision(dtype: torch.dtype) -> None:
    spec = mlp(6, 40, 30, 3)
    a = state_of(spec, 0, dtype)
    planted = Permutation.random(spec, torch.Generator().manual_seed(0))
    b = planted.apply(a)
    found = WeightMatching()(spec, a, b)
    assert found.permutation == planted.inverse()
    assert {tensor.dtype for tensor in found.apply(b).values()} == {dtype}


def test_arguments_stay_as_they_are() -> None:
    spec = ZOO["flattened"]
    a, b = pair(spec, 0)
    copies = [{key: tensor.clone() for key, tensor in state.items()} for state in (a, b)]
    WeightMatching()(spec, a, b)
    assert same(a, copies[0])
    assert same(b, copies[1])


def test_frozen_groups_stay() -> None:
    spec = mlp(4, 8, 8, 2).freeze(["P_0"])
    a, b = pair(spec, 0)
    assert torch.equal(WeightMatching()(spec, a, b).permutation["P_0"], torch.arange(8))


def test_statistics_move_but_do_not_vote() -> None:
    spec = ZOO["flattened"]
    a, b = pair(spec, 0)
    other = {**a, "norm.running_mean": torch.full((4,), 1e6, dtype=torch.float64)}
    found = WeightMatching()(spec, a, b)
    assert found.permutation == WeightMatching()(spec, other, b).permutation
    expected = b["norm.running_mean"][found.permutation["C"]]
    assert torch.equal(found.apply(b)["norm.running_mean"], expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("role", ["reference", "candidate"])
def test_weights_that_are_not_finite_are_named(bad: float, role: str) -> None:
    spec = mlp(3, 4, 2)
    a, b = pair(spec, 0)
    (a if role == "reference" else b)["1.weight"][0, 1] = bad
    with pytest.raises(MatchingError, match=rf"{role}: 1\.weight has 1 value"):
        WeightMatching()(spec, a, b)


def test_sums_that_overflow_are_not_mistaken_for_bad_weights() -> None:
    spec = mlp(3, 4, 2)
    a = {key: tensor * 1e38 for key, tensor in state_of(spec, 0, torch.float32).items()}
    a["0.weight"] = torch.full((4, 3), 3e38)
    assert torch.isinf(a["0.weight"].sum())
    Problem(spec, a, a)


def test_all_zero_weights_are_matched() -> None:
    spec = mlp(3, 4, 2)
    zero = {key: torch.zeros_like(tensor) for key, tensor in state_of(spec, 0).items()}
    assert WeightMatching()(spec, zero, zero).similarity == 1
    assert WeightMatching()(spec, zero, state_of(spec, 0)).similarity == 0


def test_a_spec_of_another_model_is_refused() -> None:
    with pytest.raises(SpecError, match=r"0\.weight"):
        WeightMatching()(mlp(3, 4, 2), state_of(mlp(3, 5, 2), 0), state_of(mlp(3, 5, 2), 1))


@pytest.mark.parametrize("wrong", [{"method": "fast"}, {"restarts": 0}, {"max_sweeps": 0}, {"threads": 0}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(MatchingError):
        WeightMatching(**wrong)  # type: ignore[arg-type]


def test_an_init_of_another_spec_is_refused() -> None:
    spec = mlp(3, 4, 2)
    init = Permutation.identity(mlp(3, 5, 2))
    with pytest.raises(MatchingError, match="init"):
        WeightMatching(init=init)(spec, *pair(spec, 0))


@pytest.mark.parametrize("method", METHODS)
def test_a_spent_budget_returns_the_best_so_far(method: str) -> None:
    spec = mlp(3, 8, 8, 2)
    a, b = pair(spec, 0)
    found = WeightMatching(method=method, seconds=0.0)(spec, a, b)
    assert found.permutation.is_identity
    assert not found.history.converged
    assert "budget" in found.history.reason


def test_progress_is_told_every_sweep() -> None:
    spec = mlp(3, 8, 8, 2)
    told: list[tuple[int, float]] = []
    found = WeightMatching(progress=lambda sweep, objective: told.append((sweep, objective)))(spec, *pair(spec, 0))
    assert told == list(enumerate(found.history.objective))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_gives_the_same_objective() -> None:
    spec = mlp(10, 200, 200, 5)
    a, b = pair(spec, 0)
    there = [{key: tensor.cuda() for key, tensor in state.items()} for state in (a, b)]
    found = WeightMatching()(spec, *there)
    assert found.history.objective[-1] == pytest.approx(WeightMatching()(spec, a, b).history.objective[-1], rel=1e-6)
    assert all(tensor.is_cuda for tensor in found.apply(there[1]).values())
