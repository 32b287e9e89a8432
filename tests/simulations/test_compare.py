"""The comparison: clients trained once, the same numbers everywhere, and the same whoever else takes part."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedrebasin import RebasinError
from fedrebasin.simulations import (
    DEFAULT_STRATEGIES,
    REFERENCES,
    Federation,
    InlineGrid,
    ReplayGrid,
    SimulationConfig,
    compare,
    make_client_app,
    make_strategy,
    run_inline,
    run_study,
)

SMALL = SimulationConfig(width=24, clients=3, local_epochs=4, batch_size=32)


@pytest.fixture(scope="module")
def comparison():
    return compare(SMALL)


def numbers(comparison):
    """Everything but the times."""
    rows = [row.to_json() | {"seconds": 0.0} for row in comparison.rows]
    return [row | {"metrics": {k: v for k, v in row["metrics"].items() if "seconds" not in k}} for row in rows]


def train_message(config, node, server_round=1):
    arrays = ArrayRecord(Federation(config).server_model().state_dict())
    record = ConfigRecord({**config.to_flower(), "server-round": server_round})
    return Message(RecordDict({"arrays": arrays, "config": record}), node, "train")


def test_rows_are_the_strategies_and_then_the_references(comparison):
    assert [row.strategy for row in comparison.rows] == [*DEFAULT_STRATEGIES, *REFERENCES]
    assert all(0 <= row.figures.accuracy <= 1 and row.figures.loss > 0 for row in comparison.rows)


def test_wide_avg_is_fedavg_with_another_loss(comparison):
    fedavg, wide = comparison.row("fedavg").figures, comparison.row("wide-avg").figures
    assert wide.accuracy == fedavg.accuracy
    assert wide.calibrated_loss == pytest.approx(fedavg.calibrated_loss)
    assert wide.beta == pytest.approx(fedavg.beta)
    # its own beta comes from the clients' losses on their data, the judge's from the held-out part of the test set
    assert comparison.row("wide-avg").metrics["beta"] == pytest.approx(fedavg.beta, rel=0.2)
    assert wide.loss == pytest.approx(fedavg.calibrated_loss, rel=0.01)


def test_the_references_are_in_proportion(comparison):
    mean, best = comparison.row("mean-client").figures, comparison.row("best-client").figures
    assert mean.accuracy <= best.accuracy
    assert comparison.row("ensemble").figures.loss <= mean.loss  # the mean of probabilities, by Jensen's inequality


def test_both_ends_of_the_path_stay_where_they_are(comparison):
    before, after = comparison.paths["before"], comparison.paths["after"]
    assert before.losses[0] == pytest.approx(after.losses[0])
    assert before.losses[-1] == pytest.approx(after.losses[-1], rel=1e-4)
    assert after.value < before.value


def test_the_same_seed_gives_the_same_numbers_and_another_one_does_not(comparison):
    assert numbers(compare(SMALL)) == numbers(comparison)
    other = SimulationConfig(width=24, clients=3, local_epochs=4, batch_size=32, seed=1)
    assert numbers(compare(other, ["fedavg"]))[0] != numbers(comparison)[0]


def test_a_strategy_finds_the_same_with_or_without_others_beside_it(comparison):
    alone = compare(SMALL, ["merge-many"])
    assert numbers(alone)[0] == numbers(comparison)[2]
    assert numbers(compare(SMALL, ["rebasin+seqreg+head+temperature"]))[0] == numbers(comparison)[4]


def test_clients_train_once_for_all_strategies():
    trained = []
    client_app = make_client_app(epoch_done=lambda partition, epoch: trained.append((partition, epoch)))
    grid = ReplayGrid(InlineGrid(client_app, SMALL.clients))
    federation = Federation(SMALL)
    arrays = ArrayRecord(federation.server_model().state_dict())
    for name in ("fedavg", "merge-many"):
        make_strategy(name, federation).start(
            grid, arrays, num_rounds=1, train_config=ConfigRecord(dict(SMALL.to_flower()))
        )
    assert len(trained) == SMALL.clients * SMALL.local_epochs
    assert len(grid.first_replies()) == SMALL.clients


def test_clients_do_not_depend_on_the_order_in_which_they_run():
    client_app = make_client_app()
    forwards, backwards = InlineGrid(client_app, 3), InlineGrid(client_app, 3)
    one = [forwards.send_and_receive([train_message(SMALL, node)])[0] for node in (1, 2, 3)]
    other = [backwards.send_and_receive([train_message(SMALL, node)])[0] for node in (3, 2, 1)]
    for first, second in zip(one, reversed(other), strict=True):
        assert first.content.array_records["arrays"] == second.content.array_records["arrays"]


@pytest.mark.parametrize(("init", "server_round", "alike"), [("independent", 1, False), ("shared", 1, True)])
def test_where_clients_start(init, server_round, alike):
    federation = Federation(SimulationConfig(width=8, init=init))
    first, second = (federation.client_model(partition, server_round).state_dict() for partition in (0, 1))
    assert torch.equal(first["layers.0.weight"], second["layers.0.weight"]) == alike
    assert federation.starts_alone(server_round) != alike
    assert not federation.starts_alone(2)


def test_later_rounds_start_from_the_global_model_and_improve_it():
    config = SimulationConfig(width=32, clients=2, local_epochs=3, init="shared", rounds=3)
    result = compare(config, ["fedavg", "rebasin"])
    rounds = [row for row in result.rows if row.strategy == "rebasin"]
    assert [row.round for row in rounds] == [1, 2, 3]
    assert rounds[-1].figures.accuracy > rounds[0].figures.accuracy


def test_batch_norm_is_recalibrated():
    config = SimulationConfig(model="resnet20-bn", width=0.25, clients=2, local_epochs=1, batch_size=128)
    result = compare(config, ["rebasin"])
    assert result.row("rebasin").figures.loss < 10


def test_a_failing_client_ends_the_comparison_with_its_reason():
    with pytest.raises(RebasinError, match="a client failed: RebasinError: the federation has 2 nodes"):
        ReplayGrid(InlineGrid(make_client_app(), 2)).send_and_receive([train_message(SMALL, 1)])


@pytest.mark.parametrize("names", [[], ["fedavg", "fedavg"], ["fedvag"]])
def test_wrong_lists_of_strategies_are_refused(names):
    with pytest.raises(RebasinError, match="strateg"):
        compare(SMALL, names)


def test_what_a_strategy_leaves_behind_for_the_report(comparison):
    fedavg, rebasin = comparison.row("fedavg"), comparison.row("rebasin")
    examples = sum(one.count for one in fedavg.reliability)
    assert examples == sum(one.count for one in rebasin.reliability) == len(Federation(SMALL).dataset.test_split()[1])
    gap = sum(one.count * abs(one.accuracy - one.confidence) for one in rebasin.reliability if one.count) / examples
    assert gap == pytest.approx(rebasin.figures.ece)
    assert fedavg.moved == {}
    assert list(rebasin.moved) == ["layers.0", "layers.1", "layers.2"]
    # the mean over groups of one size is what the strategy itself reports
    assert sum(rebasin.moved.values()) / 3 == pytest.approx(rebasin.metrics["rebasin-units-moved"])
    assert comparison.origin.versions["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.engine
def test_flowers_engine_gives_the_same_numbers(comparison):
    assert numbers(compare(SMALL, engine="flower")) == numbers(comparison)


@pytest.mark.parametrize("given", [None, {"num_cpus": 2.0}, {"num_cpus": 0.5, "num_gpus": 0.25}])
def test_flowers_engine_is_told_what_a_client_gets(given, monkeypatch):
    asked = []

    def run_simulation(server_app, client_app, clients, backend_config):
        asked.append(backend_config)
        run_inline(server_app, client_app, clients)

    monkeypatch.setattr("flwr.simulation.run_simulation", run_simulation)
    run_study([SMALL], ["fedavg"], engine="flower", client_resources=given)
    assert asked == [{"client_resources": {"num_cpus": 1, "num_gpus": 0.0} | (given or {})}]


@pytest.mark.parametrize(
    ("engine", "given", "message"),
    [
        ("inline", {"num_cpus": 2}, "for engine flower"),
        ("flower", {"cpus": 2}, "unknown client resource 'cpus': choose from num_cpus, num_gpus"),
        ("flower", {"num_cpus": 0}, "num_cpus 0: it must be a positive number"),
        ("flower", {"num_gpus": -1}, "num_gpus -1: it must be a positive number"),
        ("flower", {"num_gpus": float("nan")}, "num_gpus nan: it must be a positive number"),
    ],
)
@pytest.mark.parametrize("run", [compare, lambda config, **options: run_study([config], **options)])
def test_resources_that_an_engine_does_not_know_are_refused(run, engine, given, message):
    with pytest.raises(RebasinError, match=message):
        run(SMALL, engine=engine, client_resources=given)
