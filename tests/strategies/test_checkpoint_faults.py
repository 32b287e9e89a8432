"""Whatever happens to the files of a checkpoint, a resume ends in a model that was written or in one line."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fedrebasin.strategies.run import checkpoint as files
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg, FedAvgM
from safetensors.torch import load_file, save_file

from fedrebasin import Identity, PermutationSpec
from fedrebasin.strategies import Aligned, CheckpointError, FedRebasin
from tests.compatibility.nets import CLIENTS as OLD_CLIENTS
from tests.compatibility.nets import clients, mlp, random_state
from tests.strategies.helpers import AXES, COMMON, STRATEGIES, make_state
from tests.strategies.test_runs import SPEC, assert_same, make_app, run

OLD = Path(__file__).parents[1] / "compatibility" / "written_by_0_1" / "run"
ROOT = Path(__file__).resolve().parents[2]
DEEP = "[" * 100_000 + "]" * 100_000
#: What a field of JSON may be instead of what it should be.
WRONG = (None, True, -1, 10**400, 1.5, float("inf"), "x", [], [[]], {}, {"x": {}}, [None] * 5)


def aligned(folder, inner="FedAvgM", **options):
    return Aligned(STRATEGIES[inner](), **{"spec": SPEC, "frame": "client", "checkpoint": folder, **options})


def rewrite(path, change):
    """Change the meta data of a checkpoint, and its checksums with it."""
    meta = json.loads((path / files.META).read_text())
    meta = change(meta) or meta
    text = json.dumps(meta)
    (path / files.META).write_text(text)
    sums(path)


def sums(path):
    if (path / files.SUMS).exists():
        lines = [f"{hashlib.sha256((path / n).read_bytes()).hexdigest()}  {n}\n" for n in (files.ARRAYS, files.META)]
        (path / files.SUMS).write_text("".join(lines))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder after three rounds, and what the run gave."""
    folder = tmp_path_factory.mktemp("written") / "run"
    return folder, run(aligned(folder), make_state(0, width=24), rounds=3, app=make_app(own_order=True))


def resumed(folder, rounds=3, **options):
    strategy = aligned(folder, resume=True, **options)
    return run(strategy, make_state(0, width=24), rounds=rounds, app=make_app(own_order=True))


def assert_falls_back(folder, whole, caplog):
    """The last round is done again, from the checkpoint before."""
    caplog.clear()
    assert_same(whole, resumed(folder))
    assert "round-000003 is damaged" in caplog.text
    assert "after round 2" in caplog.text


def test_another_strategy_spec_and_newer_format_are_refused_by_name(written, tmp_path):
    folder = shutil.copytree(written[0], tmp_path / "run")
    with pytest.raises(
        CheckpointError, match=r"round-000003: a checkpoint of another strategy \(FedAvgM instead of FedA"
    ):
        resumed(folder, inner="FedAdam")
    other = PermutationSpec.from_axes({**AXES, "3.weight": ("Q", "P"), "3.bias": ("Q",)})
    with pytest.raises(CheckpointError, match=r"another spec \(it differs in the groups .*Q"):
        resumed(folder, spec=other)
    rewrite(folder / "round-000003", lambda meta: meta.update(version=3))
    with pytest.raises(CheckpointError, match="round-000003: a checkpoint of format 3"):
        resumed(folder)


def test_settings_that_differ_are_named(written, tmp_path, caplog):
    folder = shutil.copytree(written[0], tmp_path / "run")
    inner = FedAvgM(**COMMON, server_momentum=0.8, server_learning_rate=0.5)
    run(Aligned(inner, spec=SPEC, frame="client", checkpoint=folder, resume=True), make_state(0, width=24), rounds=3)
    assert "the run had 0.server_momentum=0.9, it goes on with 0.8" in caplog.text


