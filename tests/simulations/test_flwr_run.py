"""``flwr run .`` from the root of the repository, through Flower's own SuperLink and engine."""

import json

import pytest

from fedrebasin.simulations import read_results

CHOSEN = "width=16 local-epochs=1 strategy='rebasin' rounds=2 init='shared'"


@pytest.mark.engine
def test_a_run_finishes_with_the_strategys_metrics(flower, tmp_path):
    # Flower 1.29 starts ten nodes where nothing else is asked for, newer ones two.
    nodes = ("--federation-config", "num-supernodes=2")
    done = flower("run", ".", "--stream", *nodes, "-c", f"{CHOSEN} out='{tmp_path / 'out'}'")
    runs = json.loads(flower("list", "--format", "json").stdout)["runs"]
    assert [run["status"] for run in runs] == ["finished:completed"], done.stdout + done.stderr
    rows = read_results(tmp_path / "out").comparisons[0].rows
    assert [(row.strategy, row.round) for row in rows] == [("rebasin", 1), ("rebasin", 2)]
    assert 0 < rows[-1].metrics["rebasin-similarity"] <= 1
    assert rows[-1].metrics["rebasin-replies-set-aside"] == 0
    assert "rebasin-units-moved" in done.stdout
