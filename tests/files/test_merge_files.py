"""Files are merged as the library merges what is in them."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import fedrebasin
from fedrebasin import AlignTo, CycleConsistent, MergeError, MergeMany, RebasinError, SpecError, average, merge_files
from tests.cli.pairs import convolutions, pair, write_mlps

SHAPE = (2, 1, 8, 8)


@pytest.fixture
def files(tmp_path):
    a, b, spec = pair(convolutions, SHAPE, noise=0.05, seed=1)
    _, c, _ = pair(convolutions, SHAPE, noise=0.07, seed=2)
    paths = [tmp_path / f"{name}.pt" for name in "abc"]
    for path, state in zip(paths, (a, b, c), strict=True):
        torch.save(state, path)
    return paths, [a, b, c], spec


@pytest.mark.parametrize(
    ("method", "aligner"),
    [
        ("weight-matching", AlignTo(reference=0)),
        ("merge-many", MergeMany()),
        ("cycle-consistent", CycleConsistent()),
        ("average", None),
    ],
)
def test_a_file_holds_what_the_library_makes_of_the_states(method, aligner, files, tmp_path):
    paths, states, spec = files
    out, told = tmp_path / "m.safetensors", []
    done = merge_files(paths, out, spec, method=method, weights=[1, 2, 3], progress=lambda *step: told.append(step))
    expected = average(states, [1, 2, 3]) if aligner is None else aligner(spec, states, [1, 2, 3]).merged
    found = load_file(out)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert [row.name for row in done.rows] == [str(path) for path in paths]
    assert done.reference == ("" if method in ("merge-many", "cycle-consistent") else str(paths[0]))
    assert any("writing" in what for what, _, _ in told)
    with safe_open(out, "pt") as file:
        header = file.metadata()
    assert header["made_by"] == f"fedrebasin {fedrebasin.__version__}"
    assert [row["weight"] for row in json.loads(header["inputs"])] == [row.weight for row in done.rows]


def test_plain_stacks_need_no_spec_and_an_average_none_at_all(tmp_path):
    a, b = write_mlps(tmp_path)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.pt"]
    out = tmp_path / "m.safetensors"
    assert sum(row.moved for row in merge_files(paths, out).rows) > 0
    assert all(torch.allclose(tensor, a[key], atol=1e-6) for key, tensor in load_file(out).items())
    merge_files(paths, out, method="average", force=True)
    assert all(torch.allclose(tensor, (a[key] + b[key]) / 2) for key, tensor in load_file(out).items())


def test_what_cannot_be_merged_is_refused_and_nothing_is_written(files, tmp_path):
    paths, _, spec = files
    out = tmp_path / "m.safetensors"
    for error, words, arguments in (
        (RebasinError, "did you mean", {"method": "merge-mny"}),
        (MergeError, "does not align to a reference", {"method": "merge-many", "base": paths[0]}),
        (MergeError, "weights", {"weights": [1.0]}),
        (MergeError, "give model=", {"data": fedrebasin.files.Data("none", [], [], [])}),
        (MergeError, "does not fit Linear", {"model": torch.nn.Linear(2, 2)}),
    ):
        with pytest.raises(error, match=words):
            merge_files(paths, out, spec, **arguments)
    with pytest.raises(SpecError, match="not a plain stack"):
        merge_files(paths, out)
    with pytest.raises(MergeError, match="no checkpoint"):
        merge_files([], out)
    assert not out.exists()
