"""Studies of several comparisons: what is run, what is not run again, what is saved, and means over seeds."""

import math
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fedrebasin import RebasinError
from fedrebasin.simulations import (
    REFERENCES,
    Figures,
    Row,
    SimulationConfig,
    Study,
    compare,
    expand,
    read_results,
    run_study,
    write_results,
)

OPTIONS = {"width": [8.0, 16.0], "clients": [2], "local_epochs": [1], "batch_size": [512], "seed": [0, 1]}
CONFIGS = expand(OPTIONS)
NAMES = ("fedavg", "rebasin")


@pytest.fixture(scope="module")
def saved():
    return []


@pytest.fixture(scope="module")
def study(saved):
    return run_study(CONFIGS, NAMES, jobs=1, finished=saved.append)


def numbers(comparison):
    """Everything but times and machines."""
    rows = [
        row.to_json() | {"seconds": 0.0, "metrics": {k: v for k, v in row.metrics.items() if "seconds" not in k}}
        for row in comparison.rows
    ]
    return comparison.config, comparison.strategies, rows, comparison.paths, comparison.label_counts


def refuse(*_):
    raise AssertionError("nothing was to be trained")


def test_every_combination_once_with_seeds_changing_fastest():
    assert [(config.width, config.seed) for config in CONFIGS] == [(8, 0), (8, 1), (16, 0), (16, 1)]
    assert expand({"seed": [0, 0, 1]}) == (SimulationConfig(), SimulationConfig(seed=1))
    with pytest.raises(RebasinError, match="local-epochs: name at least one value"):
        expand({"local_epochs": []})


def test_it_is_saved_after_every_comparison(study, saved):
    assert [len(one.comparisons) for one in saved] == [1, 2, 3, 4]
    assert saved[-1] == study


def test_what_is_known_is_not_run_again(study):
    again = run_study(CONFIGS, NAMES, known=study, progress=refuse)
    assert again == study
    part = run_study(CONFIGS[2:3], ["rebasin"], known=study, progress=refuse)
    assert [row.strategy for row in part.comparisons[0].rows] == ["rebasin", *REFERENCES]


def test_only_the_missing_strategy_is_run_and_gives_what_it_gives_alone(study):
    seen = []
    known = Study(study.comparisons[:1])
    wider = run_study(CONFIGS[:1], [*NAMES, "merge-many"], known=known, progress=lambda who, *_: seen.append(who))
    assert {"fedavg", "rebasin"}.isdisjoint(seen)
    assert "merge-many" in seen
    assert wider.comparisons[0].strategies == (*NAMES, "merge-many")
    assert numbers(wider.comparisons[0]) == numbers(compare(CONFIGS[0], [*NAMES, "merge-many"]))


def test_a_run_that_is_broken_off_goes_on_where_it_was(study):
    kept = []

    def stop_at_the_second(done):
        kept.append(done)
        if len(done.comparisons) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(CONFIGS, NAMES, jobs=1, finished=stop_at_the_second)
    trained = []
    rest = run_study(CONFIGS, NAMES, jobs=1, known=kept[-1], finished=trained.append)
    assert len(trained) == 2
    assert [numbers(one) for one in rest.comparisons] == [numbers(one) for one in study.comparisons]


def test_several_processes_give_the_same_numbers(study):
    seen = []
    other = run_study(CONFIGS[1:3], NAMES, jobs=2, progress=lambda who, *_: seen.append(who))
    assert [numbers(one) for one in other.comparisons] == [numbers(one) for one in study.comparisons[1:3]]
    assert {who.split()[0] for who in seen} == {"1/2", "2/2"}


SCRIPT = """
from fedrebasin.simulations import STRATEGIES, SimulationConfig, run_study
from fedrebasin.strategies import FedWideAvg

STRATEGIES.register("mine", FedWideAvg)

if __name__ == "__main__":
    configs = [SimulationConfig(width=8, clients=2, local_epochs=1, batch_size=512, seed=seed) for seed in (0, 1)]
    print([one.row("mine").strategy for one in run_study(configs, ["mine"], jobs=2).comparisons])
"""


def test_other_processes_know_what_the_script_registered(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "['mine', 'mine']", done.stderr


def test_an_error_in_another_process_is_the_error_here():
    config = replace(CONFIGS[0], clients=12, partition="label-skew")
    with pytest.raises(RebasinError, match="12 clients where the data has 10 classes"):
        run_study([config, replace(config, seed=1)], NAMES, jobs=2)


def test_results_come_back_as_they_were_written(study, tmp_path):
    written = replace(study, command="fedrebasin compare --seeds 0,1")
    assert read_results(write_results(tmp_path / "new", written)) == written
    assert read_results(tmp_path / "new") == written


def test_a_loss_that_is_not_finite_is_read_as_such(study, tmp_path):
    row = replace(study.comparisons[0].rows[0], figures=Figures(0.1, math.inf, 2.3, 1.0, 0.9))
    broken = Study((replace(study.comparisons[0], rows=(row,)),))
    read = read_results(write_results(tmp_path, broken)).comparisons[0].rows[0].figures
    assert math.isnan(read.loss)
    assert read.calibrated_loss == 2.3


def test_results_can_be_read_where_their_data_is_not(study, tmp_path):
    write_results(tmp_path, study)
    file = tmp_path / "results.json"
    file.write_text(file.read_text().replace('"data_dir": ""', '"data_dir": "/not/here"'))
    assert read_results(file).comparisons[0].config.data_dir == "/not/here"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has version None"),
        ('{"version": 1, "rows": []}', "has version 1, this package reads version 2"),
        ('{"version": 2, "comparisons": [{}], "command": ""}', "is not a file of results: KeyError"),
    ],
)
def test_other_files_are_refused(text, message, tmp_path):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(RebasinError, match=message):
        read_results(file)


def test_means_and_spreads_are_over_the_seeds_of_one_setting(study):
    narrow, wide = study.settings
    assert (narrow.label, wide.label) == ("width 8", "width 16")
    (summary,) = [one for one in wide.summaries if one.strategy == "rebasin"]
    values = [study.find(config).row("rebasin").figures.accuracy for config in CONFIGS[2:]]
    assert summary.seeds == (0, 1)
    assert summary.figures.accuracy == pytest.approx(statistics.fmean(values))
    assert summary.deviation.accuracy == pytest.approx(statistics.stdev(values))
    assert [one.best for one in wide.summaries].count(True) == 1
    assert not wide.best.is_reference


def test_among_equally_accurate_strategies_the_one_with_the_lowest_loss_is_best(study):
    config = CONFIGS[0]
    rows = [Row(name, 0, 1, Figures(0.5, loss, loss, 1.0, 0.1)) for name, loss in (("fedavg", 2.0), ("rebasin", 1.0))]
    found = replace(study.comparisons[0], config=config, rows=tuple(rows))
    assert Study((found,)).settings[0].best.strategy == "rebasin"


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_from_a_shared_start_aligning_does_not_lose_to_fedavg(partition):
    config = SimulationConfig(
        width=32, clients=3, partition=partition, init="shared", rounds=3, local_epochs=4, batch_size=32
    )
    found = compare(config, ["fedavg", "rebasin", "merge-many"])
    plain = found.row("fedavg").figures.accuracy
    assert plain > 0.5
    assert found.row("rebasin").figures.accuracy >= plain - 0.003
    assert found.row("merge-many").figures.accuracy >= plain - 0.003
