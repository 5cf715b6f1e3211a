"""Frameworks in which the whole model stays in one place: centralised training and FedAvg."""

import torch

from psl.training.frameworks.base import Framework
from psl.training.link import exchanged


def full_step(model, optimizer, batch, loss):
    """Take one optimizer step on one mini-batch and return its mean loss."""
    inputs, labels = batch
    optimizer.zero_grad(set_to_none=True)
    value = loss(model(inputs), labels).mean()
    value.backward()
    optimizer.step()
    return value.detach()


class Centralised(Framework):
    """All data in one place: one mini-batch of n_clients × batch_size samples per round, nothing exchanged."""

    name = "centralised"
    pooled = True

    def __init__(self, setup, link):
        super().__init__(setup, link)
        self.modules["model"] = setup.model
        self.optimizers["model"] = setup.make_optimizer(setup.model)

    def round(self, draw, rng):
        return full_step(self.modules["model"], self.optimizers["model"], draw(0, 0), self.setup.loss)

    def client_models(self):
        return [self.modules["model"]]


class FedAvg(Framework):
    """Every client trains the whole model on local_steps mini-batches; then all models are averaged with λ_i.

    The clients take turns on one copy of the model: between two rounds they differ in nothing but
    their optimizers, so memory does not grow with the number of clients.

    Source: FedAvg (McMahan et al., arXiv 1602.05629).
    """

    name = "fedavg"
    averages = True

    def __init__(self, setup, link):
        super().__init__(setup, link)
        self.modules["model"] = setup.model
        self.optimizers = {f"client {i}": setup.make_optimizer(setup.model) for i in range(setup.n_clients)}

    def round(self, draw, rng):
        model = self.modules["model"]
        state = [t for t in model.state_dict(keep_vars=True).values() if isinstance(t, torch.Tensor)]
        start = [t.detach().clone() for t in state]
        traveling = exchanged(model)
        average = [torch.zeros_like(t, requires_grad=False) for t in traveling]
        total = 0.0
        for client, (weight, optimizer) in enumerate(zip(self.setup.weights, self.optimizers.values(), strict=True)):
            copy_into(state, start)
            for step in range(self.steps):
                total = total + weight * full_step(model, optimizer, draw(client, step), self.setup.loss)
            for mean, tensor in zip(average, traveling, strict=True):
                mean.add_(self.link.up(tensor), alpha=float(weight))
        copy_into(traveling, [self.link.broadcast(mean) for mean in average])
        return total / self.steps

    def client_models(self):
        return [self.modules["model"]]


@torch.no_grad()
def copy_into(targets, sources):
    """Overwrite the targets' values."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
