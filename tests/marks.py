"""How tests that are like another one are marked."""

from collections.abc import Callable, Iterable

import pytest


def some(values: Iterable, always: Callable[[object], bool]) -> list:
    """Return parameters of a test, of which those that need not run always are marked `full`."""
    return [value if always(value) else pytest.param(*_tuple(value), marks=pytest.mark.full) for value in values]


def _tuple(value):
    return value if isinstance(value, tuple) else (value,)
