"""Functions and data sets by name, so that every process of a run builds its own."""

import importlib
import inspect
from collections.abc import Callable

from psl.data import NAMES
from psl.errors import DataError, expected
from psl.training.sampling import open_dataset


def find(what: str, name: str, such_as: str) -> Callable:
    """Return a function by its name "module:function".

    Raises:
        ScenarioError: there is none.
    """
    if not isinstance(name, str):
        got = f"an object, {getattr(name, '__name__', type(name).__name__)}"
        fix = f"put it into a file that every process can import, and pass its name, such as {such_as}"
        raise expected(what, "'module:function'", got, fix)
    place, _, attribute = name.partition(":")
    if place == "__main__":
        fix = f"put it into a file, such as mine.py, and pass 'mine:{attribute}'"
        raise expected(what, "a function of a file that every process can import", repr(name)[:80], fix)
    try:
        found = getattr(importlib.import_module(place), attribute)
    except (ImportError, AttributeError, ValueError) as cause:
        fix = f"name a function that every process can import, such as {such_as}"
        raise expected(what, "'module:function'", f"{name[:80]!r} ({str(cause)[:160]})", fix) from cause
    if not callable(found) or (what == "dataset" and inspect.isclass(found)):
        fix = f"name a function, such as {such_as}"
        raise expected(what, "a function", f"{name!r}, {type(found).__name__}", fix)
    return found


def find_dataset(dataset: str) -> str | Callable:
    """Return the name of a data set of `psl.data`, or the function "module:function" that opens another.

    Raises:
        DataError: it is neither.
        ScenarioError: there is no such function.
    """
    if isinstance(dataset, str) and ":" in dataset:
        return find("dataset", dataset, "'digits'")
    want = f"one of {', '.join(NAMES)}, or 'module:function'"
    if not isinstance(dataset, str):
        fix = "write a function that returns (train, test) into a file that every process can import, and name it"
        raise expected("dataset", want, f"an object, {type(dataset).__name__}", fix, DataError)
    if dataset not in NAMES:
        raise expected("dataset", want, repr(dataset)[:80], "name one that every process finds", DataError)
    return dataset


def open_named(dataset: str):
    """Return (train, test) of a data set by its name, see `find_dataset`."""
    found = find_dataset(dataset)
    return open_dataset(found() if callable(found) else found)
