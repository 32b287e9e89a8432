from __future__ import annotations

import pytest
import torch

from fedrebasin import MergeError, average


def test_a_weighted_mean_in_the_first_models_dtypes() -> None:
    a = {"w": torch.tensor([1.0, 2.0], dtype=torch.float16), "n": torch.tensor(3)}
    b = {"w": torch.tensor([5.0, 6.0], dtype=torch.float16), "n": torch.tensor(9)}
    mean = average([a, b], [3, 1])
    assert torch.equal(mean["w"], torch.tensor([2.0, 3.0], dtype=torch.float16))
    assert torch.equal(mean["n"], torch.tensor(3))
    assert mean["n"] is not a["n"]


def test_sums_do_not_overflow_or_drown() -> None:
    large = {"w": torch.tensor([6e4], dtype=torch.float16)}
    assert float(average([large] * 10)["w"]) == pytest.approx(6e4, rel=1e-3)
    small = [{"w": torch.tensor([1e8])}, *[{"w": torch.tensor([1.0])}] * 100]
    assert float(average(small)["w"]) == pytest.approx((1e8 + 100) / 101, rel=1e-7)


def test_models_may_come_from_an_iterator() -> None:
    models = ({"w": torch.tensor([float(k)])} for k in range(5))
    assert float(average(models)["w"]) == 2


@pytest.mark.parametrize(
    ("other", "complaint"),
    [({"v": torch.zeros(2)}, "keys v, w"), ({"w": torch.zeros(3)}, r"w: shapes \(2,\) and \(3,\)")],
)
def test_models_that_differ_are_refused(other: dict[str, torch.Tensor], complaint: str) -> None:
    with pytest.raises(MergeError, match=complaint):
        average([{"w": torch.zeros(2)}, other])
