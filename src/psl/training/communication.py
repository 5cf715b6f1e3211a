"""What clients and server send each other: every tensor that crosses is counted in bits."""

import torch
from torch import nn


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
    * centralised: nothing, the data is taken to be at the server.

    A device that missed a round (`Participation`) has sent what it sent before; it gets the new
    model like all others.

    A model's tensors are its trainable parameters and floating-point buffers. The first copy, which every
    client of every framework holds before round 1, is not counted. Gradients at the cut are sent, and
    counted, also where a client's part has no trainable parameters and makes no use of them.

    Attributes:
        uplink_bits, downlink_bits: sent so far.
    """

    def __init__(self) -> None:
        self.uplink_bits = 0
        self.downlink_bits = 0

    def up(self, tensor: torch.Tensor) -> torch.Tensor:
        """Send a tensor from one client to the server; returns what the server receives."""
        self.uplink_bits += _bits(tensor)
        return tensor.detach()

    def down(self, tensor: torch.Tensor) -> torch.Tensor:
        """Send a tensor from the server to one client; returns what the client receives."""
        self.downlink_bits += _bits(tensor)
        return tensor.detach()

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Send one tensor from the server to all clients at once: its bits count once."""
        return self.down(tensor)


def exchanged(module: nn.Module) -> list[torch.Tensor]:
    """Return the tensors of a model that travel when it is exchanged, each once.

    Trainable parameters and floating-point buffers (BatchNorm's running statistics). Frozen
    parameters, which everybody has, and integer buffers, such as BatchNorm's batch counter, stay
    where they are.
    """
    state = [t for t in module.state_dict(keep_vars=True).values() if isinstance(t, torch.Tensor)]
    moving = [t for t in state if (t.requires_grad if isinstance(t, nn.Parameter) else t.is_floating_point())]
    return list({id(t): t for t in moving}.values())


def _bits(tensor: torch.Tensor) -> int:
    return 8 * tensor.element_size() * tensor.numel()
