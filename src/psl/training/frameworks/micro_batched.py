"""The step of clients and server in micro-batches: the gradient is that of the whole mini-batch."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from psl.errors import expected
from psl.training.communication import BitCounter
from psl.training.defences import Defence
from psl.training.frameworks.base import Batch
from psl.training.frameworks.split_step import ServerGradients, only_needed, stacked
from psl.training.messages import check_rows, rows_of, split_rows
from psl.training.stage import Stage

#: From positions of devices, their smashed data and labels of one micro-batch, and its share m_k / b of the
#: mini-batch, to gradients of `share` times the devices' mean losses.
Serve = Callable[[Sequence[int], list[Any], list[torch.Tensor], float], ServerGradients]


def micro_batched_step(
    devices: Sequence[Stage],
    batches: Iterable[Batch],
    serve: Serve,
    bits: BitCounter,
    *,
    size: int,
    slots: bool = False,
    before_server: Callable[[], None] = lambda: None,
    defence: Defence | None = None,
) -> torch.Tensor:
    """Train devices on one mini-batch per device, in micro-batches, and return Σ_i λ_i ℓ̄_i; the server steps outside.

    Micro-batch k of m_k samples counts m_k / b, so that the gradients of all add up to the mini-batch's; the last may
    be smaller. A device goes forward through all its micro-batches, then back through each, and steps once. The server
    takes one micro-batch of one device at a time or, in slots, micro-batch k of all devices at once. The
    result does not depend on the order, but for float summation and BatchNorm: that normalises what the server takes at
    a time, and every micro-batch of a device, by its own statistics, and updates its running statistics each time, as
    in `psl.training.frameworks.pipeline`.

    Args:
        devices: the device-side parts.
        batches: inputs and labels for each, all of b samples.
        serve: runs the server forward and backward; its parameters' gradients add up.
        bits: counts what crosses.
        size: samples at a time.
        slots: whether the server takes micro-batch k of all devices at once.
        before_server: called when the devices are through their forward passes.
        defence: what the devices do to their smashed data.

    Raises:
        CutError: the tensor at the cut does not have one row per sample.

    Source: ours [B], for the round of EPSL (arXiv 2303.15991) [R].
    """
    defence, arrived, shares = defence or Defence(), [], []
    for device, (inputs, targets) in zip(devices, batches, strict=True):
        device.zero_grad()
        labels = targets.split(size)
        shares = [len(part) / len(targets) for part in labels]
        sent = []
        for k, (part, marks) in enumerate(zip(split_rows(inputs, size), labels, strict=True)):
            n_rows = rows_of(part)
            smashed = device.forward(part, k)
            check_rows(smashed, n_rows)
            sent.append((bits.up(defence.sent(smashed), defence.bits_of), bits.up(marks)))
        arrived.append(sent)
    before_server()
    total = torch.zeros(())
    for k, share in enumerate(shares):
        for which in [range(len(devices))] if slots else [[i] for i in range(len(devices))]:
            found = serve(which, [arrived[i][k][0] for i in which], [arrived[i][k][1] for i in which], share)
            total = total + found.loss
            needed = devices[which[0]].needs_gradient(k)
            shared = None if found.shared is None else bits.broadcast(only_needed(found.shared, needed))
            for i, own in zip(which, found.own, strict=True):
                received = bits.down(only_needed(own, needed))
                devices[i].backward(received if shared is None else stacked(shared, received), k)
    for device in devices:
        device.step()
    return total


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
