"""Everything in the README runs as written; the long commands with less data and fewer epochs."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from fedrebasin.cli import main
from tests.cli.pairs import write_mlps

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICK = ["--local-epochs", "1", "--batch-size", "512", "--dataset", "digits"]
TABLE = re.findall(r"│ (\S+) +│ +([0-9.]+) % │", README)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(name):
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith(f"{name} ")]


def test_the_snippets_run_one_after_the_other():
    namespace = {}
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert type(namespace["strategy"]).__name__ == "FedRebasin"


@pytest.mark.parametrize("command", commands("fedrebasin"))
def test_the_commands_run(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "DIR").mkdir()
    monkeypatch.chdir(tmp_path)
    _, *arguments = shlex.split(command)
    if arguments[0] in ("merge", "barrier"):
        small = {"torchvision:resnet18": "tests.cli.pairs:mlp", "cifar10": "digits"}
        write_mlps(tmp_path)
        arguments = [small.get(argument, argument) for argument in arguments]
        arguments += ["--input", "2,64"] if arguments[0] == "merge" else ["--points", "3"]
    if arguments[0] == "compare":
        arguments += [*QUICK, "--width", "0.125" if "--model" in arguments else "8"]
    assert main(arguments) == 0, capsys.readouterr().err


def test_the_run_config_keys_exist():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    for command in commands("flwr"):
        overrides = tomllib.loads(shlex.split(command)[-1].replace(" ", "\n"))
        assert set(overrides) <= set(config)


def test_the_readme_is_short_and_begins_with_how_to_install_and_to_try_it():
    assert len(README.splitlines()) < 150
    first, second = (block.partition("#")[0].strip() for block in blocks("sh")[:2])
    assert (first, second) == ("pip install .", "fedrebasin compare")
    assert README.index("```sh") < README.index("fedrebasin merges")


@pytest.mark.slow
def test_the_table_holds_within_margins(capsys):
    """Unaligned averages of narrow nets are luck: that they fail is all that holds anywhere."""
    said = {name: float(accuracy) for name, accuracy in TABLE}
    assert main(["compare", "--json"]) == 0
    (comparison,) = json.loads(capsys.readouterr().out)["comparisons"]
    found = {row["strategy"]: 100 * row["accuracy"] for row in comparison["rows"]}
    assert list(found) == list(said)
    unaligned = ["fedavg", "wide-avg"]
    for name in said:
        assert found[name] == pytest.approx(said[name], abs=3) or name in unaligned, name
    assert max(found[name] for name in unaligned) < min(found[name] for name in found if name not in unaligned) - 20
