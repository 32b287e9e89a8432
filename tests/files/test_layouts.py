"""Folders of weights: shards, links and indexes; what is copied beside them, what is refused."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fedrebasin import DataError, MergeError
from fedrebasin.cli import main
from fedrebasin.files import load_checkpoint, merge_files
from tests.cli.pairs import mlp, pair


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(folder, state, form="safetensors", shards=2, **beside):
    """A folder as a library writes it, with small files beside the weights."""
    os.makedirs(folder)
    stem, save = ("model", save_file) if form == "safetensors" else ("pytorch_model", torch.save)
    suffix = "safetensors" if form == "safetensors" else "bin"
    keys = sorted(state)
    if shards == 1:
        save(state, f"{folder}/{stem}.{suffix}")
    else:
        names = [f"{stem}-{k + 1:05}-of-{shards:05}.{suffix}" for k in range(shards)]
        index = {key: names[place * shards // len(keys)] for place, key in enumerate(keys)}
        for name in names:
            save({key: state[key] for key in keys if index[key] == name}, f"{folder}/{name}")
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
        Path(f"{folder}/{stem}.{suffix}.index.json").write_text(text)
    for name, text in {"config.json": '{"dtype": "float32"}', **beside}.items():
        Path(f"{folder}/{name}").write_text(text)


@pytest.fixture
def models():
    a, b, _ = pair(mlp, (2, 64))
    return a, b


def read(folder):
    state = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            state |= load_file(f"{folder}/{name}")
    return state


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_an_output_has_the_layout_of_the_first(form, shards, models, capsys):
    a, b = models
    tokenizer = {"tokenizer.json": "{}", "vocab.txt": "a b", "LICENSE": "yes"}
    write(
        "A",
        a,
        form,
        shards,
        **tokenizer,
        **{"README.md": "a card of its own", "training_args.bin": "x", ".hidden.json": "{}"},
    )
    write("B", b, "safetensors", 2)
    assert main(["merge", "A", "B", "-o", "OUT", "--dtype", "float64"]) == 0, capsys.readouterr().err
    merged = read("OUT")
    assert merged.keys() == a.keys()
    assert all(torch.allclose(merged[key], a[key].double(), atol=1e-6) for key in a)
    names = set(os.listdir("OUT"))
    weights = {"model.safetensors"} if shards == 1 else {f"model-{k + 1:05}-of-00003.safetensors" for k in range(3)}
    index = set() if shards == 1 else {"model.safetensors.index.json"}
    assert names == {"config.json", "README.md", *tokenizer} | weights | index
    assert json.loads(Path("OUT/config.json").read_text())["dtype"] == "float64"
    for name in index:
        found = json.loads(Path(f"OUT/{name}").read_text())
        assert found["metadata"]["total_size"] == sum(tensor.nbytes for tensor in merged.values())
        for key, file in found["weight_map"].items():
            with safe_open(f"OUT/{file}", "pt") as opened:
                assert key in opened.keys()  # noqa: SIM118
                assert json.loads(opened.metadata()["inputs"])[0]["name"] == "A"
    card = Path("OUT/README.md").read_text()
    assert card.startswith("---\n")
    assert "units matched to A by weight-matching" in card
    assert "of 48" in card
    assert "of its own" not in card


def test_a_folder_into_a_file_and_a_file_into_no_folder(models, capsys):
    a, b = models
    write("A", a)
    save_file(b, "b.safetensors")
    assert main(["merge", "A", "b.safetensors", "-o", "m.safetensors"]) == 0
    assert all(torch.allclose(tensor, a[key], atol=1e-6) for key, tensor in load_file("m.safetensors").items())
    assert main(["merge", "b.safetensors", "A", "-o", "OUT"]) == 2
    assert "the merged model is a safetensors file: name it OUT.safetensors" in capsys.readouterr().err
    assert not os.path.exists("OUT")


def test_only_a_models_folder_is_replaced_and_only_with_force(models, capsys):
    a, b = models
    write("A", a)
    write("B", b)
    os.makedirs("mine")
    Path("mine/notes.txt").write_text("mine")
    merge = ["merge", "A", "B", "-o"]
    assert main([*merge, "B"]) == 2
    assert "B is one of the inputs" in capsys.readouterr().err
    assert main([*merge, "mine"]) == 2
    assert main([*merge, "mine", "--force"]) == 2
    assert "a folder that is no model's is not replaced" in capsys.readouterr().err
    assert os.listdir("mine") == ["notes.txt"]
    assert main([*merge, "B", "--force"]) == 0
    assert all(torch.allclose(tensor, a[key], atol=1e-6) for key, tensor in read("B").items())


def test_what_fails_leaves_nothing(models):
    a, b = models
    write("A", a)
    write("B", {**b, "layers.0.weight": torch.full_like(b["layers.0.weight"], torch.nan)})
    with pytest.raises(MergeError, match="not a number"):
        merge_files(["A", "B"], "OUT", method="average")
    assert sorted(os.listdir(".")) == ["A", "B"]


def index(entries):
    return json.dumps({"weight_map": entries})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (index({"layers.0.bias": "../secret.safetensors"}), "is no file of the folder"),
        (index({"layers.0.bias": "/etc/passwd"}), "is no file of the folder"),
        (index({"layers.0.bias": "..\\secret"}), "is no file of the folder"),
        (index({"layers.0.bias": "link.safetensors"}), "a link out of the folder"),
        (index({"layers.0.bias": "none.safetensors"}), "there is no such file"),
        (index({"none": "model-00001-of-00002.safetensors"}), "none is not in model-00001-of-00002.safetensors"),
        (index({}), "no index of shards"),
        (index({"a": 3}), "no index of shards"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "not readable JSON"),
        ("{", "not readable JSON"),
    ],
)
def test_an_index_leads_nowhere_else(text, message, models):
    a, _ = models
    write("A", a)
    save_file(a, "secret.safetensors")
    os.symlink("../secret.safetensors", "A/link.safetensors")
    Path("A/model.safetensors.index.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load_checkpoint("A")
    assert "\n" not in str(caught.value)


def test_links_lead_out_of_a_folder_in_a_hubs_cache_only(models):
    a, _ = models
    os.makedirs("elsewhere")
    save_file(a, "elsewhere/0")
    os.makedirs("models--x/blobs")
    save_file(a, "models--x/blobs/0")
    for folder, target in (("models--x/snapshots/1", "../../blobs/0"), ("A", "../elsewhere/0")):
        os.makedirs(folder)
        os.symlink(target, f"{folder}/model.safetensors")
    assert load_checkpoint("models--x/snapshots/1").state.keys() == a.keys()
    with pytest.raises(DataError, match="a link out of the folder"):
        load_checkpoint("A")
    os.unlink("models--x/snapshots/1/model.safetensors")
    os.symlink("../../../elsewhere/0", "models--x/snapshots/1/model.safetensors")
    with pytest.raises(DataError, match="a link out of the folder"):
        load_checkpoint("models--x/snapshots/1")


def test_a_link_among_the_companions_is_not_followed(models):
    a, b = models
    write("A", a)
    write("B", b)
    Path("secret.json").write_text("{}")
    os.symlink("../secret.json", "A/tokenizer.json")
    merge_files(["A", "B"], "OUT")
    assert "tokenizer.json" not in os.listdir("OUT")


def test_a_folder_without_one_model_says_what_is_wanted(models):
    a, _ = models
    os.makedirs("A")
    with pytest.raises(DataError, match="a folder with no weights"):
        load_checkpoint("A")
    save_file(a, "A/one.safetensors")
    assert load_checkpoint("A").state.keys() == a.keys()
    save_file(a, "A/two.safetensors")
    with pytest.raises(DataError, match="2 files of weights"):
        load_checkpoint("A")


def test_names_of_hosts_write_no_markup_into_the_card(models):
    a, b = models
    write("A", a)
    write("B<b>|[x](y)", b)
    merge_files(["A", "B<b>|[x](y)"], "OUT")
    assert r"B\<b\>\|\[x\](y)" in Path("OUT/README.md").read_text()
