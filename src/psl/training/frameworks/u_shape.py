"""U-shaped split learning: the first and the last layers stay with the client, and so do the labels.

A client holds the head, up to the first cut, and the tail, behind the second; the server holds what is between. Four
messages cross per mini-batch: smashed data up, features down, their gradients up, the gradients of the smashed data
down. Losses are computed by the clients, so the server sees no label; what the gradients tell it about them is for
`psl.privacy.label_leakage` to say.

Source: split learning (Vepakomma et al., arXiv 1812.00564), its configuration without label sharing [P: the
configuration; R: parallel clients with one server-side part].
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from psl.errors import CutError, expected
from psl.models.splitting import boundaries
from psl.models.stages import stages
from psl.models.tracing import trace
from psl.models.values import call
from psl.training.config import TrainingConfig, check_cuts
from psl.training.defences import Defence
from psl.training.devices import defended_forward, device_backward
from psl.training.frameworks.base import Framework, Round
from psl.training.frameworks.psl import PSL
from psl.training.frameworks.sfl import SFL
from psl.training.frameworks.sl import SL
from psl.training.frameworks.split_step import SplitFramework, only_needed, own_gradients
from psl.training.messages import check_rows, entries, joined
from psl.training.stage import Stage, loss_and_gradient


class UShape(SplitFramework):
    """A split with two cuts. Client i and its tail step on ℓ̄_i, the server on Σ_i λ_i ℓ̄_i.

    A client has one optimizer for head and tail; where the framework exchanges client-side models, both travel.
    """

    def __init__(self, model: nn.Module, config: TrainingConfig, weights: np.ndarray | None = None):
        super().__init__(model, config, weights)
        owned = [self.clients[i % len(self.clients)] for i in range(config.n_clients)]
        heads, tails = zip(*owned, strict=True)
        optimizers = [self.optimizers[f"client {i}"] for i in range(config.n_clients)]
        self.devices = [Stage(head, own, first=True) for head, own in zip(heads, optimizers, strict=True)]
        self.tails = [Stage(tail, None) for tail in tails]
        self.middle = Stage(self.server, self.optimizers["server"])

    def divide(self, model: nn.Module, config: TrainingConfig) -> tuple[nn.Module, nn.Module, Any]:
        """Return (head and tail, what is between them, numbers of the two cuts).

        Raises:
            CutError: there are no such cuts, they do not increase, or nothing is left behind the second.
        """
        traced = trace(model, config.example)
        places = boundaries(traced, check_cuts(config.cut), config.tensors)
        if places[-1] is traced.all_places[-1]:
            want, fix = "a layer behind the second cut", "pass one cut, or an earlier second one"
            raise expected("cut", want, f"{places[-1].name!r}, the output", fix, CutError)
        head, middle, tail = stages(traced, places)
        return nn.ModuleList([head, tail]), middle, [traced.number(place) for place in places]

    def device_model(self, client: int) -> nn.Module:
        """Return a client's head and tail."""
        return self.clients[client % len(self.clients)]

    def outputs(self, client: nn.Module, inputs: Any) -> Any:
        """Return what a client's head, the server and the client's tail make of inputs."""
        head, tail = entries_of(client)
        return tail(self.server((self.config.defence or Defence()).sent(call(head, inputs))))

    def train_clients(self, clients: Sequence[int], weights: np.ndarray, step: int, this: Round) -> torch.Tensor:
        """Train some clients, by number, and the server on one mini-batch each; returns Σ_i λ_i ℓ̄_i."""
        defence, bits, middle = self.config.defence or Defence(), self.bits, self.middle
        devices, tails = [self.devices[i] for i in clients], [self.tails[i] for i in clients]
        smashed, labels, more = [], [], []
        for i, device in zip(clients, devices, strict=True):
            this.seed_for("device", i, step)
            inputs, targets = this.draw(i, step)
            sent, penalty = defended_forward(device, inputs, defence)
            smashed.append(bits.up(sent, defence.bits_of))
            more.append(penalty)
            labels.append(targets)
        this.seed_for("server", clients[0], step)
        middle.zero_grad()
        features = middle.forward(joined(smashed))
        n_rows = sum(map(len, labels))
        if not isinstance(features, torch.Tensor):
            fix = "choose a second cut with one tensor"
            raise expected("cut", "one tensor at the second cut", f"{len(entries(features))}", fix, CutError)
        check_rows(features, n_rows)
        total, returned = torch.zeros(()), []
        parts = features.split([len(targets) for targets in labels])
        for tail, part, targets, weight in zip(tails, parts, labels, weights.tolist(), strict=True):
            value, gradient = loss_and_gradient(tail.forward(bits.down(part)), targets, self.config.loss)
            up = only_needed(tail.backward(gradient), middle.needs_gradient())
            total = total + weight * value
            returned.append(None if up is None else bits.up(up) * weight)
        gradient = None if returned[0] is None else torch.cat(returned)
        arrived = middle.backward(gradient)
        middle.step()
        own = own_gradients(arrived, torch.as_tensor(weights))
        needed = devices[0].needs_gradient()
        for device, part, extra in zip(devices, own, more, strict=True):
            device_backward(device, None, bits.down(only_needed(part, needed)), more=extra)
        return total


def entries_of(client: nn.Module) -> list[nn.Module]:
    """Return a client's head and tail."""
    return list(client.children())


class UShapedSL(UShape, SL):
    """SL whose clients keep head, tail and labels; both parts go from client to client."""


class UShapedPSL(UShape, PSL):
    """PSL whose clients keep head, tail and labels."""


class UShapedSFL(UShape, SFL):
    """SFL whose clients keep head, tail and labels; both parts are averaged."""


#: The class of a framework with two cuts, by name.
U_SHAPED: dict[str, type[Framework]] = {kind.name: kind for kind in (UShapedSL, UShapedPSL, UShapedSFL)}
