"""The judge: which examples count for what, and a temperature even where nothing is misclassified."""

import math

import pytest
import torch

from fedrebasin import fit_temperature
from fedrebasin.simulations import Judge


def example(seed, examples=200, errors=0.1):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (examples,), generator=generator)
    logits = torch.nn.functional.one_hot(labels, 5) * 4.0 + torch.randn(examples, 5, generator=generator)
    wrong = torch.rand(examples, generator=generator) < errors
    return torch.where(wrong[:, None], logits.roll(1, 1), logits), labels


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_taken_on_the_reported_part_and_beta_on_the_other(seed):
    logits, labels = example(seed)
    held_out, reported = torch.arange(40), torch.arange(40, 200)
    figures = Judge(labels, held_out, reported)(logits)
    assert figures.accuracy == float((logits[reported].argmax(1) == labels[reported]).double().mean())
    assert figures.beta == pytest.approx(fit_temperature(logits[held_out], labels[held_out]).beta)
    calibrated = torch.nn.functional.cross_entropy(figures.beta * logits[reported].double(), labels[reported])
    assert figures.calibrated_loss == pytest.approx(float(calibrated))


def test_what_the_strategy_delivers_changes_the_loss_but_not_the_calibrated_one():
    logits, labels = example(0)
    judge = Judge(labels, torch.arange(40), torch.arange(40, 200))
    plain, sharp = judge(logits), judge(logits, delivered_beta=3.0)
    assert sharp.loss != plain.loss
    assert (sharp.accuracy, sharp.calibrated_loss) == (plain.accuracy, plain.calibrated_loss)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_a_model_without_a_held_out_error_gets_a_finite_beta_of_its_scale(scale):
    logits, labels = example(0, errors=0.0)
    right = (logits.argmax(1) == labels).nonzero().flatten()
    logits, labels = logits[right] * scale, labels[right]
    figures = Judge(labels, torch.arange(30), torch.arange(30, len(labels)))(logits)
    assert math.isfinite(figures.beta)
    assert 0.1 / scale < figures.beta < 10 / scale
