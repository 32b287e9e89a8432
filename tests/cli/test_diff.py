"""``fedrebasin diff``: a copy in another order is the same once matched, layer by layer, and its numbers are right."""

import json

import pytest
import torch

from fedrebasin.cli import main
from tests.cli.pairs import write_mlps

DIFF = ["diff", "a.safetensors", "b.pt"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_copy_differs_in_nothing_once_matched(tmp_path, capsys):
    a, b = write_mlps(tmp_path)
    assert main([*DIFF, "--json", "--out", "new/layers"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "new" / "layers" / "diff.json").read_text())
    assert found["matched"] == pytest.approx(1)
    assert [row["layer"] for row in found["layers"]] == ["layers.0", "layers.1", "layers.2"]
    for row in found["layers"]:
        assert row["matched"] == pytest.approx(1)
        assert row["distance_matched"] == pytest.approx(0, abs=1e-6)
        assert row["spectral_distance"] == pytest.approx(0, abs=1e-6)
        assert row["stable_ranks"][0] == pytest.approx(row["stable_ranks"][1])
        x, y = (
            torch.cat([state[f"{row['layer']}.{part}"].flatten() for part in ("weight", "bias")]) for state in (a, b)
        )
        assert row["similarity"] == pytest.approx(float(torch.cosine_similarity(x, y, dim=0)), abs=1e-6)
        assert row["distance"] == pytest.approx(float((x - y).norm() / x.norm()), rel=1e-5)
        assert row["numbers"] == len(x)
        values = torch.linalg.svdvals(a[f"{row['layer']}.weight"].double())
        assert row["stable_ranks"][0] == pytest.approx(float((values**2).sum() / values[0] ** 2))
    assert [row["units"] for row in found["layers"]] == [24, 48, 24]
    assert "as they are" in (tmp_path / "new" / "layers" / "diff.svg").read_text()
    assert (tmp_path / "new" / "layers" / "diff.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_has_a_row_for_each_layer(tmp_path, capsys):
    write_mlps(tmp_path, noise=0.05)
    assert main([*DIFF, "--model", "tests.cli.pairs:mlp", "--input", "2,64"]) == 0
    printed = capsys.readouterr().out
    assert [f"layers.{k}" in printed for k in range(3)] == [True] * 3
    assert "matched; similarity" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.safetensors", "none.pt"], "there is no such file"),
        (["a.safetensors", "b.pt", "--method", "greddy"], "did you mean greedy?"),
        (["a.safetensors", "b.pt", "--model", "tests.cli.pairs:convolutions"], "does not fit"),
    ],
)
def test_wrong_use_gets_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    write_mlps(tmp_path)
    assert main(["diff", *arguments]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
