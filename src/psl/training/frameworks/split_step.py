"""Frameworks that split the model at a cut: vanilla split learning, PSL, SFL and EPSL."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from psl.aggregation import aggregated_rows
from psl.errors import CutError, expected
from psl.models import split
from psl.training.communication import Link, exchanged
from psl.training.frameworks.base import Framework
from psl.training.frameworks.local_training import Average, copy_into
from psl.training.gradient_aggregation import ServerGradients, server_backward
from psl.training.stage import Stage


def split_step(devices: list[Stage], batches, server: Callable, link: Link) -> torch.Tensor:
    """Train devices and server on one mini-batch per device: activations up, gradients down; returns Σ_i λ_i ℓ̄_i.

    It is made of three halves that know each other by tensors alone and may as well run in different processes
    (`psl.distributed`): `device_forward`, the server's, and `device_backward`.

    Args:
        devices: the device-side parts.
        batches: a pair (inputs, labels) for each.
        server: takes the server's half, `server_step`: from activations and labels of all devices, as received, to
            `ServerGradients`.
        link: what crosses is counted there.

    Raises:
        CutError: the tensor at the cut does not have one row per sample.
    """
    smashed, labels = [], []
    for device, (inputs, targets) in zip(devices, batches, strict=True):
        smashed.append(link.up(device_forward(device, inputs)))
        labels.append(link.up(targets))
    found = server(smashed, labels)
    shared = None if found.shared is None else link.broadcast(found.shared)  # (n_A, …)
    for device, own in zip(devices, found.own, strict=True):
        device_backward(device, shared, link.down(own))
    return found.loss


def device_forward(device: Stage, inputs: torch.Tensor) -> torch.Tensor:
    """Start a device's step: returns the activations at the cut, one row per sample."""
    device.zero_grad()
    smashed = device.forward(inputs)
    if len(smashed) != len(inputs):
        got = f"shape {tuple(smashed.shape)} for {len(inputs)} samples"
        raise expected("cut", "a tensor with one row per sample", got, "cut elsewhere", CutError)
    return smashed


def device_backward(device: Stage, shared: torch.Tensor | None, own: torch.Tensor) -> None:
    """End a device's step.

    Args:
        device: the device-side part.
        shared: (n_A, …) gradients of the slots that all devices share, None if there are none.
        own: (b - n_A, …) gradients of its other slots.
    """
    device.backward(own if shared is None else torch.cat([shared, own]))
    device.step()


def server_step(optimizer: torch.optim.Optimizer | None, backward: Callable) -> ServerGradients:
    """Take the server's half of a step: `backward` runs its forward and backward pass (None: nothing to train)."""
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
    found = backward()
    if optimizer is not None:
        optimizer.step()
    return found


class SplitFramework(Framework):
    """A server-side model, client-side models, and the step that sends activations up and gradients down."""

    splits = True

    def __init__(self, setup, link, n_models):
        super().__init__(setup, link)
        self._parts = split(setup.model, setup.cut)
        self.cut = self._parts.cut
        refuse_raw_data(self.cut)
        self.clients = [copy.deepcopy(self._parts.client) for _ in range(n_models)]
        self.modules = {f"client {i}": client for i, client in enumerate(self.clients)} | {"server": self._parts.server}
        owners = [self.clients[i % n_models] for i in range(setup.n_clients)]
        self.optimizers = {f"client {i}": setup.make_optimizer(module) for i, module in enumerate(owners)}
        self.devices = [
            Stage(module, optimizer, first=True)
            for module, optimizer in zip(owners, self.optimizers.values(), strict=True)
        ]
        self.optimizers["server"] = setup.make_optimizer(self._parts.server)

    def client_models(self):
        return self.clients

    def full_models(self):
        """Return one model of the given class per client-side model; all share the server's tensors."""
        original = dict(_tensors(self._parts.client))
        shared = {id(t): t for _, t in _tensors(self._parts.server)}
        for module in self.modules.values():
            module.zero_grad(set_to_none=True)
        models = []
        for client in self.client_models():
            trained = {id(original[name]): tensor for name, tensor in _tensors(client)}
            models.append(copy.deepcopy(self.setup.model, memo=shared | trained))
        return models

    def split_step(self, clients, weights, draw, step, rng):
        """Train the clients (numbers) and the server on one mini-batch each; returns Σ_i λ_i ℓ̄_i."""

        def batches():
            for i in clients:
                self.turn("device", i, step)
                yield draw(i, step)

        def server(smashed, labels):
            self.turn("server", clients[0], step)
            return self.server_step(smashed, labels, weights, rng)

        return split_step([self.devices[i] for i in clients], batches(), server, self.link)

    def server_step(self, smashed, labels, weights, rng):
        """Take the server's half of a step on the rows of some clients with their weights; see `server_step` above."""
        backward = partial(self.server_backward, smashed, labels, weights, rng)
        return server_step(self.optimizers["server"], backward)

    def server_backward(self, smashed, labels, weights, rng):
        """The server's forward and backward pass; EPSL's is its own."""
        return server_backward(self.server, smashed, labels, weights, loss=self.setup.loss)


