"""Find the folder of the data sets; say what is missing."""

import os
from pathlib import Path

from psl.errors import DataError, expected


def find_root(root: str | os.PathLike[str] | None = None, *, must_exist: bool = True) -> Path:
    """Return the data folder: the argument, else the environment variable PSL_DATA, else ``data``.

    Args:
        root: a folder, or None.
        must_exist: refuse a folder that is missing or empty.

    Raises:
        DataError: the folder is missing or empty, or PSL_DATA is set to nothing.
    """
    source = "root" if root is not None else "PSL_DATA" if "PSL_DATA" in os.environ else "the default data folder"
    value = root if root is not None else os.environ.get("PSL_DATA", "data")
    if str(value) == "":
        fix = "set it to a folder, for example PSL_DATA=data, or unset it"
        raise expected(source, "a folder", "an empty value", fix, DataError)
    path = Path(value).expanduser()
    if must_exist and not path.is_dir():
        fix = "create it with python -m psl.data fetch NAME --root FOLDER, or use dataset='digits', which needs no file"
        raise expected(source, f"a folder at {path}", "none there", fix, DataError)
    if must_exist and not any(path.iterdir()):
        fix = f"fill it with python -m psl.data fetch NAME --root {path}, or use dataset='digits', which needs no file"
        raise expected(source, f"a data set in {path}", "an empty folder", fix, DataError)
    return path


def check_file(path: Path, fix: str) -> Path:
    """Return the path of an existing file, or raise a DataError that names it."""
    if not path.is_file():
        raise expected(str(path), "a file", "none there", fix, DataError)
    return path
