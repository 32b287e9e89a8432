"""Data sets and the IDX reader: what is read, and what is refused before memory is taken."""

import gzip
import struct

import numpy as np
import pytest
import torch

from fedrebasin import DataError
from fedrebasin.simulations import load_dataset, read_idx


def idx_bytes(array, kind=0x08):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_fashion(folder, ending, examples=12):
    generator = np.random.default_rng(0)
    for part in ("train", "t10k"):
        images = generator.integers(0, 256, (examples, 28, 28), dtype=np.uint8)
        write(folder / f"{part}-images-idx3-ubyte{ending}", idx_bytes(images))
        write(folder / f"{part}-labels-idx1-ubyte{ending}", idx_bytes(np.arange(examples, dtype=np.uint8) % 10))


def test_digits_need_no_files_and_are_standardised():
    digits = load_dataset("digits")
    assert digits.sample_shape == (1, 8, 8)
    assert digits.classes == 10
    assert len(digits.train_labels) + len(digits.test_labels) == 1797
    assert digits.train_inputs.mean(0).abs().max() < 1e-5
    deviations = digits.train_inputs.std(0)
    assert torch.allclose(deviations, (deviations > 0).float(), atol=1e-4)
    held_out, reported = digits.test_split()
    assert torch.equal(torch.cat([held_out, reported]).sort().values, torch.arange(len(digits.test_labels)))
    assert len(held_out) == round(0.2 * len(digits.test_labels))


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_fashion_mnist_from_a_plain_folder_or_a_torchvision_root(tmp_path, ending, below):
    write_fashion(tmp_path / below, ending)
    fashion = load_dataset("fashion-mnist", str(tmp_path))
    assert fashion.sample_shape == (1, 28, 28)
    assert fashion.test_labels.tolist() == [i % 10 for i in range(12)]


def test_an_image_folder(tmp_path):
    from PIL import Image

    for part in ("train", "val"):
        for name, colour in (("black", 0), ("white", 255)):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (5, 7), (colour, colour, colour)).save(tmp_path / part / name / "one.png")
    images = load_dataset("image-folder", str(tmp_path))
    assert images.sample_shape == (3, 32, 32)
    assert images.train_labels.tolist() == [0, 1]
    assert float(images.train_inputs[0].mean()) < float(images.train_inputs[1].mean())
    assert load_dataset("image-folder", str(tmp_path), 48).sample_shape == (3, 48, 48)
    assert len(load_dataset("image-folder", str(tmp_path), 0, 1).train_labels) == 1
    (tmp_path / "train" / "black" / "two.png").write_text("no image")
    with pytest.raises(DataError, match=r"two\.png: not a readable image"):
        load_dataset("image-folder", str(tmp_path), 8)


