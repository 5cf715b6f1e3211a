"""Schedulers: one module per system, each with `solve` and `latency`. NumPy and SciPy only; knows nothing of torch."""

from psl.schedulers import edgesplit, epsl, pipeline

__all__ = ["edgesplit", "epsl", "pipeline"]
