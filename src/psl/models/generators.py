"""The random generators of NumPy and Python, beside torch's."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def numpy_and_python_kept() -> Iterator[tuple[Any, Any]]:
    """Give the global generators of NumPy and Python back as they were; yields their states."""
    states = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield states
    finally:
        np.random.set_state(states[0])  # noqa: NPY002
        random.setstate(states[1])
