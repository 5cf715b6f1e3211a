"""Data sets: what they hold, and what is said when files are missing, truncated or wrong."""

import hashlib
import pickle
import struct
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from psl.data import NAMES, fetch, load
from psl.data.__main__ import main
from psl.data.tensors import normalised
from psl.errors import DataError


def test_digits_are_complete_normalised_and_always_split_alike():
    train, test = load("digits")
    assert (len(train), len(test)) == (1437, 360)
    assert train.tensors[0].shape[1:] == (1, 8, 8)
    assert train.tensors[0].dtype == torch.float32
    assert abs(train.tensors[0].mean()) < 1e-5
    assert abs(train.tensors[0].std() - 1) < 1e-3
    shares = torch.bincount(test.tensors[1]) / torch.bincount(torch.cat([train.tensors[1], test.tensors[1]]))
    assert shares.min() > 0.19
    assert shares.max() < 0.21
    assert torch.equal(load("digits")[1].tensors[0], test.tensors[0])
    # Every image is one of scikit-learn's, up to the common shift and scale, and none is used twice.
    images = torch.cat([train.tensors[0], test.tensors[0]]).flatten(1).double().numpy()
    want = load_digits().data
    scale = (want.max() - want.min()) / (images.max() - images.min())
    found = np.round((images - images.min()) * scale).astype(int)
    assert sorted(map(tuple, found)) == sorted(map(tuple, want.astype(int)))


def test_every_channel_is_normalised_by_the_training_images():
    rng = np.random.default_rng(0)
    images = (
        (rng.normal([10, 100, 200], [5, 20, 10], (50, 4, 4, 3)).clip(0, 255)).astype(np.uint8).transpose(0, 3, 1, 2)
    )
    images = np.concatenate([images, np.full((50, 1, 4, 4), 7, np.uint8)], axis=1)  # a constant channel
    train, test = normalised(images[:40], np.arange(40), images[40:], np.arange(10))
    plain = images[:40].astype(float)
    mean, std = plain.mean((0, 2, 3), keepdims=True), plain.std((0, 2, 3), keepdims=True)
    std[std == 0] = 1
    np.testing.assert_allclose(train.tensors[0].numpy(), (images[:40] - mean) / std, atol=1e-5)
    np.testing.assert_allclose(test.tensors[0].numpy(), (images[40:] - mean) / std, atol=1e-5)


# --- MNIST and FashionMNIST ---

FILES = {
    "train-images-idx3-ubyte": (30, 28, 28), "train-labels-idx1-ubyte": (30,),
    "t10k-images-idx3-ubyte": (10, 28, 28), "t10k-labels-idx1-ubyte": (10,),
}  # fmt: skip


