"""What client and server send each other: a tensor, or a tuple of tensors and whole numbers (sizes)."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch

from psl.errors import CutError, expected

#: A tensor, or what else crosses with it: further tensors, and sizes that cannot be read off them.
Message = torch.Tensor | tuple[Any, ...]

_PAD = "pad all samples to one length, or cut elsewhere"


def entries(message: Any) -> list[Any]:
    """Return the parts of a message."""
    return list(message) if isinstance(message, tuple | list) else [message]


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return the tensors of a message or of a model's inputs."""
    values = value.values() if isinstance(value, Mapping) else entries(value)
    return [entry for entry in values if isinstance(entry, torch.Tensor)]


def each(function: Callable[..., Any], value: Any, *others: Any) -> Any:
    """Return a message, or a model's inputs or outputs, with a function applied to every tensor; the form stays.

    Args:
        function: takes a tensor, and those at its place in `others`.
        value: a tensor, or tuples, lists and dicts of them; what else is in there stays as it is.
        others: of the same form.
    """
    if isinstance(value, torch.Tensor):
        return function(value, *others)
    if isinstance(value, Mapping):
        made = {name: each(function, entry, *(other[name] for other in others)) for name, entry in value.items()}
        if not isinstance(value, dict):
            return made
        return type(value)(**made) if is_dataclass(value) else type(value)(made)
    if isinstance(value, tuple | list):
        entries_made = [each(function, *entry) for entry in zip(value, *others, strict=True)]
        return type(value)(*entries_made) if hasattr(value, "_fields") else tuple(entries_made)
    return value


def flat(value: Any) -> list[Any]:
    """Return the entries of a message or of a model's outputs, those of nested tuples and dicts included."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [x for entry in value for x in flat(entry)] if isinstance(value, tuple | list) else [value]


def logits_of(outputs: Any) -> Any:
    """Return the ``logits`` of what a model returns, if it has such a key or attribute, else what it returns."""
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"]
    return getattr(outputs, "logits", outputs)


def class_scores(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the `logits_of` outputs with the classes at dimension 1.

    They are moved there from the end if only then there is one prediction per label, as of each token of a text.
    """
    scores = logits_of(outputs)
    per_token = labels.ndim > 1 and scores.shape[:-1] == labels.shape
    return scores.movedim(-1, 1) if per_token and (scores.shape[0], *scores.shape[2:]) != labels.shape else scores


def rows_of(value: Any) -> int:
    """Return the number of samples: the rows of the first tensor."""
    return len(tensors_of(value)[0])


def numbers_of(value: Any) -> int:
    """Return how many numbers the tensors of a batch, rows first, have per sample."""
    return sum(tensor[:1].numel() for tensor in flat(value) if isinstance(tensor, torch.Tensor))


def rows(value: Any, index: Any) -> Any:
    """Return some samples of a message or of a model's inputs."""
    return each(lambda tensor: tensor[index], value)


def part_sizes(n_samples: int, size: int) -> list[int]:
    """Return the samples of consecutive parts of at most `size`: all are full but perhaps the last."""
    return [min(size, n_samples - start) for start in range(0, n_samples, size)]


def split_rows(value: Any, size: int) -> list[Any]:
    """Return consecutive parts of at most `size` samples."""
    starts = range(0, rows_of(value), size)
    return [each(lambda tensor, start=start: tensor[start : start + size], value) for start in starts]


def joined(messages: Sequence[Any]) -> Any:
    """Return the messages of several clients as one: tensors one under the other; sizes must agree.

    Raises:
        CutError: a size differs between clients, for example the length of their sequences.
    """
    if isinstance(messages[0], torch.Tensor):
        return _under_one_another(messages)
    if len(messages) == 1:
        return messages[0]
    counts = [rows_of(message) for message in messages]
    parts: list[Any] = []
    for values in zip(*messages, strict=True):
        if isinstance(values[0], torch.Tensor):
            parts.append(_under_one_another(values))
        elif list(values) == counts and len(set(counts)) > 0 and sum(counts) != counts[0]:
            parts.append(sum(counts))  # the batch size
        elif len(set(values)) == 1:
            parts.append(values[0])
        else:
            raise expected("cut", "equal sizes from all clients", sorted(set(values)), _PAD, CutError)
    return tuple(parts)


def _under_one_another(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
    if len(shapes) > 1:
        raise expected("cut", "samples of equal size from all clients", f"sizes {sorted(shapes)}", _PAD, CutError)
    return torch.cat(list(tensors))


def leaves(message: Any) -> Any:
    """Return a message as it arrives: detached, its floating-point tensors asking for a gradient."""
    return each(lambda t: t.detach().requires_grad_() if t.is_floating_point() else t.detach(), message)


class Gradients:
    """Takes the gradients of the tensors of a message while a backward pass runs.

    A hook sees each as it is; ``leaf.grad`` might hold it in another memory layout.

    Args:
        message: of `leaves`.
    """

    def __init__(self, message: Any):
        self._message = message
        self._found: dict[int, torch.Tensor] = {}
        for k, leaf in enumerate(entries(message)):
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
                leaf.register_hook(functools.partial(_add, self._found, k))

    @property
    def message(self) -> Any:
        """The gradients in the form of the message: None for what has none, zeros where nothing arrived."""
        parts = [
            (self._found[k] if k in self._found else torch.zeros_like(leaf))
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
            else None
            for k, leaf in enumerate(entries(self._message))
        ]
        return tuple(parts) if isinstance(self._message, tuple | list) else parts[0]


def _add(found: dict[int, torch.Tensor], k: int, gradient: torch.Tensor) -> None:
    """Note a gradient; knows no leaf, or else leaves and their hooks would keep each other in memory."""
    found[k] = found[k] + gradient if k in found else gradient


def check_rows(message: Any, n_samples: int) -> None:
    """Refuse what does not have one row per sample.

    Raises:
        CutError: a tensor with another number of rows.
    """
    for tensor in tensors_of(message):
        if not tensor.ndim or len(tensor) != n_samples:
            got = f"shape {tuple(tensor.shape)} for {n_samples} samples"
            raise expected("cut", "a tensor with one row per sample", got, "cut elsewhere", CutError)
