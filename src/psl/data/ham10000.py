"""HAM10000: 10,015 dermatoscopic images of pigmented skin lesions, seven classes."""

import hashlib
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError
from torch.utils.data import TensorDataset
from tqdm.auto import tqdm

from psl.data.roots import check_file, find_root
from psl.data.tensors import normalised
from psl.errors import DataError, check_count, expected

LABELS = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")  # classes 0..6
INSTRUCTION = "download HAM10000 from https://doi.org/10.7910/DVN/DBW86T and unpack it as data/README.md says"
_COLUMNS = ("lesion_id", "image_id", "dx")
_TEST_SHARE = 0.2
_SPLIT_SEED = 0


def load_ham10000(
    root: str | os.PathLike[str] | None = None, *, image_size: int = 64, progress: bool = True
) -> tuple[TensorDataset, TensorDataset]:
    """Return (train, test), normalised, of shape (3, image_size, image_size); classes as in `LABELS`.

    About a fifth of the lesions of every class are for testing. Several images may show the same lesion: all of them
    are in the same part. The resized images are kept in the folder (``resized-64.npz``), so that the JPEG files are
    read only once.

    Args:
        root: folder that contains ``HAM10000/``, or that folder itself.
        image_size: height and width in pixels.
        progress: show a progress bar while reading.

    Raises:
        DataError: the table or an image is missing or unreadable, a column or an entry is missing, or a label unknown.
    """
    check_count("image_size", image_size)
    folder = find_root(root)
    if not (folder / "HAM10000_metadata.csv").is_file():
        folder = folder / "HAM10000"
    table = _read_table(folder / "HAM10000_metadata.csv")
    images = _read_images(folder, table["image_id"].tolist(), image_size, progress)
    labels = table["dx"].map(LABELS.index).to_numpy()
    test = _test_images(table["lesion_id"].to_numpy(), labels)
    return normalised(images[~test], labels[~test], images[test], labels[test])


def _read_table(path: Path) -> pd.DataFrame:
    check_file(path, INSTRUCTION)
    try:
        table = pd.read_csv(path, dtype=str)
    except (ValueError, UnicodeDecodeError) as cause:
        raise expected(str(path), "a table in CSV format", str(cause), INSTRUCTION, DataError) from cause
    for column in _COLUMNS:
        if column not in table:
            raise expected(str(path), f"a column {column!r}", f"{list(table.columns)}", INSTRUCTION, DataError)
    if table.empty:
        raise expected(str(path), "one row per image", "no rows", INSTRUCTION, DataError)
    for column in ("image_id", "lesion_id"):
        empty = np.flatnonzero(table[column].isna())
        if len(empty):
            raise expected(
                f"{path}: {column}", "a name in every row", f"none in row {empty[0] + 2}", INSTRUCTION, DataError
            )
    known = table["dx"].isin(LABELS).to_numpy()
    if not known.all():
        row = int(np.argmin(known))
        got = f"{table['dx'].iloc[row]!r} in row {row + 2}"
        raise expected(f"{path}: dx", "one of " + ", ".join(LABELS), got, INSTRUCTION, DataError)
    return table.sort_values("image_id").reset_index(drop=True)


def _read_images(folder: Path, names: list[str], size: int, progress: bool) -> np.ndarray:
    """Return (D, 3, size, size) uint8, from the resized copy if it has the same images."""
    key = hashlib.sha256("\n".join(names).encode()).hexdigest()
    copy = folder / f"resized-{size}.npz"
    if copy.is_file():
        try:
            with copy.open("rb") as file, np.load(file) as saved:  # np.load leaves a broken file open
                if str(saved["key"]) == key:
                    return saved["images"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            warnings.warn(f"{copy} is unreadable and is made anew", stacklevel=3)
    images = np.empty((len(names), 3, size, size), dtype=np.uint8)
    for row, name in enumerate(tqdm(names, desc="HAM10000", unit="image", disable=not progress)):
        images[row] = _read_image(folder, name, size)
    _keep(copy, key, images)
    return images


def _read_image(folder: Path, name: str, size: int) -> np.ndarray:
    paths = [folder / f"HAM10000_images_part_{part}" / f"{name}.jpg" for part in (1, 2)]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        raise expected(f"{paths[0]} or {paths[1]}", "an image", "none there", INSTRUCTION, DataError)
    try:
        with Image.open(path) as image:
            image.draft("RGB", (size, size))  # lets the JPEG decoder skip detail that resizing would drop
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    except (UnidentifiedImageError, OSError) as cause:
        raise expected(str(path), "a readable JPEG image", str(cause), INSTRUCTION, DataError) from cause


def _keep(copy: Path, key: str, images: np.ndarray) -> None:
    temporary = copy.with_name(f"{copy.name}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, key=key, images=images)
        temporary.replace(copy)
    except OSError as cause:  # a read-only folder: the copy only saves time
        warnings.warn(f"{copy} could not be written ({cause}): images are read again next time", stacklevel=4)


def _test_images(lesions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return a mask (D,) of the test images: a fixed random fifth of every class's lesions, rounded."""
    rng = np.random.default_rng(_SPLIT_SEED)
    names, first = np.unique(lesions, return_index=True)
    classes = labels[first]  # class of each lesion
    chosen: list[Any] = []
    for label in np.unique(classes):
        members = rng.permutation(names[classes == label])
        chosen.extend(members[: round(_TEST_SHARE * len(members))])
    return np.isin(lesions, chosen)
