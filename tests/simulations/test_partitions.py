"""Partitions: every example goes to exactly one client, and what each name promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrebasin import DataError
from fedrebasin.simulations import PARTITIONS, dirichlet, from_partitioner, iid, label_skew, make_partition, shards


def labels_of(examples, classes, seed):
    return np.random.default_rng(seed).integers(0, classes, examples)


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(PARTITIONS), clients=st.integers(2, 8), seed=st.integers(0, 99), examples=st.integers(200, 500)
)
def test_every_example_goes_to_exactly_one_client(name, clients, seed, examples):
    labels = labels_of(examples, 10, seed)
    parts = make_partition(labels, name, clients, alpha=0.5, seed=seed)
    assert len(parts) == clients
    assert all(len(part) for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(examples))


@pytest.mark.parametrize("name", PARTITIONS)
def test_the_seed_decides(name):
    labels = labels_of(300, 10, 0)
    first, second, other = (make_partition(labels, name, 4, 0.5, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_iid_parts_are_equally_large():
    assert [len(part) for part in iid(labels_of(103, 5, 0), 4)] == [26, 26, 26, 25]


def test_label_skew_with_two_clients_is_git_re_basins():
    labels = np.repeat(np.arange(10), 50)
    first, second = label_skew(labels, 2)
    assert np.mean(labels[first] < 5) == 0.2
    assert np.mean(labels[second] < 5) == 0.8
    assert len(first) == len(second) == 250


def test_a_smaller_alpha_is_more_uneven():
    labels = labels_of(2000, 10, 0)

    def unevenness(alpha):
        counts = [np.bincount(labels[part], minlength=10) for part in dirichlet(labels, 4, alpha=alpha, seed=3)]
        return np.std(counts)

    assert unevenness(0.1) > unevenness(1.0) > unevenness(100.0)


def test_shards_show_a_client_few_classes():
    labels = np.repeat(np.arange(10), 40)
    for part in shards(labels, 5, per_client=2, seed=0):
        assert len(np.unique(labels[part])) <= 3
        assert len(part) == 80


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: iid(np.zeros(3, int), 4), "3 examples"),
        (lambda: label_skew(np.zeros(30, int), 2), "1 classes"),
        (lambda: dirichlet(np.zeros(12, int), 12, alpha=0.01), "alpha 0.01"),
    ],
)
def test_impossible_partitions_get_one_line(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_a_partitioner_of_flwr_datasets_is_an_object_like_any_other(monkeypatch):
    class Table:
        @staticmethod
        def from_dict(columns):
            return columns

    class EveryOther:
        num_partitions = 2
        dataset = None

        def load_partition(self, partition):
            return {"index": self.dataset["index"][partition::2]}

    monkeypatch.setitem(__import__("sys").modules, "datasets", type("datasets", (), {"Dataset": Table}))
    parts = from_partitioner(np.arange(5), 2, EveryOther())
    assert [part.tolist() for part in parts] == [[0, 2, 4], [1, 3]]
    with pytest.raises(DataError, match="2 parts for 3 clients"):
        from_partitioner(np.arange(5), 3, EveryOther())
