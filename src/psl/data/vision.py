"""MNIST, FashionMNIST and CIFAR10 through torchvision, with their files checked first."""

import struct
from pathlib import Path

import numpy as np
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from psl.data.roots import check_file, find_root
from psl.data.tensors import normalised
from psl.errors import DataError, expected

CLASSES = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def load_vision(name: str, root=None):
    """Return (train, test) of one of `CLASSES`, normalised; nothing is downloaded.

    Raises:
        DataError: a file is missing or corrupt; the message names it and the command that fetches it.
    """
    root = find_root(root)
    check = _check_cifar if name == "cifar10" else _check_idx
    check(name, root)
    train, test = (CLASSES[name](root, train=part, download=False) for part in (True, False))
    return normalised(_images(train), np.asarray(train.targets), _images(test), np.asarray(test.targets))


def fetch_vision(name: str, root) -> None:
    """Download the data set into `root`, or what is missing or corrupt of it."""
    root = find_root(root, must_exist=False)
    if name != "cifar10":  # torchvision looks only whether these exist; a broken one would stay
        for path in _idx_files(name, root):
            if path.is_file() and _idx_fault(path):
                path.unlink()
    try:
        CLASSES[name](root, download=True)
    except (OSError, RuntimeError) as cause:
        fix = "check the network and the folder, then run the command again"
        raise expected(f"fetch {name}", f"to download into {root}", str(cause), fix, DataError) from cause
    load_vision(name, root)


def _images(dataset):
    """(D, channels, height, width) uint8."""
    images = np.asarray(dataset.data)
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


def _fix(name, root):
    return f"python -m psl.data fetch {name} --root {root}"


def _idx_files(name, root) -> list[Path]:
    return [root / CLASSES[name].__name__ / "raw" / file for file in _IDX]


def _check_idx(name, root):
    counts = []
    for path in _idx_files(name, root):
        check_file(path, _fix(name, root))
        if fault := _idx_fault(path):
            raise expected(str(path), "a whole idx file", fault, _fix(name, root), DataError)
        counts.append(struct.unpack(">i", path.read_bytes()[4:8])[0])
    for images, labels, path in ((counts[0], counts[1], _IDX[1]), (counts[2], counts[3], _IDX[3])):
        if images != labels:
            raise expected(path, f"{images} labels, one per image", labels, _fix(name, root), DataError)


def _idx_fault(path: Path) -> str | None:
    """What is wrong with an idx file: bytes 0, 0, 8 (uint8), dimensions, big-endian sizes, then the data."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
    n_dims = head[3] if len(head) > 3 else 0
    if head[:3] != b"\x00\x00\x08" or n_dims not in (1, 3) or len(head) < 4 + 4 * n_dims:
        return "another format" if size else "an empty file"
    want = 4 + 4 * n_dims + int(np.prod(struct.unpack(f">{n_dims}i", head[4 : 4 + 4 * n_dims]), dtype=np.int64))
    return None if size == want else f"{size} bytes instead of {want}"


def _check_cifar(name, root):
    cls = CLASSES[name]
    meta = (cls.meta["filename"], cls.meta["md5"])
    for file, md5 in [*cls.train_list, *cls.test_list, meta]:
        path = check_file(root / cls.base_folder / file, _fix(name, root))
        if not check_integrity(path, md5):  # before torchvision unpickles it
            raise expected(str(path), f"MD5 {md5}", "another content", _fix(name, root), DataError)
