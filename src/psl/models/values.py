"""What goes into a model and comes out of it: a tensor, or several in a tuple, a dict or an object."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from psl.models.examples import Inputs


def call(module: nn.Module, batch: Inputs) -> Any:
    """Call a module on a tensor, on a tuple (by position) or on a dict (by name)."""
    if isinstance(batch, Mapping):
        return module(**{name: value for name, value in batch.items() if value is not None})
    return module(*batch) if isinstance(batch, tuple | list) else module(batch)


def copied(batch: Inputs) -> Any:
    """Return a copy of a batch that may be overwritten."""
    if isinstance(batch, Mapping):
        return {name: value.clone() for name, value in batch.items() if value is not None}
    return tuple(x.clone() for x in batch) if isinstance(batch, tuple | list) else batch.clone()


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of what a model returns, whatever form it has."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from tensors_in(entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from tensors_in(entry)
    elif hasattr(value, "__dict__"):
        yield from tensors_in(dict(sorted(vars(value).items())))
