"""MNIST, FashionMNIST and CIFAR10, read by torchvision after their files are checked."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import TensorDataset
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from psl.data.roots import check_file, find_root
from psl.data.tensors import normalised
from psl.errors import DataError, expected

CLASSES: dict[str, Any] = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def load_vision(name: str, root: str | os.PathLike[str] | None = None) -> tuple[TensorDataset, TensorDataset]:
    """Return (train, test) of one of `CLASSES`, normalised; nothing is downloaded.

    Args:
        name: a key of `CLASSES`.
        root: folder of the data sets, as `psl.data.load` takes it.

    Raises:
        DataError: a file is missing or corrupt; the message names it and the command that fetches it.
    """
    folder = find_root(root)
    check = _check_cifar if name == "cifar10" else _check_idx
    check(name, folder)
    train, test = (CLASSES[name](folder, train=part, download=False) for part in (True, False))
    return normalised(_images(train), np.asarray(train.targets), _images(test), np.asarray(test.targets))


def fetch_vision(name: str, root: str | os.PathLike[str] | None) -> None:
    """Download the files of a data set that are missing or corrupt.

    Args:
        name: a key of `CLASSES`.
        root: folder of the data sets, as `psl.data.load` takes it; made if it is not there.

    Raises:
        DataError: the download failed.
    """
    folder = find_root(root, must_exist=False)
    if name != "cifar10":  # torchvision only asks whether these files exist, and would keep a corrupt one
        for path in _idx_files(name, folder):
            if path.is_file() and _idx_fault(path):
                path.unlink()
    try:
        CLASSES[name](folder, download=True)
    except (OSError, RuntimeError) as cause:
        fix = "check the network and the folder, then run the command again"
        raise expected(f"fetch {name}", f"to download into {folder}", str(cause), fix, DataError) from cause
    load_vision(name, folder)


def _images(dataset: Any) -> np.ndarray:
    """Return (D, channels, height, width) uint8."""
    images = np.asarray(dataset.data)
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


def _fix(name: str, root: Path) -> str:
    return f"python -m psl.data fetch {name} --root {root}"


def _idx_files(name: str, root: Path) -> list[Path]:
    return [root / CLASSES[name].__name__ / "raw" / file for file in _IDX]


def _check_idx(name: str, root: Path) -> None:
    counts: list[int] = []
    for path in _idx_files(name, root):
        check_file(path, _fix(name, root))
        if fault := _idx_fault(path):
            raise expected(str(path), "a whole idx file", fault, _fix(name, root), DataError)
        with path.open("rb") as file:
            counts.append(struct.unpack(">4xi", file.read(8))[0])
    for images, labels, path in ((counts[0], counts[1], _IDX[1]), (counts[2], counts[3], _IDX[3])):
        if images != labels:
            raise expected(path, f"{images} labels, one per image", labels, _fix(name, root), DataError)


def _idx_fault(path: Path) -> str | None:
    """Return what is wrong with an idx file, or None.

    Its first bytes are 0, 0, 8 (for uint8) and the number of dimensions; big-endian sizes and the data follow.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
    n_dims = head[3] if len(head) > 3 else 0
    if head[:3] != b"\x00\x00\x08" or n_dims not in (1, 3) or len(head) < 4 + 4 * n_dims:
        return "another format" if size else "an empty file"
    want = 4 + 4 * n_dims + int(np.prod(struct.unpack(f">{n_dims}i", head[4 : 4 + 4 * n_dims]), dtype=np.int64))
    return None if size == want else f"{size} bytes instead of {want}"


def _check_cifar(name: str, root: Path) -> None:
    cls = CLASSES[name]
    meta = (cls.meta["filename"], cls.meta["md5"])
    for file, md5 in [*cls.train_list, *cls.test_list, meta]:
        path = check_file(root / cls.base_folder / file, _fix(name, root))
        if not check_integrity(path, md5):  # before torchvision unpickles it
            raise expected(str(path), f"MD5 {md5}", "another content", _fix(name, root), DataError)
