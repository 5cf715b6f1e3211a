"""Data sets as pairs (train, test) of normalised tensors. `load` never downloads; `fetch` does."""

import os
from typing import Any

from torch.utils.data import TensorDataset

from psl.data.digits import load_handwritten_digits
from psl.data.ham10000 import INSTRUCTION, load_ham10000
from psl.data.vision import CLASSES, fetch_vision, load_vision
from psl.errors import DataError, check_choice, expected

NAMES = ("digits", *CLASSES, "ham10000")

__all__ = ["NAMES", "fetch", "load"]


def load(name: str, root: str | os.PathLike[str] | None = None, **options: Any) -> tuple[TensorDataset, TensorDataset]:
    """Load a data set as (train, test).

    Args:
        name: ``"digits"`` (needs no file), ``"mnist"``, ``"fashion-mnist"``, ``"cifar10"`` or ``"ham10000"``.
        root: folder of the data sets; default the environment variable PSL_DATA, else ``data``.
        options: for ham10000 ``image_size`` (default 64 pixels) and ``progress`` (default True).

    Returns:
        Two `TensorDataset`, each with images (D, channels, height, width) and labels (D,). Every channel has mean 0
        and standard deviation 1 over the training images.

    Raises:
        DataError: the name is unknown, or a file is missing or corrupt; the message names the file and the command
            that fetches it.
    """
    check_choice("dataset", name, NAMES, error=DataError)
    if options and name != "ham10000":
        raise expected(f"load({name!r})", "no options", ", ".join(options), "only ham10000 takes options", DataError)
    if name == "digits":
        return load_handwritten_digits()
    if name == "ham10000":
        return load_ham10000(root, **options)
    return load_vision(name, root)


def fetch(name: str, root: str | os.PathLike[str] | None = None) -> str:
    """Download a data set into a folder and return what was done.

    Args:
        name: as in `load`; ham10000 has to be downloaded by hand, and the error says from where.
        root: as in `load`; made if it is not there.

    Raises:
        DataError: the name is unknown, or the download failed.
    """
    check_choice("dataset", name, NAMES, error=DataError)
    if name == "digits":
        return "digits comes with scikit-learn: nothing to fetch"
    if name == "ham10000":
        raise expected("fetch ham10000", "a download by hand (its licence)", "fetch", INSTRUCTION, DataError)
    fetch_vision(name, root)
    return f"{name} is complete"
