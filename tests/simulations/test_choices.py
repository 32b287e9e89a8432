"""Strategies by name: a base and what follows it, with real requests for sums and without data on the server."""

from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord

from fedrebasin import RebasinError
from fedrebasin.simulations import (
    BASES,
    CALIBRATORS,
    Federation,
    InlineGrid,
    ReplayGrid,
    SimulationConfig,
    compare,
    make_client_app,
    make_strategy,
    parse_strategy,
    run_study,
)

SMALL = SimulationConfig(width=16, clients=3, local_epochs=3, batch_size=32, partition="dirichlet")
BATCH_NORM = SimulationConfig(model="vgg11-bn", width=0.0625, clients=2, local_epochs=1, batch_size=256)


@pytest.fixture(scope="module")
def grid():
    """Clients that train once for all tests."""
    return ReplayGrid(InlineGrid(make_client_app(), SMALL.clients))


def run(name, grid, config=SMALL):
    federation = Federation(config)
    strategy = make_strategy(name, federation)
    start = ArrayRecord(federation.server_model().state_dict())
    result = strategy.start(grid, start, num_rounds=1, train_config=ConfigRecord(dict(config.to_flower())))
    return result.arrays.to_torch_state_dict(), dict(result.train_metrics_clientapp[1]), strategy


@pytest.mark.parametrize("base", BASES)
def test_every_base_can_be_followed_by_a_head_and_a_temperature(base, grid):
    state, metrics, strategy = run(f"{base}+head+temperature", grid)
    assert not any(key.endswith("failed") for key in metrics)
    assert metrics["rebasin-head-left-out"] == 0
    assert strategy.beta == metrics["beta"] > 1
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_every_calibrator_can_follow_an_alignment(calibrator, grid):
    plain, _, _ = run("merge-many", grid)
    state, metrics, _ = run(f"merge-many+{calibrator}", grid)
    assert not any(key.endswith("failed") for key in metrics)
    unchanged = all(torch.equal(plain[key], state[key]) for key in plain)
    assert unchanged == (calibrator in ("bn", "temperature"))


def test_the_order_is_the_order_of_the_name(grid):
    one, other = run("rebasin+head+regmean", grid)[0], run("rebasin+regmean+head", grid)[0]
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_wide_avg_is_fedavg_with_a_temperature(grid):
    fedavg, (wide, metrics, _) = run("fedavg", grid)[0], run("wide-avg", grid)
    assert all(torch.equal(fedavg[key], wide[key]) for key in fedavg)
    assert metrics["beta"] == run("fedavg+temperature", grid)[1]["beta"] == run("wide-avg+temperature", grid)[1]["beta"]


@pytest.mark.parametrize(
    ("named", "spelt"),
    [
        ("ridge-head", "rebasin+head+temperature"),
        ("regmean", "merge-many+regmean"),
        ("regmean+head", "merge-many+regmean+head"),
    ],
)
def test_a_strategy_that_is_sold_is_what_its_parts_are(named, spelt, grid):
    one, other = run(named, grid), run(spelt, grid)
    assert all(torch.equal(one[0][key], other[0][key]) for key in other[0])
    assert one[2].beta == other[2].beta


def names_of(name, config):
    return [type(part).__name__ for part in make_strategy(name, Federation(config)).calibrators]


def test_running_statistics_follow_the_features():
    assert names_of("rebasin", BATCH_NORM) == ["BatchNormRecalibration"]
    assert names_of("rebasin+bn", BATCH_NORM) == ["BatchNormRecalibration"]
    assert names_of("rebasin+regmean+head", BATCH_NORM) == [
        "BatchNormRecalibration",
        "RegMean",
        "BatchNormRecalibration",
        "HeadRegression",
    ]
    assert names_of("rebasin+head", SMALL) == ["HeadRegression"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rebsain+head", "did you mean rebasin?"),
        ("rebasin+haed", "calibrator in rebasin.haed: 'haed'.*did you mean head?"),
        ("rebasin+", "choose from activations, bn"),
        ("head", "unknown strategy"),
        ("fedavg+regmean", "regmean needs aligned models"),
        ("rebasin+temperature+head", "temperature must come last"),
        ("rebasin+head+head", "each calibrator once"),
    ],
)
def test_wrong_names_are_refused_with_the_closest_one(name, message):
    with pytest.raises(RebasinError, match=message):
        parse_strategy(name)


@pytest.mark.parametrize("run", [partial(compare, SMALL), partial(run_study, [SMALL])])
@pytest.mark.parametrize(
    ("strategies", "engine", "message"),
    [
        ((), "inline", "name at least one"),
        (("fedavg", "rebasin", "fedavg"), "inline", "each once"),
        (("fedavg", "rebsain"), "inline", "did you mean rebasin?"),
        (("fedavg",), "flowr", "unknown engine 'flowr': .*did you mean flower?"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_client_trains(run, strategies, engine, message):
    told = []
    with pytest.raises(RebasinError, match=message):
        run(strategies, engine=engine, progress=lambda *step: told.append(step))
    assert not told


def test_the_head_makes_a_skewed_merge_better_than_its_clients():
    config = SimulationConfig(width=48, clients=4, local_epochs=15, batch_size=32, partition="dirichlet", alpha=0.3)
    found = compare(config, ["rebasin", "rebasin+head+temperature"])
    plain, head = found.row("rebasin").figures, found.row("rebasin+head+temperature").figures
    assert head.accuracy > max(plain.accuracy, found.row("best-client").figures.accuracy)
    assert head.loss < 0.7  # scores of a regression have a loss of about 1.7 before their temperature


def test_answers_come_in_the_order_of_the_partitions():
    """However the engine numbers its nodes and whoever is fastest."""
    grid = ReplayGrid(Shuffling(InlineGrid(make_client_app(), SMALL.clients)))
    usual = run("merge-many+regmean+head", ReplayGrid(InlineGrid(make_client_app(), SMALL.clients)))[0]
    shuffled = run("merge-many+regmean+head", grid)[0]
    assert all(torch.equal(usual[key], shuffled[key]) for key in usual)


class Shuffling(ReplayGrid):
    """Hands over the last answer first, one at a time."""

    def push_messages(self, messages):
        return self._grid.push_messages(messages)

    def send_and_receive(self, messages, *, timeout=None):
        return self._grid.send_and_receive(messages, timeout=timeout)

    def pull_messages(self, message_ids):
        self._early |= {reply.metadata.reply_to_message_id: reply for reply in self._grid.pull_messages(message_ids)}
        last = max(set(self._early) & set(message_ids), key=int, default=None)
        return [] if last is None else [self._early.pop(last)]
