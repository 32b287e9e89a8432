"""Batches as loaders give them: in company, in every form, and refused in one line where they cannot be used."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedrebasin import CalibrationError, collect_sums, evaluate, recalibrate_batch_norm
from fedrebasin.running import joined, number_of_examples, without_single_examples
from fedrebasin.sums import BatchNormMoments, logits_of


def cut(examples, sizes):
    return list(torch.split(examples, sizes))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=9))
def test_no_example_is_left_alone_and_none_is_lost(sizes):
    examples = torch.arange(sum(sizes))
    found = list(without_single_examples(cut(examples, sizes)))
    assert torch.equal(torch.cat(found), examples)
    assert len(examples) == 1 or min(map(len, found)) > 1
    assert max(map(len, found)) <= max(sizes) + 2  # batches of one each do not become one of all


def test_at_most_two_batches_wait():
    read = []

    def source():
        for number in range(6):
            read.append(number)
            yield torch.zeros(1 if number % 2 else 3, number % 3 + 1)  # few of them fit each other

    for place, _ in enumerate(without_single_examples(source())):
        assert len(read) <= place + 3


def norms(form):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, scale=None):
            return self.net(x if scale is None else x * scale)

    return Net(), {
        "inputs": lambda x: x,
        "list of one": lambda x: [x],
        "inputs and labels": lambda x: (x, torch.zeros(len(x), dtype=torch.int64)),
        "dict": lambda x: {"x": x, "scale": torch.ones(len(x), 1)},
        "dict and labels": lambda x: ({"x": x}, torch.zeros(len(x), dtype=torch.int64)),
    }[form]


FORMS = ["inputs", "list of one", "inputs and labels", "dict", "dict and labels"]


@pytest.mark.parametrize("form", FORMS)
def test_a_last_batch_of_one_counts_as_if_it_came_with_the_one_before_it(form):
    model, made = norms(form)
    examples = torch.randn(17, 3, generator=torch.Generator().manual_seed(1))
    found, expected = (
        recalibrate_batch_norm(model, model.state_dict(), [made(part) for part in cut(examples, sizes)])
        for sizes in ([8, 8, 1], [8, 9])
    )
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    loader = DataLoader(TensorDataset(examples, torch.zeros(17, dtype=torch.int64)), batch_size=8)
    again = recalibrate_batch_norm(model, model.state_dict(), loader)
    assert all(torch.equal(again[key], expected[key]) for key in expected)


def test_one_example_alone_has_no_variance_and_that_is_said():
    model, _ = norms("inputs")
    with pytest.raises(CalibrationError, match=r"shape \(1, 3\): ValueError: .*; BatchNorm needs two examples"):
        recalibrate_batch_norm(model, model.state_dict(), [torch.ones(1, 3)])


def test_where_one_example_has_many_values_it_may_stay_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    images = [torch.randn(2, 1, 8, 8), torch.randn(1, 1, 6, 6)]  # of two sizes: they fit each other in no batch
    sums = collect_sums(BatchNormMoments(), model, model.state_dict(), images)
    assert float(sums["1.count"]) == 2 * 36 + 16


def test_reading_still_ends_at_the_number_of_examples_that_were_asked_for():
    model, _ = norms("inputs")
    read = []

    def source():
        for size in (4, 1, 4, 4):
            read.append(size)
            yield torch.randn(size, 3)

    sums = collect_sums(BatchNormMoments(), model, model.state_dict(), source(), max_examples=5)
    assert (float(sums["examples"]), read) == (5, [4, 1, 4])


@pytest.mark.parametrize("other", [torch.ones(2, 4), (torch.ones(2, 3),), {"x": torch.ones(2, 3)}, "text"])
def test_what_does_not_fit_is_not_joined(other):
    with pytest.raises(CalibrationError, match="do not fit each other"):
        joined(torch.ones(2, 3), other)


@pytest.mark.parametrize("batch", [None, 3, "text", [], {}, torch.tensor(1.0), {"x": "text"}])
def test_a_batch_without_examples_to_count_is_refused(batch):
    with pytest.raises(CalibrationError, match="first dimension counts examples"):
        number_of_examples(batch)


@pytest.mark.parametrize("batches", [torch.ones(4, 3), {"x": torch.ones(4, 3)}, "text", None, 3])
@pytest.mark.parametrize("call", [evaluate, logits_of, recalibrate_batch_norm])
def test_what_is_no_row_of_batches_is_refused(batches, call):
    model, _ = norms("inputs")
    with pytest.raises(CalibrationError, match="give a list of them or a DataLoader"):
        call(model, model.state_dict(), batches)


def test_parameters_are_never_the_modules_own():
    model = nn.Linear(3, 2)
    labelled = [(torch.ones(2, 3), torch.tensor([0, 1]))]
    with pytest.raises(CalibrationError, match="the state dict lacks bias of the model's parameters"):
        evaluate(model, {"weight": torch.ones(2, 3)}, labelled)
    lazy = nn.LazyLinear(2)
    with pytest.raises(CalibrationError, match="weight has no shape yet"):
        evaluate(lazy, lazy.state_dict(), labelled)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (torch.tensor([0, 2]), r"labels lie in 0 \.\. 2 where there are 2 classes"),
        (torch.tensor([-100, 1]), r"labels lie in -100 \.\. 1"),
        (torch.tensor([0.0, 1.0]), "labels of torch.float32"),
        (torch.tensor([0]), "do not fit labels of shape"),
        ([0, 1], "give batches as"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, complaint):
    model = nn.Linear(3, 2)
    with pytest.raises(CalibrationError, match=complaint):
        evaluate(model, model.state_dict(), [(torch.ones(2, 3), labels)])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool])
def test_labels_may_be_integers_of_any_size(dtype):
    model = nn.Linear(3, 2)
    score = evaluate(model, model.state_dict(), [(torch.ones(2, 3), torch.tensor([0, 1]).to(dtype))])
    assert (score.labels, score.accuracy) == (2, 0.5)


def test_logits_inside_an_object_are_the_models():
    class Output(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)

        def forward(self, x):
            return SimpleNamespace(loss=torch.zeros(()), logits=self.net(x))

    model, (x, labels) = Output(), (torch.randn(5, 4), torch.randint(3, (5,)))
    state = model.state_dict()
    plain = {key.removeprefix("net."): tensor for key, tensor in state.items()}
    assert evaluate(model, state, [(x, labels)]) == evaluate(model.net, plain, [(x, labels)])
