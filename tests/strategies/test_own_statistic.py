"""A statistic of one's own: clients answer it where it is registered, and nowhere else."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from fedrebasin.strategies.sums import ACTION, Question, ask, encode_sums
from flwr.clientapp import ClientApp

from fedrebasin import CalibrationError, RebasinError
from fedrebasin.models import MLP
from fedrebasin.registry import STATISTICS
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import StatisticsMod, register
from fedrebasin.sums import GramMatrices


@dataclass(frozen=True)
class Total:
    """The sum of all inputs, times a factor."""

    factor: float = 1.0
    name: ClassVar[str] = "total"
    batch_statistics: ClassVar[bool] = False

    def from_batch(self, model, state, batch):
        return {"sum": self.factor * batch[0].double().sum()}

    def validate(self, sums):
        if "sum" not in sums:
            raise CalibrationError("no sum")

    def finish(self, sums):
        return float(sums["sum"])


@STATISTICS.register("known_total")
@dataclass(frozen=True)
class Known(Total):
    name: ClassVar[str] = "known_total"


def batches(context):
    return [(torch.ones(20, 4) * (1 + context.node_config["partition-id"]), torch.zeros(20))]


def answers(statistic, kinds=None):
    """What two clients answer that know the registered statistics, or these."""
    app, model = ClientApp(), MLP(4, width=3)
    if kinds is None:
        register(app, model=lambda context: model, batches=batches)
    else:
        app.query(ACTION)(StatisticsMod(lambda context: model, batches, statistics=kinds).answer)
    grid, question = InlineGrid(app, 2), Question(statistic, encode_sums(model.state_dict()))
    questions = dict.fromkeys(grid.get_node_ids(), question)
    return [statistic.finish(sums) for _, sums in ask(grid, questions, timeout=9)]


def test_a_registered_statistic_is_answered_with_its_settings():
    assert sorted(answers(Known(0.5))) == [40.0, 80.0]


def test_a_statistic_that_is_not_registered_is_refused(caplog):
    assert answers(Total()) == []
    assert "no statistic 'total'" in caplog.text


def test_a_client_can_be_held_to_fewer():
    assert answers(Known(), (GramMatrices,)) == []


def test_the_library_registers_what_it_asks_for_under_the_names_that_travel():
    assert set(STATISTICS) >= {
        *("activation_correlation", "batch_norm", "gram", "halfway_connectivity", "head", "layer_regression"),
        *("path_evaluation", "pre_activations", "temperature"),
    }
    # Their results are for the server's own data: nobody asks clients for them.
    assert not {"evaluation", "reliability"} & set(STATISTICS)


def test_two_statistics_cannot_have_one_name():
    with pytest.raises(RebasinError, match="gram: the name is taken"):
        STATISTICS.register("gram", Known)
