"""``fedrebasin doctor``: every finding has a verdict, and what is broken is exit code 1."""

import json
from importlib import metadata

import pytest

from fedrebasin.cli import doctor as doctor_command
from fedrebasin.cli import main


@pytest.fixture(autouse=True)
def _few_packages(monkeypatch):
    monkeypatch.setattr(doctor_command, "PACKAGES", (("numpy", "1.26", True), ("flwr-datasets", "0.5", False)))


def test_all_is_well(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", raising=False)
    assert main(["doctor", "--json"]) == 0
    found = {one["what"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["numpy"]["found"] == metadata.version("numpy")
    assert found["matching"]["verdict"] == "ok"
    assert "recognises a permuted network" in found["matching"]["found"]
    assert found["OMP_NUM_THREADS"]["verdict"] == "ok"
    installs = found["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"]
    assert installs["verdict"] == "note"
    assert "set it to 1" in installs["advice"]
    assert all(one["advice"] for one in found.values() if one["verdict"] != "ok")


@pytest.mark.parametrize(
    ("package", "advice"),
    [
        (("numpy", "999", True), 'pip install --upgrade "numpy>=999"'),
        (("no-such-thing", "1", True), "no-such-thing>=1"),
    ],
)
def test_what_is_needed_and_missing_or_old_is_broken(package, advice, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(doctor_command, "PACKAGES", (package,))
    assert main(["doctor"]) == 1
    printed = capsys.readouterr()
    assert advice in printed.out
    assert f"fedrebasin: broken: {package[0]}" in printed.err


def test_what_is_newer_than_tested_is_noted(capsys, monkeypatch):
    monkeypatch.setattr(doctor_command, "TESTED", {"numpy": "1.0"})
    assert main(["doctor", "--json"]) == 0
    numpy = next(one for one in json.loads(capsys.readouterr().out) if one["what"] == "numpy")
    assert (numpy["verdict"], numpy["advice"]) == ("note", "newer than 1.0, the newest that was tested")


def test_a_package_that_does_not_import_is_broken(capsys, monkeypatch):
    monkeypatch.setitem(doctor_command.MODULES, "numpy", "no_such_module")
    assert main(["doctor", "--json"]) == 1
    numpy = next(one for one in json.loads(capsys.readouterr().out) if one["what"] == "numpy")
    assert numpy["verdict"] == "broken"
    assert "No module named 'no_such_module'" in numpy["found"]


def test_a_simulation_that_fails_is_broken(capsys, monkeypatch):
    def fails():
        raise RuntimeError("no engine")

    monkeypatch.setattr(doctor_command, "_simulate", fails)
    assert main(["doctor", "--simulation", "--json"]) == 1
    last = json.loads(capsys.readouterr().out)[-1]
    assert (last["what"], last["verdict"]) == ("Flower's simulation", "broken")
    assert "flwr[simulation]" in last["advice"]


@pytest.mark.parametrize(
    ("version", "expected"), [("2.15.0+cpu", (2, 15, 0)), ("1.29", (1, 29)), ("3.0rc1", (3, 0)), ("", ())]
)
def test_versions_are_compared_by_their_numbers(version, expected):
    assert doctor_command.numbers(version) == expected
