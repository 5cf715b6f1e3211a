"""Functions, data sets and devices by name, so that every process of a run makes its own."""

import importlib
import inspect
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

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


def named_cuts(cut: Any) -> tuple[Any, int]:
    """Return a cut, or a tuple of cuts, by numbers or names, and how many tensors may cross at one of them."""
    several = cut if isinstance(cut, list) else [cut]
    names = tuple(getattr(one, "name", one) for one in several)
    tensors = max((getattr(one, "n_tensors", 1) for one in several), default=1)
    return names if isinstance(cut, list) else names[0], tensors


def check_device(device: str | torch.device) -> torch.device:
    """Return a device that torch sees here, the CPU or a GPU with CUDA.

    Raises:
        ScenarioError: it is none.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as cause:
        raise expected("device", "'cpu', 'cuda' or 'cuda:1'", repr(device)[:80], "name a device of torch") from cause
    if found.type not in ("cpu", "cuda"):
        raise expected("device", "'cpu', 'cuda' or 'cuda:1'", repr(str(found)), "use one of them")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        got = f"{str(found)!r} where torch {torch.__version__} sees {torch.cuda.device_count()} GPUs"
        raise expected("device", "a device that torch sees", got, "use 'cpu', or see torch.cuda.is_available()")
    return found


def device_of(device: str, rank: int) -> str:
    """Return the device of a process on its machine: "cuda" means one GPU after the other, anything else itself."""
    found = check_device(device)
    if found.type == "cuda" and found.index is None:
        found = torch.device("cuda", rank % torch.cuda.device_count())
    return str(found)


def machine() -> str:
    """Return what names this machine since it was started: processes with the same name share their clock."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no Linux
        return f"{uuid.getnode():x}"
