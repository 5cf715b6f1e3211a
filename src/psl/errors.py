"""Errors and the checks that raise them. Every message says: expected, got, fix."""

import math
from collections.abc import Iterable
from typing import Any, cast

import numpy as np


class PSLError(ValueError):
    """Base of all errors that psl raises on purpose; a `ValueError`, so old `except` clauses work."""


class CutError(PSLError):
    """A model cannot be traced, or there is no cut where one was asked for."""


class ScenarioError(PSLError):
    """A scenario, a profile or an argument of a scheduler is out of range or has the wrong shape."""


class InfeasibleError(PSLError):
    """The scenario is well-formed, but no plan meets its limits."""


class DataError(PSLError):
    """A data set is missing, corrupt, or too small for what was asked."""


class CheckpointError(PSLError):
    """A checkpoint is truncated, or belongs to another run."""


def expected(what: str, want: str, got: object, fix: str, error: type[PSLError] = ScenarioError) -> PSLError:
    """Return (not raise) an error that says: ``what: expected …, got …. Fix: …``."""
    return error(f"{what}: expected {want}, got {got}. Fix: {fix}")


def missing_package(what: str, cause: ModuleNotFoundError, otherwise: str = "") -> ModuleNotFoundError:
    """Return (not raise) an error for a package that is not installed, in the form of `expected`.

    Args:
        what: needs the package, for example ``"psl.train"``.
        cause: what Python raised.
        otherwise: another way out, the end of the message.
    """
    package = (cause.name or "").split(".")[0]
    install = _DISTRIBUTIONS.get(package, package)
    fix = f"pip install {install}{otherwise}"
    text = f"{what}: expected the package {package!r}, got an environment without it. Fix: {fix}"
    return ModuleNotFoundError(text, name=cause.name, path=cause.path)


def first_line(cause: BaseException, length: int = 160) -> str:
    """Return the first line of what an error says, or the name of its class if it says nothing, for a message."""
    return (str(cause).splitlines() or [type(cause).__name__])[0][:length]


# What pip calls a package, where that is not its name; torchvision goes with torch.
_DISTRIBUTIONS = {"torch": "torch torchvision", "sionna": "sionna-no-rt", "sklearn": "scikit-learn", "PIL": "pillow"}


def check_array(
    name: str,
    value: object,
    *,
    shape: tuple[int | None, ...] | None = None,
    minimum: float | None = None,
    strict: bool = False,
    allow_inf: bool = False,
    fix: str = "pass a finite array in SI units",
) -> np.ndarray:
    """Return `value` as a read-only float64 array after checking it.

    Args:
        name: name for the message, for example ``"WirelessCell.bandwidth"``.
        value: anything that `numpy.asarray` takes; a scalar is repeated to fill a fully known `shape`.
        shape: expected shape; `None` entries match any length.
        minimum: least value allowed.
        strict: values must be above `minimum`.
        allow_inf: accept infinities, such as a link of unlimited rate. NaN is never accepted.
        fix: what the caller should do; the end of the message.

    Raises:
        ScenarioError: if the shape is wrong, a value is text, a boolean, NaN or infinite, or below `minimum`.
    """
    if (no_number := _no_number(value)) is not None:
        raise expected(name, "numbers", repr(no_number)[:80], fix)
    try:
        array = np.array(cast(Any, value), dtype=np.float64)
    except (TypeError, ValueError) as cause:
        raise expected(name, "numbers", repr(value)[:80], fix) from cause
    if shape is not None:
        sizes = tuple(n for n in shape if n is not None)
        if array.ndim == 0 and len(sizes) == len(shape):
            array = np.full(sizes, float(array))
        matches = array.ndim == len(shape) and all(
            want is None or want == got for want, got in zip(shape, array.shape, strict=False)
        )
        if not matches:
            want = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
            raise expected(name, f"shape {want}", f"shape {array.shape}", fix)
    bad = np.isnan(array) if allow_inf else ~np.isfinite(array)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(np.atleast_1d(bad))[0])
        got = f"{array[where] if array.ndim else float(array)} at index {where}"
        raise expected(name, "finite numbers", got, fix)
    if minimum is not None:
        low = array <= minimum if strict else array < minimum
        if low.any():
            where = tuple(int(i) for i in np.argwhere(np.atleast_1d(low))[0])
            got = f"{array[where] if array.ndim else float(array):g} at index {where}"
            raise expected(name, f"values {'above' if strict else 'of at least'} {minimum:g}", got, fix)
    array.setflags(write=False)
    return array


def _no_number(value: Any) -> Any:
    """Return the first text or boolean in a value, which NumPy would take for a number; None if there is none."""
    if isinstance(value, str | bytes | bool | np.bool_):
        return value
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in ("b", "S", "U") and np.size(value):
        return np.ravel(value)[0]
    if kind == "O":  # such as a column of a table
        value = np.ravel(value).tolist()
    entries = value if isinstance(value, list | tuple) else ()
    return next((found for entry in entries if (found := _no_number(entry)) is not None), None)


def check_number(
    name: str,
    value: object,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    strict: bool = False,
    fix: str = "pass a finite number in SI units",
) -> float:
    """Return `value` as a float after the checks of `check_array`, and an optional `maximum`."""
    number = float(check_array(name, value, shape=(), minimum=minimum, strict=strict, fix=fix))
    if maximum is not None and number > maximum:
        raise expected(name, f"a value of at most {maximum:g}", f"{number:g}", fix)
    return number


def check_count(name: str, value: object, *, minimum: int = 1, fix: str = "pass a whole number") -> int:
    """Return `value` as an int.

    Raises:
        ScenarioError: if it is a fraction, a boolean, no number, or below `minimum`.
    """
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if isinstance(value, float | np.floating):
        is_whole = math.isfinite(value) and value == int(value)
    if not is_whole:
        raise expected(name, "a whole number", repr(value)[:80], fix)
    count = int(cast(float, value))
    if count < minimum:
        raise expected(name, f"at least {minimum}", str(count), fix)
    return count


def check_choice(
    name: str,
    value: object,
    choices: Iterable[str],
    fix: str = "use one of them, spelled as shown",
    error: type[PSLError] = ScenarioError,
) -> str:
    """Return `value` if it is one of `choices`.

    Raises:
        ScenarioError: if it is none of them; or another `error`.
    """
    choices = list(choices)
    if value not in choices:
        raise expected(name, "one of " + ", ".join(map(repr, choices)), repr(value), fix, error)
    return cast(str, value)
