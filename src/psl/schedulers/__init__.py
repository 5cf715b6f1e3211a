"""Schedulers: one module per system, each with `solve` and `latency`. NumPy and SciPy only; knows nothing of torch."""

from psl.schedulers import epsl

__all__ = ["epsl"]
