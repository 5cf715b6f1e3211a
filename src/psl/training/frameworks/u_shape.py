"""U-shaped split learning: the first and the last layers stay with the client, and so do the labels.

A client holds the head, up to the first cut, and the tail, behind the second; the server holds what is between. Four
messages cross per mini-batch: smashed data up, features down, their gradients up, the gradients of the smashed data
down. Losses are computed by the clients, so the server sees no label; what the gradients tell it about them is for
`psl.privacy.label_leakage` to say.

Source: split learning (Vepakomma et al., arXiv 1812.00564), its configuration without label sharing [P: the
configuration; R: parallel clients with one server-side part].
"""

from collections.abc import Callable, Sequence
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
from psl.training.devices import Device, Upload
from psl.training.frameworks.base import Draw, Framework, Round, SeedFor
from psl.training.frameworks.psl import PSL
from psl.training.frameworks.sfl import SFL
from psl.training.frameworks.sl import SL
from psl.training.frameworks.split_step import SplitFramework, only_needed, own_gradients, weights_left
from psl.training.messages import check_rows, entries, joined, rows_of
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

    def device(self, client: int, number: int, draw: Draw, seed_for: SeedFor) -> Device:
        """Return a client in this process; arguments as of `Framework.device`."""
        parts = self.devices[client], self.tails[client], self.clients[client % len(self.clients)]
        return UShapedDevice(number, *parts, draw, seed_for, self.config.loss, defence=self.config.defence)

    def outputs(self, client: nn.Module, inputs: Any) -> Any:
        """Return what a client's head, the server and the client's tail make of inputs."""
        head, tail = entries_of(client)
        return tail(self.server((self.config.defence or Defence()).sent(call(head, inputs))))

    def train_clients(
        self, clients: Sequence[int], weights: np.ndarray, step: int, this: Round
    ) -> torch.Tensor | float:
        """Train some clients, by number, and the server on one mini-batch each; returns Σ_i λ_i ℓ̄_i.

        A client that is lost while it has the features adds nothing: its rows get the gradient 0.
        """
        defence, bits, middle, devices = self.config.defence or Defence(), self.bits, self.middle, this.devices
        arrived = devices.do(clients, lambda device: device.forward(step))
        if not arrived:
            return float("nan")
        there = list(arrived)
        smashed = [bits.up(sent.smashed, defence.bits_of) for sent in arrived.values()]
        sizes = [rows_of(part) for part in smashed]
        with this.at_server(there[0], step):
            middle.zero_grad()
            features = middle.forward(joined(smashed))
        if not isinstance(features, torch.Tensor):
            fix = "choose a second cut with one tensor"
            raise expected("cut", "one tensor at the second cut", f"{len(entries(features))}", fix, CutError)
        check_rows(features, sum(sizes))
        needed = middle.needs_gradient()
        down = {i: bits.down(part) for i, part in zip(there, features.split(sizes), strict=True)}
        turned = devices.do(there, lambda device: device.turn(step, down[device.number], needed))
        if not turned:
            return float("nan")
        share = dict(zip(turned, weights_left(list(turned), clients, weights).tolist(), strict=True))
        total = sum(share[i] * loss for i, (loss, _) in turned.items())
        gradients = {i: bits.up(gradient) * share[i] for i, (_, gradient) in turned.items() if needed[0]}
        with this.at_server(there[0], step, "backward"):
            back = [gradients[i] if i in gradients else torch.zeros_like(down[i]) for i in there]
            returned = middle.backward(torch.cat(back) if needed[0] else None)
            middle.step()
        divided_by = torch.tensor([share.get(i, 1.0) for i in there], dtype=torch.float64)
        parts = own_gradients(returned, divided_by, sizes)
        wanted = arrived[there[0]].needed
        own = {i: bits.down(only_needed(part, wanted)) for i, part in zip(there, parts, strict=True) if i in turned}
        devices.do(list(own), lambda device: device.backward(step, None, own[device.number]))
        return total


class UShapedDevice(Device):
    """A client that keeps the tail and its labels.

    Args:
        number, draw, seed_for, loss, defence: as of `Device`.
        head, tail: its layers before and behind the server's.
        model: both.
    """

    def __init__(
        self, number: int, head: Stage, tail: Stage, model: nn.Module, draw: Draw, seed_for: SeedFor,
        loss: Callable[..., torch.Tensor], *, defence: Defence | None = None,
    ):  # fmt: skip
        super().__init__(number, head, draw, seed_for, loss, defence=defence)
        self.tail, self._model = tail, model
        self._labels: torch.Tensor | None = None

    def forward(self, step: int) -> Upload:
        """Start a local step: return activations at the first cut."""
        sent = super().forward(step)
        self._labels = sent.labels
        return Upload(sent.smashed, None, sent.needed)

    def turn(self, step: int, features: torch.Tensor, needed: list[bool]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Take the server's features through the tail and back; returns mean loss and the features' gradient."""
        assert self._labels is not None
        self._seed_for("tail", self.number, step)
        loss, gradient = loss_and_gradient(self.tail.forward(features), self._labels, self._loss)
        return loss, only_needed(self.tail.backward(gradient), needed)

    def state_dict(self) -> dict[str, Any]:
        """Return head and tail by the names of the whole model."""
        return self.stage.module.state_dict() | self.tail.module.state_dict()


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
