"""What goes into a model and comes out of it: a tensor, or several in a tuple, a dict or an object."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from psl.models.examples import Example, Inputs


def fixed_arguments(model: nn.Module) -> dict[str, Any]:
    """Return the arguments that a model is always called with: no key-value cache, which is for generating text."""
    # A forward on the model itself, where torch.export puts one, may hold the model: it is not remembered.
    is_own = "forward" in vars(model)
    named, takes_any = _cache_argument.__wrapped__(model.forward) if is_own else _cache_argument(type(model).forward)
    hidden = takes_any and getattr(getattr(model, "config", None), "use_cache", False)  # as peft's models
    return {"use_cache": False} if named or hidden else {}


@functools.lru_cache(maxsize=256)  # a signature takes 0.1 ms, and every client calls its part in every round
def _cache_argument(forward: Callable[..., Any]) -> tuple[bool, bool]:
    """Return whether a forward takes ``use_cache``, and whether it takes any argument by name."""
    parameters = inspect.signature(forward).parameters
    return "use_cache" in parameters, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def call(module: nn.Module, batch: Inputs) -> Any:
    """Call a module on a tensor, on a tuple (by position) or on a dict (by name), with its `fixed_arguments`."""
    fixed = fixed_arguments(module)
    if isinstance(batch, Mapping):
        return module(**(fixed | {name: value for name, value in batch.items() if value is not None}))
    return module(*batch, **fixed) if isinstance(batch, tuple | list) else module(batch, **fixed)


def call_on_example(module: nn.Module, example: Example) -> Any:
    """Call a module on an example's inputs, with its `fixed_arguments`."""
    n = example.n_positional
    named = zip(example.names[n:], example.tensors[n:], strict=True)
    return module(*example.tensors[:n], **dict(named), **fixed_arguments(module))


def _each(function: Callable[[torch.Tensor], torch.Tensor], batch: Inputs) -> Any:
    """Return a batch with a function applied to every tensor."""
    if isinstance(batch, Mapping):
        return {name: function(value) for name, value in batch.items() if value is not None}
    return tuple(map(function, batch)) if isinstance(batch, tuple | list) else function(batch)


def copied(batch: Inputs) -> Any:
    """Return a copy of a batch that may be overwritten."""
    return _each(torch.Tensor.clone, batch)


def at_least_two_rows(batch: Inputs) -> Inputs:
    """Return a batch, a single row twice: BatchNorm cannot normalise one in train mode."""

    def twice(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor]) if tensor.ndim and len(tensor) == 1 else tensor

    return _each(twice, batch)


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
