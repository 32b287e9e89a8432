from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedrebasin import CalibrationError, collect_sums, evaluate, expected_calibration_error
from fedrebasin.calibration import Reliability, reliability_bins
from fedrebasin.sums import ensemble_log_probabilities, ensemble_logits
from tests.calibration.nets import batches, examples, mlp, random_state


def confident(*probabilities: float) -> torch.Tensor:
    """Two-class logits that give class 0 these probabilities."""
    return torch.logit(torch.tensor(probabilities, dtype=torch.float64))[:, None] * torch.tensor([1.0, 0.0])


def test_bins_by_hand() -> None:
    logits, labels = confident(0.95, 0.95, 0.65, 0.35), torch.tensor([0, 1, 0, 1])
    bins = reliability_bins(logits, labels, bins=10)
    assert bins.counts.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0, 2]
    assert bins.accuracy[[6, 9]].tolist() == [1.0, 0.5]
    assert bins.confidence[[6, 9]].tolist() == pytest.approx([0.65, 0.95])
    assert bool(bins.accuracy[0].isnan())
    assert bins.edges.tolist() == pytest.approx([i / 10 for i in range(11)])
    assert expected_calibration_error(logits, labels, bins=10) == pytest.approx(0.5 * 0.35 + 0.5 * 0.45)


def test_one_bin_is_the_gap_of_the_means() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 5, generator=generator), torch.randint(5, (200,), generator=generator)
    confidence, predicted = torch.softmax(logits.double(), 1).max(1)
    gap = abs(float(confidence.mean() - (predicted == labels).double().mean()))
    assert expected_calibration_error(logits, labels, bins=1) == pytest.approx(gap)


def test_certainty_that_is_right_has_no_error() -> None:
    logits = 100 * torch.eye(4)
    assert expected_calibration_error(logits, torch.arange(4)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(CalibrationError, match="0 bins"):
        expected_calibration_error(logits, torch.arange(4), bins=0)


def test_summed_bins_are_the_bins() -> None:
    generator = torch.Generator().manual_seed(1)
    data = (torch.randn(100, 4, generator=generator), torch.randint(4, (100,), generator=generator))
    statistic = Reliability(beta=2.0)
    summed = statistic.finish(collect_sums(statistic, nn.Identity(), {}, batches(data, 9)))
    assert summed.expected_calibration_error == pytest.approx(expected_calibration_error(2 * data[0], data[1]))


def test_score_of_a_model_does_not_depend_on_the_batches() -> None:
    model = mlp()
    state = random_state(model, 1)
    data = examples((6,), 50, 2)
    whole, parts = (evaluate(model, state, batches(data, size)) for size in (50, 7))
    assert whole.loss == pytest.approx(parts.loss, rel=1e-10)
    assert (whole.accuracy, whole.labels) == (parts.accuracy, 50)
    with pytest.raises(CalibrationError, match="give batches as"):
        evaluate(model, state, [data[0]])
    with pytest.raises(CalibrationError, match="do not fit labels"):
        evaluate(model, state, [(data[0], data[1][:, None])])


def test_ensembles() -> None:
    generator = torch.Generator().manual_seed(2)
    members = [torch.randn(7, 3, generator=generator, dtype=torch.float64) for _ in range(4)]
    assert torch.allclose(ensemble_logits(members), sum(members) / 4)
    mean = sum(torch.softmax(member, 1) for member in members) / 4
    assert torch.allclose(ensemble_log_probabilities(members).exp(), mean)
    assert torch.allclose(ensemble_logits(members, [0, 3, 0, 0]), members[1])
    weighted = ensemble_log_probabilities(members[:2], [1, 3]).exp()
    assert torch.allclose(weighted, 0.25 * torch.softmax(members[0], 1) + 0.75 * torch.softmax(members[1], 1))
    far = ensemble_log_probabilities([torch.tensor([[0.0, -2000.0]]), torch.tensor([[0.0, -1000.0]])])
    assert float(far[0, 1]) == pytest.approx(-1000 - 0.6931472, rel=1e-6)
    for wrong, weights in (([], None), ([members[0], members[1][:3]], None), (members, [0, 0, 0, 0]), (members, [1])):
        with pytest.raises(CalibrationError):
            ensemble_logits(wrong, weights)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), bins=st.integers(1, 20), count=st.integers(1, 30), scale=st.floats(0.1, 9))
def test_bins_with_plain_loops(seed: int, bins: int, count: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (count,), generator=generator)
    held: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(logits, labels, strict=True):
        confidence = float(torch.softmax(row, 0).max())
        place = next(k for k in range(bins) if confidence <= (k + 1) / bins + 1e-15)
        held[place].append((confidence, int(row.argmax()) == int(label)))
    found = reliability_bins(logits, labels, bins)
    error = 0.0
    for k, inside in enumerate(held):
        assert found.counts[k] == len(inside)
        if not inside:
            assert bool(found.accuracy[k].isnan())
            assert bool(found.confidence[k].isnan())
            continue
        confidence, accuracy = (sum(column) / len(inside) for column in zip(*inside, strict=True))
        assert float(found.confidence[k]) == pytest.approx(confidence)
        assert float(found.accuracy[k]) == pytest.approx(accuracy)
        error += len(inside) / count * abs(accuracy - confidence)
    assert found.expected_calibration_error == pytest.approx(error, abs=1e-12)
    assert 0 <= error <= 1


def test_a_model_that_is_right_as_often_as_it_says_is_calibrated() -> None:
    logits, labels = confident(*[0.7] * 10), torch.tensor([0] * 7 + [1] * 3)
    assert expected_calibration_error(logits, labels) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(logits, 1 - labels) == pytest.approx(0.4)
    with pytest.raises(CalibrationError, match="0 bins"):
        Reliability(bins=0)
