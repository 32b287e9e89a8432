"""A Ray cluster of two nodes: a grid as its tasks, clients as its actors, the numbers of this process; what fails."""

import platform
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedrebasin import RebasinError
from fedrebasin.cli import main
from fedrebasin.simulations import SimulationConfig, compare, expand, read_results, run_study
from tests.simulations import nodes

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"width": [8.0], "clients": [2], "local_epochs": [1], "batch_size": [512], "seed": [0, 1, 2]}
NAMES = ["fedavg", "rebasin+head"]
COMMAND = "import sys; from fedrebasin.cli import main; sys.exit(main(sys.argv[1:]))"
OPTIONS = ["--width", "8", "--clients", "2", "--local-epochs", "1", "--batch-size", "512", "--strategies", *NAMES[:1]]


def numbers(comparison):
    """Everything but times, machines and where the data lay."""
    rows = [
        row.to_json() | {"seconds": 0.0, "metrics": {k: v for k, v in row.metrics.items() if "seconds" not in k}}
        for row in comparison.rows
    ]
    return comparison.config.seed, comparison.strategies, rows, comparison.paths, comparison.label_counts


def gone(process):
    """Whether it ends: a process that was killed lives until the system gets to it."""
    while True:
        try:
            if "State:\tZ" in Path(f"/proc/{process}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.1)


def two_nodes():
    """A cluster with a core on each; on a busy machine Ray may not be up in the half minute that it gives itself."""
    from ray.cluster_utils import Cluster

    for attempt in range(3):
        made = Cluster()
        try:
            made.add_node(num_cpus=1)
            made.add_node(num_cpus=1)
            return made
        except Exception:
            made.shutdown()
            if attempt == 2:
                raise
    raise AssertionError


@pytest.fixture(scope="module")
def cluster():
    """Both nodes on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # else its processes come last wherever others are at work
        made = two_nodes()
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def expected():
    return [numbers(one) for one in run_study(expand(SIZES), NAMES, jobs=1).comparisons]


def grid(folder):
    return expand(SIZES | {"dataset": [nodes.NAME], "data_dir": [str(folder)]})


@pytest.mark.engine
def test_a_grid_gives_the_numbers_of_this_process_and_is_saved_as_it_goes(cluster, expected, tmp_path):
    saved, seen = [], []
    found = run_study(
        grid(tmp_path),
        NAMES,
        ray=cluster.address,
        client_resources={"num_cpus": 0.75},
        finished=saved.append,
        progress=lambda *one: seen.append(one),
    )
    assert [numbers(one) for one in found.comparisons] == expected
    assert [len(one.comparisons) for one in saved] == [1, 2, 3]
    assert seen == [("comparisons on Ray", done, 3) for done in (0, 1, 2)]
    assert len({node for node, _ in nodes.loaded(tmp_path)}) == 2


@pytest.mark.engine
def test_flowers_engine_uses_the_cluster(cluster, expected, tmp_path):
    (config, *_) = grid(tmp_path)
    found = compare(config, NAMES, engine="flower", ray=cluster.address)
    assert numbers(found) == expected[0]
    assert len({node for node, _ in nodes.loaded(tmp_path)} - {"here"}) == 2


@pytest.mark.engine
def test_what_fails_there_is_a_line_that_says_where(cluster):
    configs = expand(SIZES | {"partition": ["label-skew"], "clients": [12]})
    with pytest.raises(RebasinError, match=rf"^[123]/3 on {platform.node()}: .*12 clients where the data"):
        run_study(configs, NAMES, ray=cluster.address)


@pytest.mark.engine
@pytest.mark.slow
def test_a_process_that_dies_again_and_again_is_told_in_a_line(cluster, tmp_path):
    (tmp_path / "die").touch()
    with pytest.raises(RebasinError, match=r"^[12]/2 on Ray: WorkerCrashedError: ") as caught:
        run_study(grid(tmp_path)[:2], NAMES, ray=cluster.address)
    assert "\n" not in str(caught.value)
    assert len(nodes.loaded(tmp_path)) >= 4  # it was begun again three times


@pytest.mark.engine
@pytest.mark.parametrize("engine", ["inline", "flower"])
def test_what_no_node_has_room_for_is_refused(cluster, engine):
    with pytest.raises(RebasinError, match=r"no node of the Ray cluster has 2 cores and 0 GPUs; they have 1 and 0, 1"):
        run_study(expand(SIZES), NAMES, engine=engine, ray=cluster.address, client_resources={"num_cpus": 2})
    with pytest.raises(RebasinError, match=r"has 1 cores and 0\.5 GPUs"):
        run_study(expand(SIZES), NAMES, engine=engine, ray=cluster.address, client_resources={"num_gpus": 0.5})


@pytest.mark.engine
def test_where_clients_would_train_on_a_gpu_a_comparison_asks_for_one(cluster):
    with pytest.raises(RebasinError, match="has 1 cores and 1 GPUs"):
        run_study(expand(SIZES | {"device": ["cuda"]}), NAMES, ray=cluster.address)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGKILL])
def test_a_grid_that_is_stopped_ends_its_tasks_and_keeps_what_was_finished(cluster, with_signal, tmp_path):
    out, folder = tmp_path / "out", tmp_path / "data"
    folder.mkdir()
    (folder / "hold").touch()
    arguments = ["compare", *OPTIONS, "--seeds", "0,1,2", "--ray", cluster.address, "--out", str(out)]
    arguments += ["--dataset", nodes.NAME, "--data-dir", str(folder)]
    driver = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while driver.poll() is None and (not (out / "results.json").exists() or len(read_results(out).comparisons) < 2):
        time.sleep(0.1)  # the other node's process waits with the third
    driver.send_signal(with_signal)
    _, said = driver.communicate()
    assert driver.returncode == (130 if with_signal == signal.SIGINT else -signal.SIGKILL), said
    assert ("the same command continues from there" in said) == (with_signal == signal.SIGINT)
    assert len(read_results(out).comparisons) == 2
    assert all(gone(process) for _, process in nodes.loaded(folder))
    (folder / "hold").unlink()
    assert main(arguments) == 0
    whole = sorted((numbers(one) for one in read_results(out).comparisons), key=lambda one: one[0])
    assert whole == [numbers(one) for one in run_study(expand(SIZES), NAMES[:1], jobs=1).comparisons]


@pytest.mark.engine
@pytest.mark.slow
def test_a_node_that_is_lost_costs_time_only(cluster, expected, tmp_path):
    (tmp_path / "hold").touch()
    third = cluster.add_node(num_cpus=1)

    def lose(study):
        if (tmp_path / "hold").exists():
            cluster.remove_node(third, allow_graceful=False)
            (tmp_path / "hold").unlink()

    found = run_study(grid(tmp_path), NAMES, ray=cluster.address, finished=lose)
    assert [numbers(one) for one in found.comparisons] == expected


@pytest.mark.engine
@pytest.mark.slow
def test_flwr_run_joins_the_cluster_that_the_environment_names(cluster, flower, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    settings = "width=8 local-epochs=1 batch-size=512 strategy='fedavg'"
    where = f"dataset='{nodes.NAME}' data-dir='{tmp_path}' out='{tmp_path / 'out'}'"
    size = ("--federation-config", "num-supernodes=2 client-resources-num-cpus=1")
    done = flower.of(Path(sys.executable).parent)("run", ".", "--stream", *size, "-c", f"{settings} {where}")
    assert (tmp_path / "out" / "results.json").exists(), done.stdout + done.stderr
    assert len({node for node, _ in nodes.loaded(tmp_path)} - {"here"}) == 2


def refused(**options):
    with pytest.raises(RebasinError) as caught:
        run_study(expand(SIZES), NAMES, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("engine", ["inline", "flower"])
def test_an_address_without_a_cluster_is_refused_at_once(engine, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        said = refused(engine=engine, ray=address)
        assert said.startswith(f"no Ray cluster at {address}: ConnectionRefusedError: ")
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert refused(engine=engine, ray="auto").startswith("no Ray cluster at auto: ConnectionRefusedError: ")
    assert refused(engine=engine, ray="cluster").startswith("no Ray cluster at cluster: ValueError: Invalid address")


@pytest.mark.parametrize("engine", ["inline", "flower"])
def test_without_ray_it_says_what_to_install(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refused(engine=engine, ray="auto") == 'Ray is not installed: pip install "flwr[simulation]"'


def test_what_a_cluster_does_not_heed_is_refused():
    assert refused(ray="auto", jobs=2).startswith("jobs 2: on a Ray cluster as many comparisons run at a time as")
    with pytest.raises(RebasinError, match="a Ray cluster is for engine flower: inline trains one client after"):
        compare(SimulationConfig(**{name: values[0] for name, values in SIZES.items()}), NAMES, ray="auto")
