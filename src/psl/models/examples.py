"""Examples: what a model is called with, as a shape or as tensors, and the form in which a model is exported."""

import inspect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from psl.errors import CutError, expected

Inputs = torch.Tensor | tuple[torch.Tensor, ...] | Mapping[str, torch.Tensor]

_FIX = (
    "pass the shape of one sample, such as (3, 224, 224), or a tensor, a tuple or a dict of tensors with a batch first"
)


@dataclass(frozen=True)
class Example:
    """The inputs of a model by name, with a batch dimension.

    Args:
        names: of the inputs, as in the signature of ``forward``.
        tensors: one per name. The first one is the main input; the batch is its dimension 0.
        n_positional: how many of them are passed by position.
    """

    names: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]
    n_positional: int

    def signature(self) -> tuple[Any, ...]:
        """Return what an export depends on: names, kinds and sizes but for batch and length, layout, device."""
        dynamic = self.dynamic_dimensions()
        return tuple(
            (
                *(name, k < self.n_positional, tensor.dtype, tensor.device.type, layout_of(tensor)),
                *(-1 if d in dims else n for d, n in enumerate(tensor.shape)),
            )
            for k, (name, tensor, dims) in enumerate(zip(self.names, self.tensors, dynamic, strict=True))
        )

    def dynamic_dimensions(self) -> list[tuple[int, ...]]:
        """Return for each input the dimensions whose size may change: the batch and the length of sequences.

        The length is dimension 1 of a main input of (batch, length) whole numbers or (batch, length, features), and
        every dimension of another input that has the same size. The sizes of images are fixed.
        """
        main = self.tensors[0]
        batch = main.shape[0] if main.ndim else None
        is_sequence = (main.ndim == 2 and not main.is_floating_point()) or main.ndim == 3
        length = main.shape[1] if is_sequence and main.shape[1] > 1 else None
        dimensions = []
        for k, tensor in enumerate(self.tensors):
            first = (0,) if tensor.ndim and tensor.shape[0] == batch else ()
            others = range(1, 2 if k == 0 else tensor.ndim)
            dimensions.append(first + tuple(d for d in others if d < tensor.ndim and tensor.shape[d] == length))
        return dimensions

    def of_batch(self, batch_size: int) -> "Example":
        """Return an example with this many samples, repetitions of the given ones."""
        batched = [0 in dims for dims in self.dynamic_dimensions()]
        given = self.tensors[0].shape[0] if self.tensors[0].ndim else 1
        rows = [k % given for k in range(batch_size)]
        tensors = tuple(
            in_layout(tensor.detach()[torch.tensor(rows, device=tensor.device)], layout_of(tensor)) if yes else tensor
            for tensor, yes in zip(self.tensors, batched, strict=True)
        )
        return Example(self.names, tensors, self.n_positional)

    def for_export(self) -> "Example":
        """Return an example whose batch size equals no other size, so that the two cannot be mistaken."""
        sizes = {n for tensor in self.tensors for n in tensor.shape[1:]}
        return self.of_batch(next(n for n in itertools.count(3, 2) if n not in sizes))


def layout_of(tensor: torch.Tensor) -> torch.memory_format:
    """Return channels_last for a tensor of images in that layout alone, else contiguous."""
    images = tensor.ndim == 4 and not tensor.is_contiguous()
    last = images and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def in_layout(tensor: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    """Return a tensor in a layout of `layout_of`."""
    return tensor if layout is torch.contiguous_format else tensor.contiguous(memory_format=layout)


def is_shape(example: object) -> bool:
    """Return whether an example is the shape of one sample and not tensors."""
    return isinstance(example, tuple | list) and all(isinstance(n, int) and not isinstance(n, bool) for n in example)


def read_example(model: nn.Module, example: Any, *, whole_numbers: bool = False) -> Example:
    """Return an example from what a user passes.

    Args:
        model: that it is for.
        example: the shape of one sample; or a tensor, a tuple (passed by position) or a dict (by name) of tensors
            with the batch at dimension 0.
        whole_numbers: make a shape one of token ids; otherwise the numbers are those of the model's parameters.

    Raises:
        CutError: it is neither, or it does not fit the signature of ``forward``.
    """
    if is_shape(example):
        if any(n < 1 for n in example):
            raise expected("example", "a shape of sizes of at least 1", repr(example), _FIX, CutError)
        state = itertools.chain(model.parameters(), model.buffers())
        like = next((t for t in state if t.is_floating_point()), torch.empty(0))
        dtype = torch.int64 if whole_numbers else like.dtype
        example = torch.zeros((2, *example), device=like.device, dtype=dtype)
    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = {}
    if isinstance(example, Mapping):
        named = {str(name): value for name, value in example.items() if value is not None}
        order = {name: k for k, name in enumerate(inspect.signature(model.forward).parameters)}
        named = dict(sorted(named.items(), key=lambda entry: order.get(entry[0], len(order))))  # data sets have others
    else:
        positional = tuple(example) if isinstance(example, tuple | list) else (example,)
    values = (*positional, *named.values())
    if not values or not all(isinstance(value, torch.Tensor) for value in values):
        kinds = sorted({type(value).__name__ for value in values if not isinstance(value, torch.Tensor)})
        got = f"{type(example).__name__} of {', '.join(kinds)}" if kinds else f"an empty {type(example).__name__}"
        raise expected("example", "a shape or tensors", got, _FIX, CutError)
    if not values[0].ndim or not values[0].shape[0]:
        raise expected("example", "tensors with a batch dimension", f"shape {tuple(values[0].shape)}", _FIX, CutError)
    names = argument_names(model, len(positional), tuple(named))
    return Example(names, values, len(positional))


def argument_names(model: nn.Module, n_positional: int, named: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of arguments passed by position, then those passed by name.

    Raises:
        CutError: ``forward`` does not take them.
    """
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*range(n_positional), **dict.fromkeys(named))
    except TypeError as cause:
        inputs = f"{n_positional} by position" + (f" and {', '.join(named)} by name" if named else "")
        want = f"the inputs of {type(model).__name__}.forward{signature}"
        fix = "pass a tensor, a tuple of tensors (by position) or a dict (by name) that forward takes"
        raise expected("example", want, f"{inputs}: {cause}", fix, CutError) from cause
    given: list[str] = []
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            given += [f"{name}_{k}" for k in range(len(value))]
        else:
            given.append(name)
    return (*given[:n_positional], *named)
