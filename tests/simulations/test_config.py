"""The description of a simulation: what is allowed, and the way through Flower's records and back."""

import pytest
from flwr.app import ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrebasin import RebasinError
from fedrebasin.simulations import DATASETS, DEVICES, ENGINES, INITS, OPTIMIZERS, PARTITIONS, SimulationConfig


@settings(deadline=None)
@given(width=st.floats(0, 4096), seed=st.integers(0, 2**31), init=st.sampled_from(INITS), rounds=st.integers(1, 100))
def test_a_config_survives_flowers_records(width, seed, init, rounds):
    config = SimulationConfig(width=width, seed=seed, init=init, rounds=rounds)
    assert SimulationConfig.from_flower(ConfigRecord(dict(config.to_flower()))) == config


def test_other_keys_are_passed_over_and_whole_numbers_may_be_floats():
    config = SimulationConfig.from_flower({"strategy": "rebasin", "local-epochs": 3.0, "width": 512})
    assert (config.local_epochs, config.width) == (3, 512.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "digit"}, r"unknown dataset 'digit': choose from .*did you mean digits\?"),
        ({"model": "resnet"}, "unknown model 'resnet': choose from mlp"),
        ({"partition": "idd"}, "did you mean iid"),
        ({"init": "same"}, "choose from independent, shared"),
        ({"optimizer": "adm"}, "did you mean adam"),
        ({"device": "gpu"}, "choose from auto, cpu, cuda"),
        ({"clients": 0}, "clients 0: it must be positive"),
        ({"learning_rate": -1.0}, "learning-rate -1.0: it must be positive"),
        ({"learning_rate": float("nan")}, "learning-rate nan"),
        ({"weight_decay": -1.0}, "must not be negative"),
        ({"seed": -1}, "seed -1"),
        ({"rounds": 1.5}, "rounds 1.5: it must be a whole number"),
        ({"rounds": "2"}, "rounds '2': it must be a whole number"),
        ({"local_epochs": True}, "must be a whole number"),
        ({"dataset": 3}, "it must be a text"),
        ({"data_dir": "/no/such/folder"}, "there is no such folder"),
        ({"dataset": "image-folder"}, "needs data-dir"),
        ({"augment": "flip"}, "choose from none, crop, crop-flip"),
        ({"image_size": -1}, "image-size -1"),
    ],
)
def test_what_is_not_allowed_gets_one_line_that_says_what_is(options, message):
    with pytest.raises(RebasinError, match=message) as caught:
        SimulationConfig(**options)
    assert "\n" not in str(caught.value)


def test_the_first_of_each_choice_is_the_default():
    config = SimulationConfig()
    chosen = (config.dataset, config.partition, config.init, config.optimizer, config.device)
    assert chosen == tuple(names[0] for names in (DATASETS, PARTITIONS, INITS, OPTIMIZERS, DEVICES))
    assert ENGINES == ("inline", "flower")
