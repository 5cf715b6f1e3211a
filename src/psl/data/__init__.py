"""Data sets as pairs (train, test) of normalised tensors; nothing is downloaded without being asked."""

from pathlib import Path

from psl.data.digits import load_handwritten_digits
from psl.data.ham10000 import INSTRUCTION, load_ham10000
from psl.data.vision import CLASSES, fetch_vision, load_vision
from psl.errors import DataError, check_choice, expected

NAMES = ("digits", *CLASSES, "ham10000")

__all__ = ["NAMES", "fetch", "load"]


def load(name: str, root: str | Path | None = None, **options):
    """Load a data set as (train, test): `TensorDataset` pairs of images (D, channels, height, width) and labels (D,).

    Every channel has mean 0 and standard deviation 1 over the training images.

    Args:
        name: ``"digits"`` (needs no file), ``"mnist"``, ``"fashion-mnist"``, ``"cifar10"`` or ``"ham10000"``.
        root: folder of the data sets; default the environment variable PSL_DATA, else ``data``.
        options: for ham10000 ``image_size`` (default 64) and ``progress``.

    Raises:
        DataError: unknown name; a file is missing or corrupt, and the message names it and what fetches it.
    """
    _check_name(name)
    if options and name != "ham10000":
        raise expected(f"load({name!r})", "no options", ", ".join(options), "only ham10000 takes options", DataError)
    if name == "digits":
        return load_handwritten_digits()
    if name == "ham10000":
        return load_ham10000(root, **options)
    return load_vision(name, root)


def fetch(name: str, root: str | Path | None = None) -> str:
    """Download a data set into a folder and return what was done; ham10000 is for you to download.

    Raises:
        DataError: unknown name, or the download failed.
    """
    _check_name(name)
    if name == "digits":
        return "digits comes with scikit-learn: nothing to fetch"
    if name == "ham10000":
        raise expected("fetch ham10000", "a download by hand (its licence)", "fetch", INSTRUCTION, DataError)
    fetch_vision(name, root)
    return f"{name} is complete"


def _check_name(name):
    try:
        check_choice("dataset", name, NAMES)
    except ValueError as cause:
        raise DataError(str(cause)) from None
