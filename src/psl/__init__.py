"""Parallel split learning you can read, run and trust.

Cut a model, profile it, plan a round over a network, simulate it, train it. The three schedulers are modules with the
same functions: ``from psl.schedulers import edgesplit, epsl, pipeline``.

Everything is imported when it is first used. `__init__.pyi` lists the public names. Planning and simulation need no
torch.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

try:
    __version__ = version("parallel-split-learning")
except PackageNotFoundError:  # the source is on the path, but not installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; say what is missing if a package is not installed."""
    try:
        return _load(name)
    except ModuleNotFoundError as cause:
        if (cause.name or "psl").split(".")[0] == "psl":
            raise
        from psl.errors import missing_package

        raise missing_package(f"psl.{name}", cause) from cause