def write_idx(folder):
    """Write a tiny data set in MNIST's format."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    arrays = {}
    for name, shape in FILES.items():
        arrays[name] = rng.integers(0, 256 if len(shape) == 3 else 10, shape).astype(np.uint8)
        head = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}i", *shape)
        (folder / name).write_bytes(head + arrays[name].tobytes())
    return arrays


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist_files_are_read_from_root_and_from_the_environment(name, folder, tmp_path, monkeypatch):
    arrays = write_idx(tmp_path / folder / "raw")
    train, test = load(name, tmp_path)
    assert train.tensors[0].shape == (30, 1, 28, 28)
    assert test.tensors[1].tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    raw = arrays["t10k-images-idx3-ubyte"][:, None].astype(float)
    base = arrays["train-images-idx3-ubyte"].astype(float)
    np.testing.assert_allclose(test.tensors[0].numpy(), (raw - base.mean()) / base.std(), atol=1e-5)
    monkeypatch.setenv("PSL_DATA", str(tmp_path))
    assert torch.equal(load(name)[0].tensors[0], train.tensors[0])


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named_with_the_command_that_fetches_it(file, tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / file).unlink()
    with pytest.raises(DataError, match=rf"{file}: expected a file, got none.*python -m psl\.data fetch mnist --root"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(("keep", "fault"), [(0, "an empty file"), (3, "another format"), (-1, r"\d+ bytes instead")])
def test_a_truncated_file_is_named(file, keep, fault, tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=rf"{file}: expected a whole idx file, got {fault}.*fetch mnist"):
        load("mnist", tmp_path)


def test_labels_that_do_not_fit_the_images_are_named(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(bytes([0, 0, 8, 1]) + struct.pack(">i", 9) + bytes(9))
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte: expected 10 labels, one per image, got 9"):
        load("mnist", tmp_path)


# --- CIFAR10 ---


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A tiny data set in CIFAR10's format, its checksums known to torchvision."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((folder / file).read_bytes()).hexdigest()]

    def batch():
        return {"data": rng.integers(0, 256, (4, 3072)).astype(np.uint8), "labels": rng.integers(0, 10, 4).tolist()}

    monkeypatch.setattr(datasets.CIFAR10, "train_list", [write(f"data_batch_{i}", batch()) for i in range(1, 6)])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [write("test_batch", batch())])
    name, md5 = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return tmp_path


def test_cifar10_is_read(cifar):
    train, test = load("cifar10", cifar)
    assert train.tensors[0].shape == (20, 3, 32, 32)
    assert test.tensors[0].shape == (4, 3, 32, 32)
    assert train.tensors[0].mean(dim=(0, 2, 3)).abs().max() < 1e-5


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_missing_or_corrupt_file_of_cifar10_is_named(file, cifar):
    path = cifar / "cifar-10-batches-py" / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{file}: expected MD5 .*python -m psl\.data fetch cifar10"):
        load("cifar10", cifar)
    path.unlink()
    with pytest.raises(DataError, match=rf"{file}: expected a file, got none"):
        load("cifar10", cifar)


# --- HAM10000 ---


@pytest.fixture
def ham(tmp_path):
    """Sixty images of twenty-one lesions in HAM10000's layout, each of one colour that tells its number."""
    folder = tmp_path / "HAM10000"
    rows = []
    for part in (1, 2):
        (folder / f"HAM10000_images_part_{part}").mkdir(parents=True)
    for number in range(60):
        lesion = number % 21
        name = f"ISIC_{number:07d}"
        dx = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")[lesion % 7]
        rows.append({"lesion_id": f"HAM_{lesion:07d}", "image_id": name, "dx": dx, "age": 50})
        image = Image.new("RGB", (120, 90), (4 * number, 255 - 4 * number, 128))
        image.save(folder / f"HAM10000_images_part_{1 + number % 2}" / f"{name}.jpg", quality=95)
    pd.DataFrame(rows).sample(frac=1, random_state=0).to_csv(folder / "HAM10000_metadata.csv", index=False)
    return folder


def numbers(train, test):
    """Which image each sample is, from its colour, recovered without the mean and scale."""
    red = torch.cat([train.tensors[0], test.tensors[0]])[:, 0].mean((1, 2))
    order = red.argsort().argsort().tolist()  # all colours differ: the rank is the number
    return order[: len(train)], order[len(train) :]


def test_ham10000_is_split_by_lesion(ham):
    train, test = load("ham10000", ham.parent, progress=False)
    assert train.tensors[0].shape[1:] == (3, 64, 64)
    assert len(train) + len(test) == 60
    in_train, in_test = numbers(train, test)
    assert {n % 21 for n in in_train} & {n % 21 for n in in_test} == set()
    for found, part in ((in_train, train), (in_test, test)):
        assert [n % 21 % 7 for n in found] == part.tensors[1].tolist()
    assert sorted(torch.bincount(test.tensors[1]).tolist())[0] > 0, "every class has a test lesion"


def test_ham10000_keeps_the_resized_images_and_sees_when_the_table_changes(ham):
    first = load("ham10000", ham, image_size=16, progress=False)
    (ham / "HAM10000_images_part_1" / "ISIC_0000000.jpg").unlink()
    again = load("ham10000", ham, image_size=16, progress=False)
    assert all(torch.equal(a.tensors[0], b.tensors[0]) for a, b in zip(first, again, strict=True))
    table = pd.read_csv(ham / "HAM10000_metadata.csv").query("image_id != 'ISIC_0000003'")
    table.to_csv(ham / "HAM10000_metadata.csv", index=False)
    with pytest.raises(DataError, match=r"ISIC_0000000\.jpg or .*ISIC_0000000\.jpg: expected an image, got none there"):
        load("ham10000", ham, image_size=16, progress=False)
    (ham / "resized-16.npz").write_bytes(b"broken")
    with pytest.raises(DataError, match="ISIC_0000000"), pytest.warns(UserWarning, match="is made anew"):
        load("ham10000", ham, image_size=16, progress=False)


