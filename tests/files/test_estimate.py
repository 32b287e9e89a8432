"""What a merge will need: more for more, in words that people read."""

import sys

import pytest
import torch

from fedrebasin.files.estimate import estimate, in_words
from fedrebasin.models import MLP
from fedrebasin.spec.plain_stack import plain_stack


@pytest.fixture(autouse=True)
def _a_machine(monkeypatch):
    monkeypatch.setattr(sys.modules[estimate.__module__], "_speeds", lambda: (1e-9, 1e-10, 1e-9))


def spec(width):
    with torch.device("meta"):
        return plain_stack(MLP(100, width=width).state_dict())


def test_wider_models_and_more_of_them_take_longer():
    small, wide = (estimate(spec(width), "weight-matching", 2, 10**9, 1, 10**8) for width in (100, 2000))
    assert small.seconds < wide.seconds < estimate(spec(2000), "weight-matching", 3, 10**9, 2, 10**8).seconds
    assert small.memory < wide.memory
    assert wide.memory < estimate(spec(2000), "frank-wolfe", 2, 10**9, 1, 10**8).memory


def test_memory_is_that_of_the_largest_tensor_where_one_model_is_looked_at_at_a_time():
    of_many = estimate(spec(100), "average", 8, 10**9, 0, 10**7).memory
    assert of_many == estimate(spec(100), "average", 2, 10**9, 0, 10**7).memory < 1.2e9
    assert 2e9 < estimate(spec(100), "weight-matching", 2, 10**9, 1, 95 * 10**7).memory < 3e9
    assert estimate(spec(100), "merge-many", 8, 10**9, 8, 10**7).memory > 8e9


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.01, "0.1 s"), (2.34, "2.3 s"), (42.4, "42 s"), (89, "89 s"), (120, "2 min"), (3600 * 2 + 300, "2 h 5 min")],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words
