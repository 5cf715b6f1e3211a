"""Whole models as messages: one flat tensor per number type instead of one message per layer."""

from collections.abc import Iterable, Sequence

import torch

from psl.distributed.wire.messages import Kind
from psl.distributed.wire.transport import Channel


def pack(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return one flat tensor per dtype, in the order in which dtypes first occur."""
    groups: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor.detach().reshape(-1))
    return [torch.cat(parts) for parts in groups.values()]


def send_model(channel: Channel, kind: Kind, step: int, tensors: Sequence[torch.Tensor]) -> None:
    """Send a model's tensors."""
    for flat in pack(tensors):
        channel.send(kind, step, flat)


def receive_model(channel: Channel, kind: Kind, step: int, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Receive what `send_model` sent.

    Args:
        channel, kind, step: as there.
        like: tensors of the same shapes, dtypes and order.
    """
    sizes: dict[torch.dtype, int] = {}
    for tensor in like:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    flats = {dtype: channel.recv(kind, step, (size,), dtype) for dtype, size in sizes.items()}
    taken = dict.fromkeys(flats, 0)
    tensors = []
    for tensor in like:
        start = taken[tensor.dtype]
        taken[tensor.dtype] += tensor.numel()
        part = flats[tensor.dtype][start : start + tensor.numel()]
        tensors.append(part.view(tensor.shape).to(tensor.device))
    return tensors