def test_ham10000_rebuilds_truncated_resized_images(ham):
    first = load("ham10000", ham, image_size=16, progress=False)
    copy = ham / "resized-16.npz"
    copy.write_bytes(copy.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="is made anew"):
        again = load("ham10000", ham, image_size=16, progress=False)
    assert all(torch.equal(a.tensors[0], b.tensors[0]) for a, b in zip(first, again, strict=True))
    load("ham10000", ham, image_size=16, progress=False)  # whole again: no warning


def test_ham10000_names_what_is_wrong(ham):
    table_path = ham / "HAM10000_metadata.csv"
    table = pd.read_csv(table_path)
    broken = ham / "HAM10000_images_part_2" / "ISIC_0000001.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match=r"ISIC_0000001\.jpg: expected a readable JPEG image.*10\.7910/DVN/DBW86T"):
        load("ham10000", ham, progress=False)
    table.assign(dx=["wart", *table["dx"][1:]]).to_csv(table_path, index=False)
    with pytest.raises(DataError, match=r"metadata\.csv: dx: expected one of akiec, .* got 'wart' in row 2"):
        load("ham10000", ham, progress=False)
    table.assign(image_id=[None, *table["image_id"][1:]]).to_csv(table_path, index=False)
    with pytest.raises(DataError, match=r"metadata\.csv: image_id: expected a name in every row, got none in row 2"):
        load("ham10000", ham, progress=False)
    table.drop(columns="lesion_id").to_csv(table_path, index=False)
    with pytest.raises(DataError, match=r"metadata\.csv: expected a column 'lesion_id'"):
        load("ham10000", ham, progress=False)
    table[:0].to_csv(table_path, index=False)
    with pytest.raises(DataError, match="got no rows"):
        load("ham10000", ham, progress=False)
    table_path.write_bytes(b"")
    with pytest.raises(DataError, match="expected a table in CSV format"):
        load("ham10000", ham, progress=False)
    table_path.unlink()
    with pytest.raises(DataError, match=r"HAM10000_metadata\.csv: expected a file, got none there"):
        load("ham10000", ham.parent, progress=False)


# --- roots, names and the command line ---


def test_roots_that_hold_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PSL_DATA", "")
    with pytest.raises(DataError, match="PSL_DATA: expected a folder, got an empty value"):
        load("mnist")
    monkeypatch.setenv("PSL_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"PSL_DATA: expected a data set in .*, got an empty folder.*psl\.data fetch"):
        load("mnist")
    with pytest.raises(DataError, match=r"root: expected a folder at .*nowhere, got none there"):
        load("mnist", tmp_path / "nowhere")
    monkeypatch.delenv("PSL_DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="the default data folder: expected a folder at data, got none"):
        load("cifar10")


def test_unknown_names_and_options():
    with pytest.raises(DataError, match=r"dataset: expected one of 'digits', 'mnist'.* got 'emnist'"):
        load("emnist")
    with pytest.raises(DataError, match="expected no options, got image_size"):
        load("digits", image_size=3)


def test_loading_never_downloads(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a download was started")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    (tmp_path / "other").mkdir()
    for name in NAMES[1:]:
        with pytest.raises(DataError):
            load(name, tmp_path)


def test_fetch_reports_a_failed_download_and_replaces_broken_files(tmp_path, monkeypatch, capsys):
    raw = tmp_path / "MNIST" / "raw"
    write_idx(raw)
    broken = raw / "train-labels-idx1-ubyte"
    content = broken.read_bytes()
    broken.write_bytes(content[:-1])

    def offline(self):
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets.MNIST, "download", offline)
    assert main(["fetch", "mnist", "--root", str(tmp_path)]) == 1
    assert "expected to download into" in capsys.readouterr().err
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: broken.write_bytes(content))
    assert main(["fetch", "mnist", "--root", str(tmp_path)]) == 0
    assert "mnist is complete" in capsys.readouterr().out


def test_fetch_of_sets_that_are_not_downloaded(capsys):
    assert "nothing to fetch" in fetch("digits")
    assert main(["fetch", "ham10000"]) == 1
    assert "https://doi.org/10.7910/DVN/DBW86T" in capsys.readouterr().err


@pytest.mark.slow
def test_command_line_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "psl.data", "fetch", "digits"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "scikit-learn" in done.stdout
