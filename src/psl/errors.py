"""Errors and the checks that raise them. Every message says: expected, got, fix."""

import math

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


def expected(what: str, want: str, got: object, fix: str, error: type[PSLError] = ScenarioError):
    """Return (not raise) an error in the house form: ``what: expected …, got …. Fix: …``."""
    return error(f"{what}: expected {want}, got {got}. Fix: {fix}")


def check_array(
    name: str,
    value,
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
        value: anything `numpy.asarray` takes; a scalar broadcasts to a fully known `shape`.
        shape: expected shape; `None` entries match any length.
        minimum: least value allowed; with `strict`, values must be above it.
        allow_inf: accept infinities (a link of unlimited rate); NaN never.
        fix: what the caller should do; ends the message.

    Raises:
        ScenarioError: if the shape is wrong, a value is NaN or infinite, or below `minimum`.
    """
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as cause:
        raise expected(name, "numbers", repr(value)[:80], fix) from cause
    if shape is not None:
        if array.ndim == 0 and None not in shape:
            array = np.full(shape, float(array))
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


def check_number(
    name: str,
    value,
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


def check_count(name: str, value, *, minimum: int = 1, fix: str = "pass a whole number") -> int:
    """Return `value` as an int; refuse fractions, booleans and values below `minimum`."""
    if isinstance(value, float | np.floating):
        whole = math.isfinite(value) and value == int(value)
    else:
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole:
        raise expected(name, "a whole number", repr(value)[:80], fix)
    if value < minimum:
        raise expected(name, f"at least {minimum}", f"{int(value)}", fix)
    return int(value)


def check_choice(name: str, value, choices, fix: str | None = None) -> str:
    """Return `value` if it is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        fix = fix or "use one of them, spelled as shown"
        raise expected(name, "one of " + ", ".join(map(repr, choices)), repr(value), fix)
    return value
