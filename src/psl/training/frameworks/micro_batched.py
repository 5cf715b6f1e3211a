"""The step of clients and server in micro-batches: the gradient is that of the whole mini-batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from psl.errors import expected
from psl.training.communication import BitCounter
from psl.training.devices import Device, Devices, Upload
from psl.training.frameworks.split_step import ServerGradients, only_needed
from psl.training.messages import part_sizes

#: From numbers of clients, their smashed data and labels of a micro-batch, its share m_k / b of the mini-batch, and its
#: number in the round, to gradients of the share times the clients' mean losses.
Serve = Callable[[Sequence[int], list[Any], list[torch.Tensor], float, int], ServerGradients]


def micro_batched_step(
    devices: Devices,
    clients: Sequence[int],
    step: int,
    serve: Serve,
    bits: BitCounter,
    *,
    batch_size: int,
    size: int,
    slots: bool = False,
    bits_of: Callable[[torch.Tensor], int] | None = None,
) -> torch.Tensor | float:
    """Train devices on one mini-batch per device, in micro-batches, and return Σ_i λ_i ℓ̄_i; the server steps outside.

    Micro-batch k of m_k samples counts m_k / b, so that the gradients of all add up to the mini-batch's; the last may
    be smaller. A device goes forward through all its micro-batches, then back through each, and steps once. The server
    takes one micro-batch of one device at a time or, in slots, micro-batch k of all devices at once. The
    result does not depend on the order, but for float summation and BatchNorm: that normalises what the server takes at
    a time, and every micro-batch of a device, by its own statistics, and updates its running statistics each time, as
    in `psl.training.frameworks.pipeline`. A device that is lost on the way leaves what the server has taken of it.

    Args:
        devices: the clients.
        clients: numbers of those that train.
        step: local step of the round.
        serve: runs the server forward and backward; its parameters' gradients add up.
        bits: counts what crosses.
        batch_size: b.
        size: samples at a time.
        slots: whether the server takes micro-batch k of all devices at once.
        bits_of: the bits of a tensor of smashed data; default the size of its dtype.

    Returns:
        The loss, NaN if nothing arrived.

    Raises:
        CutError: the tensor at the cut does not have one row per sample.

    Source: ours [B], for the round of EPSL (arXiv 2303.15991) [R].
    """
    server = _Server(serve, bits, bits_of, step, batch_size, size)
    if not slots:
        losses = list(devices.do(clients, server.takes_all_of).values())
        return torch.stack(losses).sum() if losses else float("nan")
    total = torch.zeros(())
    there = list(devices.do(clients, lambda device: device.begin(step, size)))
    for k in range(len(server.shares)):
        arrived = devices.do(there, partial(_part, k))
        if not arrived:
            return float("nan")
        loss, answers = server.takes(k, arrived)
        there = list(devices.do(arrived, partial(_answer, k, answers)))
        total = total + loss
    devices.do(there, lambda device: device.finish())
    return total


def alone_in_micro_batches(
    device: Device, step: int, serve: Serve, bits: BitCounter, *, batch_size: int, size: int
) -> torch.Tensor:
    """Train one device on one mini-batch in micro-batches; arguments and errors as of `micro_batched_step`."""
    return _Server(serve, bits, None, step, batch_size, size).takes_all_of(device)


@dataclass(frozen=True)
class _Server:
    serve: Serve
    bits: BitCounter
    bits_of: Callable[[torch.Tensor], int] | None
    step: int
    batch_size: int
    size: int

    @cached_property
    def shares(self) -> list[float]:
        """m_k / b of each micro-batch."""
        return [samples / self.batch_size for samples in part_sizes(self.batch_size, self.size)]

    def takes(self, k: int, arrived: dict[int, Upload]) -> tuple[torch.Tensor, dict[int, tuple[Any, Any]]]:
        """Serve micro-batch k of some clients; returns the loss and each client's gradients, shared and own."""
        bits = self.bits
        smashed = [bits.up(sent.smashed, self.bits_of) for sent in arrived.values()]
        labels = [bits.up(sent.labels) for sent in arrived.values()]
        found = self.serve(list(arrived), smashed, labels, self.shares[k], self.step * len(self.shares) + k)
        needed = next(iter(arrived.values())).needed
        shared = None if found.shared is None else bits.broadcast(only_needed(found.shared, needed))
        own = zip(arrived, found.own, strict=True)
        return found.loss, {i: (shared, bits.down(only_needed(part, needed))) for i, part in own}

    def takes_all_of(self, device: Device) -> torch.Tensor:
        """Serve all micro-batches of one client; returns its loss times its weight."""
        total = torch.zeros(())
        device.begin(self.step, self.size)
        for k in range(len(self.shares)):
            loss, answers = self.takes(k, {device.number: device.part(k)})
            _answer(k, answers, device)
            total = total + loss
        device.finish()
        return total


def _part(k: int, device: Device) -> Upload:
    return device.part(k)


def _answer(k: int, answers: dict[int, tuple[Any, Any]], device: Device) -> None:
    device.part_backward(k, *answers[device.number])


def weighted(loss: Callable[..., torch.Tensor], share: float) -> Callable[..., torch.Tensor]:
    """Return `share` times a loss."""
    return lambda outputs, labels: loss(outputs, labels) * share


def check_micro_batch(
    micro_batch: int, batch_size: int, *, framework: str, phi: float, refused: dict[str, bool]
) -> None:
    """Refuse what does not go in micro-batches.

    Args:
        micro_batch, batch_size: m and b.
        framework: "psl", "epsl" or "edgesplit".
        phi: φ, which counts in "epsl" alone.
        refused: what an argument must not be together with micro-batches, and whether it is.

    Raises:
        ScenarioError: m is more than b, φ is strictly between 0 and 1, or one of `refused` holds.
    """
    if micro_batch > batch_size:
        fix = "take a smaller micro_batch"
        raise expected("micro_batch", f"at most the mini-batch of {batch_size}", micro_batch, fix)
    if framework == "epsl" and 0 < phi < 1:
        fix = "take phi=0 or phi=1, or leave micro_batch out"
        raise expected("phi", "0 or 1 with micro_batch, as in a plan", f"{phi:g}", fix)
    for what, holds in refused.items():
        if holds:
            got = f"{what}, which needs the whole mini-batch at once"
            raise expected("micro_batch", "None", got, "leave one of the two out")