@pytest.mark.parametrize("name", [files.ARRAYS, files.META, files.SUMS])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "a folder", "flipped"])
def test_any_damage_to_any_file_falls_back_to_the_checkpoint_before(written, tmp_path, name, damage, caplog):
    folder, whole = written
    folder = shutil.copytree(folder, tmp_path / "run")
    file = folder / "round-000003" / name
    data = file.read_bytes()
    if damage == "flipped":
        generator = torch.Generator().manual_seed(len(name))
        for position in torch.randint(0, 8 * len(data), (40,), generator=generator).tolist():
            flipped = bytearray(data)
            flipped[position // 8] ^= 1 << position % 8
            file.write_bytes(flipped)
            assert files.read_newest(folder, lambda found: found.server_round) == 2, position
    else:
        file.unlink()
        if damage == "a folder":
            file.mkdir()
        elif damage != "missing":
            file.write_bytes(data[: -len(data) // 3] if damage == "truncated" else b"")
    assert_falls_back(folder, whole, caplog)


def fields(content, way=()):
    """The way to every entry of JSON data; of a long list, to its first only."""
    yield way
    if isinstance(content, dict):
        entries = list(content.items())
    else:
        entries = list(enumerate(content[:1] if len(content) > 5 else content)) if isinstance(content, list) else []
    for key, entry in entries:
        yield from fields(entry, (*way, key))


def replaced(content, way, value):
    if not way:
        return value
    content[way[0]] = replaced(content[way[0]], way[1:], value)
    return content


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:12])
def test_whatever_a_field_is_the_checkpoint_is_read_or_passed_over(written, tmp_path, value):
    """The checksums are right, as a forger would make them: nothing but one of the two models, or one line."""
    folder = shutil.copytree(written[0], tmp_path / "run")
    text = (folder / "round-000003" / files.META).read_text()
    app, said = make_app(), []
    for way in list(fields(json.loads(text))):
        rewrite(folder / "round-000003", lambda meta, way=way: replaced(json.loads(text), way, value))
        strategy = aligned(folder, resume=True)
        before = vars(strategy.strategy).keys()
        try:
            run(strategy, make_state(0, width=24), rounds=2, app=app)
        except CheckpointError as error:
            said.append(str(error))
        assert vars(strategy.strategy).keys() == before, way
        assert strategy.strategy.min_train_nodes == COMMON["min_train_nodes"]
    assert not app.seen
    assert not any("\n" in line for line in said)


@pytest.mark.parametrize("text", [DEEP, DEEP.replace("[", '{"a":').replace("]", "1}"), "1" * 5000, "1e999", "nul", ""])
def test_json_that_no_parser_likes_is_damage(written, tmp_path, text, caplog):
    folder, whole = written
    folder = shutil.copytree(folder, tmp_path / "run")
    (folder / "round-000003" / files.META).write_text(text)
    sums(folder / "round-000003")
    assert_falls_back(folder, whole, caplog)


@pytest.mark.parametrize(
    ("attribute", "form"),
    [
        ("0.min_train_nodes_", None),
        ("0.__class__", None),
        ("0.strategy", "dict"),
        ("0.train_metrics_aggr_fn", "dict"),
        ("1.momentum_vector", "list"),
        ("0.server_momentum", "list"),
    ],
)
def test_attributes_that_were_not_declared_are_not_set(written, tmp_path, attribute, form, caplog):
    folder, whole = written
    folder = shutil.copytree(folder, tmp_path / "run")

    def forge(meta):
        inner = meta["settings"]["inner"]
        inner["numbers"] |= {} if form else {attribute: 1}
        inner["arrays"] |= {attribute: {"kind": form, "keys": []}} if form else {}

    rewrite(folder / "round-000003", forge)
    assert_falls_back(folder, whole, caplog)
    assert files.read_newest(folder, lambda found: found.server_round) == 3, "it was refused for what it would set"


def test_what_is_no_permutation_is_not_a_frame(written, tmp_path, caplog):
    folder, whole = written
    folder = shutil.copytree(folder, tmp_path / "run")
    file = folder / "round-000003" / files.ARRAYS
    arrays = load_file(file)
    key = next(key for key in arrays if key.startswith("frames/"))
    for wrong in (torch.zeros(24, dtype=torch.int64), torch.arange(24) - 1, torch.arange(24) * 2.0, torch.eye(24)):
        save_file({**arrays, key: wrong}, file)
        sums(folder / "round-000003")
        assert_falls_back(folder, whole, caplog)
        shutil.rmtree(folder)
        shutil.copytree(written[0], folder)


@pytest.mark.parametrize("section", ["global", "inner", "frames"])
def test_arrays_of_another_form_are_not_restored(written, tmp_path, section, caplog):
    folder, whole = written
    folder = shutil.copytree(folder, tmp_path / "run")
    file = folder / "round-000003" / files.ARRAYS
    arrays = load_file(file)
    key = next(key for key in arrays if key.startswith(f"{section}/") and arrays[key].dim())
    save_file({**arrays, key: torch.zeros(3)}, file)
    sums(folder / "round-000003")
    if section == "global":
        with pytest.raises(CheckpointError, match="another model"):
            resumed(folder)
    else:
        assert_falls_back(folder, whole, caplog)


def test_arrays_that_a_strategy_has_from_its_first_round_only_are_named(tmp_path, caplog):
    class Late(FedAvg):
        def configure_train(self, *arguments):
            self.late = [torch.zeros(3).numpy()]
            return super().configure_train(*arguments)

    run(Aligned(Late(**COMMON), spec=SPEC, checkpoint=tmp_path), make_state(0), rounds=2)
    assert caplog.text.count("0.late is not in checkpoints") == 1


@pytest.mark.parametrize(
    "value",
    [torch.ones(3), np.ones(3), {"a": torch.ones(3)}, [ArrayRecord([np.ones(3)])], {1: {"a": np.ones(3)}}],
    ids=["tensor", "array", "tensors", "records", "nested"],
)
def test_arrays_in_a_form_that_is_not_written_down_are_warned_of(tmp_path, caplog, value):
    inner = FedAvg(**COMMON)
    inner.held = value
    run(Aligned(inner, aligner=Identity(), checkpoint=tmp_path), make_state(0), rounds=2)
    assert caplog.text.count("0.held is not in checkpoints: the strategy has to keep it as a dict") == 1


# -- 0.1.0's --


def old_run(folder):
    strategy = FedRebasin(
        FedAvgM(
            fraction_evaluate=0.0, min_train_nodes=OLD_CLIENTS, min_available_nodes=OLD_CLIENTS, server_momentum=0.9
        ),
        spec=PermutationSpec.trace(mlp(), torch.zeros(2, 5)),
        frame="client",
        checkpoint=folder,
        resume=True,
    )
    return run(strategy, ArrayRecord(random_state(mlp, 0)), rounds=2, app=clients())


def test_what_0_1_wrote_is_read_with_a_warning_that_names_what_nobody_can_know(tmp_path, caplog):
    result = old_run(shutil.copytree(OLD, tmp_path / "run"))
    expected = load_file(OLD / "round-000002" / files.ARRAYS)
    assert all(torch.equal(t, expected[f"global/{key}"]) for key, t in result.arrays.to_torch_state_dict().items())
    (warning,) = (record.getMessage() for record in caplog.records if "0.1" in record.getMessage())
    for unknown in ("run", "spec", "strategy", "round", "metrics", "numbers", "random state", "could not be verified"):
        assert unknown in warning


@pytest.mark.parametrize("value", WRONG[1:7], ids=lambda value: repr(value)[:12])
def test_fields_of_0_1_without_a_checksum_are_checked_one_by_one(tmp_path, value):
    folder = shutil.copytree(OLD, tmp_path / "run")
    text, said = (folder / "round-000002" / files.META).read_text(), []
    for way in list(fields(json.loads(text))):
        rewrite(folder / "round-000002", lambda meta, way=way: replaced(json.loads(text), way, value))
        try:
            old_run(folder)
        except CheckpointError as error:
            said.append(str(error))
    assert said
    assert not any("\n" in line for line in said)