def test_an_image_folder_without_a_test_part_keeps_a_quarter_for_testing(tmp_path):
    from PIL import Image

    for name, colour in (("black", 0), ("white", 255)):
        (tmp_path / name).mkdir()
        for number in range(6):
            Image.new("RGB", (4, 4), (colour, number, 0)).save(tmp_path / name / f"{number}.png")
    images = load_dataset("image-folder", str(tmp_path))
    assert (len(images.train_labels), len(images.test_labels)) == (9, 3)
    rows = torch.cat([images.train_inputs, images.test_inputs]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == 12


FUNCTIONS = """
import torch
from torch.utils.data import TensorDataset
inputs, labels = torch.arange(24.0).reshape(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
def arrays():
    return (inputs.numpy(), labels.numpy()), (inputs[:3], labels[:3])
def datasets():
    return TensorDataset(inputs, labels), [(image, int(label)) for image, label in zip(inputs[:3], labels[:3])]
def one():
    return TensorDataset(inputs, labels)
def shapes():
    return (inputs, labels), (inputs.flatten(1), labels)
def targets():
    return (inputs, inputs), (inputs, inputs)
def broken():
    raise RuntimeError("no\\ndisk")
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "data_of_mine.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *__import__("sys").path])
    yield
    __import__("sys").modules.pop("data_of_mine", None)


@pytest.mark.parametrize("name", ["arrays", "datasets"])
def test_a_function_gives_data_as_they_are(functions, name):
    data = load_dataset(f"data_of_mine:{name}")
    assert torch.equal(data.train_inputs, torch.arange(24.0).reshape(6, 1, 2, 2))
    assert data.train_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(data.test_inputs, data.train_inputs[:3])
    assert (data.classes, data.sample_shape) == (3, (1, 2, 2))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data_of_mine:one", r"does not give \(train, test\)"),
        ("data_of_mine:none", "no attribute 'none'"),
        ("data_of_mine:shapes", "samples have shapes"),
        ("data_of_mine:targets", "with labels of shape"),
        ("data_of_mine:broken", "RuntimeError: no disk"),
        ("no_such_module:data", "No module named"),
    ],
)
def test_a_function_that_gives_something_else_gets_one_line(functions, name, message):
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(name)
    assert "\n" not in str(caught.value)


class Torchvision:
    """Stands for a torchvision data set: there once it was downloaded."""

    there = False

    def __init__(self, folder, train, download):
        if download and not Torchvision.there:
            Torchvision.there = True
        if not Torchvision.there:
            raise RuntimeError("Dataset not found or corrupted.\nYou can use download=True to download it")
        generator = np.random.default_rng(int(train))
        self.data = generator.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        self.targets = [0, 1, 2, 3]


def test_what_is_not_there_is_downloaded_unless_that_is_forbidden(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Torchvision)
    monkeypatch.setenv("FEDREBASIN_DATA", str(tmp_path / "new"))
    with pytest.raises(DataError, match=r"needs data-dir: it is not in .*new, and FEDREBASIN_OFFLINE is set"):
        load_dataset("cifar10")
    assert not (tmp_path / "new").exists()
    monkeypatch.delenv("FEDREBASIN_OFFLINE")
    assert load_dataset("cifar10").sample_shape == (3, 32, 32)
    assert (tmp_path / "new").is_dir()
    load_dataset.cache_clear()


def test_a_download_that_fails_gets_one_line(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("<urlopen error\nno route to host>")

    monkeypatch.setattr("torchvision.datasets.SVHN", refuse)
    monkeypatch.setenv("FEDREBASIN_DATA", str(tmp_path))
    monkeypatch.delenv("FEDREBASIN_OFFLINE")
    with pytest.raises(DataError, match="the download failed: <urlopen error no route to host>"):
        load_dataset("svhn")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "image-folder"])
def test_missing_data_gets_one_line(tmp_path, name):
    with pytest.raises(DataError, match=name) as caught:
        load_dataset(name, str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="needs data-dir"):
        load_dataset(name)


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_idx_round_trip(tmp_path, name):
    array = np.random.default_rng(1).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    assert np.array_equal(read_idx(write(tmp_path / name, idx_bytes(array)), 3), array)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a", b"", "not an IDX file"),
        ("a", b"\x00\x00\x08", "not an IDX file"),
        ("a", idx_bytes(np.zeros((2, 2), np.float32), kind=0x0D), "not an IDX file"),
        ("a", idx_bytes(np.zeros(4, np.uint8)), "not an IDX file"),
        ("a", struct.pack(">BBBBII", 0, 0, 8, 2, 2**31, 2**31), "cannot hold"),
        ("a.gz", struct.pack(">BBBBII", 0, 0, 8, 2, 2**31, 2**31), "cannot hold"),
        ("a", struct.pack(">BBBBII", 0, 0, 8, 2, 0, 7), "cannot hold"),
        ("a.gz", idx_bytes(np.zeros((20, 20), np.uint8))[:-1], "cut off"),
        ("a", idx_bytes(np.zeros((2, 2), np.uint8)) + b"more", "longer"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read_idx(write(tmp_path / name, content), 2)


def test_a_broken_gzip_file_is_refused(tmp_path):
    whole = gzip.compress(idx_bytes(np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)))
    path = tmp_path / "a.gz"
    for broken in (b"no gzip at all", whole[:30], whole[:-4] + b"\x00\x00\x00\x00"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.gz"):
            read_idx(path, 2)