class SL(SplitFramework):
    """Vanilla split learning: one client-side model goes from client to client, the server steps after each.

    Source: split learning (Gupta and Raskar, arXiv 1810.06060).
    """

    name = "sl"
    waits_for_all = "its clients hand one model on, a missing one stops all"

    def __init__(self, setup, link):
        super().__init__(setup, link, n_models=1)

    def round(self, draw, rng):
        total = 0.0
        for client, weight in enumerate(self.setup.weights):
            total = total + weight * self.split_step([client], [1.0], draw, 0, rng)
            if self.setup.n_clients > 1:
                for tensor in exchanged(self.clients[0]):
                    self.link.down(self.link.up(tensor))
        return total


class PSL(SplitFramework):
    """Parallel split learning: all clients at once, each with its own client-side model, one server-side model.

    Source: EPSL (arXiv 2303.15991) with φ = 0 [R].
    """

    name = "psl"

    def __init__(self, setup, link):
        super().__init__(setup, link, n_models=setup.n_clients)

    def round(self, draw, rng):
        clients = range(self.setup.n_clients)
        losses = [self.split_step(clients, self.setup.weights, draw, step, rng) for step in range(self.steps)]
        return sum(losses) / self.steps


class SFL(PSL):
    """Split federated learning: PSL whose client-side models are averaged with λ_i after local_steps mini-batches.

    BatchNorm's running statistics are averaged like the parameters.

    Source: SplitFed (Thapa et al., arXiv 2004.12088), its first variant.
    """

    name = "sfl"
    averages = True

    def round(self, draw, rng):
        loss = super().round(draw, rng)
        for copies in zip(*map(exchanged, self.clients), strict=True):  # one tensor of every client
            average = Average(copies[:1])
            for weight, tensor in zip(self.setup.weights, copies, strict=True):
                average.add([self.link.up(tensor)], weight)
            copy_into(copies, [self.link.broadcast(average.tensors[0])] * len(copies))
        return loss

    def client_models(self):
        return self.clients[:1]  # equal after the average


class EPSL(PSL):
    """Efficient parallel split learning: PSL that aggregates the last-layer gradients of ⌈φ b⌉ slots.

    Source: EPSL (arXiv 2303.15991): aggregation [P], where to linearise [R].
    """

    name = "epsl"

    def server_backward(self, smashed, labels, weights, rng):
        setup = self.setup
        n_agg = aggregated_rows(setup.phi, setup.batch_size)
        return server_backward(
            self.server, smashed, labels, weights, n_agg=n_agg, rule=setup.linearise, rng=rng, loss=setup.loss
        )


def _tensors(module: nn.Module):
    """Names and tensors of all parameters and buffers, tied ones under each of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def refuse_raw_data(cut: int) -> None:
    """Refuse to cut before the first layer."""
    if cut == 0:
        want, fix = "a cut after the first layer or later", "psl.cuts(model, example) lists the cuts"
        raise expected("cut", want, "0, which would send the raw data", fix, CutError)
