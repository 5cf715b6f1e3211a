"""Frameworks in which the whole model stays in one place: centralised training and FedAvg."""

from psl.training.frameworks.base import Framework
from psl.training.frameworks.local_training import LocalTraining


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
    waits_for_all = "its data is in one place, there are no devices that could be missing"

    def __init__(self, setup, link):
        super().__init__(setup, link)
        self.modules["model"] = setup.model
        self.optimizers["model"] = setup.make_optimizer(setup.model)

    def round(self, draw, rng):
        return full_step(self.modules["model"], self.optimizers["model"], draw(0, 0), self.setup.loss)

    def client_models(self):
        return [self.modules["model"]]


class FedAvg(LocalTraining):
    """Federated averaging: the whole model is on every device; all models go up, their average down once.

    Source: FedAvg (McMahan et al., arXiv 1602.05629).
    """

    name = "fedavg"

    def __init__(self, setup, link):
        super().__init__(setup, link)
        self.optimizers = {f"client {i}": setup.make_optimizer(setup.model) for i in range(setup.n_clients)}

    def local_step(self, client, batch):
        return full_step(self.modules["model"], self.optimizers[f"client {client}"], batch, self.setup.loss)

    def receive(self, client, tensors):
        return [self.link.up(tensor) for tensor in tensors]

    def send(self, average):
        return [self.link.broadcast(mean) for mean in average]
