"""What clients and server send each other: every tensor that crosses is counted in bits."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from psl.training.messages import each, tensors_of


class BitCounter:
    """Hands tensors from clients to the server and back, detached from autograd, and counts their bits.

    Counted are the tensors that are really exchanged, at the size of their dtype (32 bits per
    float32, 64 per int64 label), without headers or compression:

    * sl, psl, epsl: up the smashed data with its labels, down the gradients at the cut;
    * epsl: the aggregated gradients go down once for all clients (broadcast);
    * sfl in addition, after the local steps: every client-side model up, their average down once;
    * sl in addition, with two clients or more: the client-side model goes through the server to
      the next client, once up and once down per client;
    * fedavg: every model up, the average down once;
    * edgesplit: as sl, except for devices that hold the whole model; after the local steps every
      device's part of the model up, and the average of that part down to each of them (unicast:
      the parts differ);
    * pipeline: across every boundary of two stages the activations up and their gradients down,
      once however many hops relay them; the labels go up once, from the data to the last stage;
    * centralised: nothing, the data is taken to be at the server;
    * U-shaped sl, sfl, psl: up the smashed data of the first cut, down the features of the second; up the gradients at
      the second, down those at the first. Labels stay where they are.

    Smashed data that a defence quantises count with its bits per number.

    A device that missed a round (`Participation`) has sent what it sent before; it gets the new
    model like all others.

    A model's tensors are its trainable parameters and floating-point buffers. The first copy, which every
    client of every framework holds before round 1, is not counted. No gradient is sent where a client has no use
    for it, because nothing before the cut trains. Sizes that cross beside the tensors count as headers.

    Attributes:
        uplink_bits, downlink_bits: sent so far.
    """

    def __init__(self) -> None:
        self.uplink_bits = 0
        self.downlink_bits = 0
        self._lock = threading.Lock()  # a server may serve its clients in threads

    def up(self, message: Any, bits_of: Callable[[torch.Tensor], int] | None = None) -> Any:
        """Send a tensor, or several, from one client to the server; returns what the server receives.

        Args:
            message: what is sent.
            bits_of: the bits of a tensor; default the size of its dtype.
        """
        bits = _bits(message) if bits_of is None else sum(map(bits_of, tensors_of(message)))
        with self._lock:
            self.uplink_bits += bits
        return each(torch.Tensor.detach, message)

    def down(self, message: Any) -> Any:
        """Send a tensor, or several, from the server to one client; returns what the client receives."""
        with self._lock:
            self.downlink_bits += _bits(message)
        return each(torch.Tensor.detach, message)

    def broadcast(self, message: Any) -> Any:
        """Send a tensor, or several, from the server to all clients at once: the bits count once."""
        return self.down(message)


def exchanged(module: nn.Module) -> list[torch.Tensor]:
    """Return the tensors of a model that travel when it is exchanged, each once.

    Trainable parameters and floating-point buffers (BatchNorm's running statistics). Frozen
    parameters, which everybody has, and integer buffers, such as BatchNorm's batch counter, stay
    where they are.
    """
    state = [t for t in module.state_dict(keep_vars=True).values() if isinstance(t, torch.Tensor)]
    moving = [t for t in state if (t.requires_grad if isinstance(t, nn.Parameter) else t.is_floating_point())]
    return list({id(t): t for t in moving}.values())


def _bits(message: Any) -> int:
    return sum(8 * tensor.element_size() * tensor.numel() for tensor in tensors_of(message))
