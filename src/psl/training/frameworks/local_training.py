"""Federated averaging: devices train alone for a few steps, then their models are averaged."""

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import nn

from psl.training.communication import exchanged
from psl.training.frameworks.base import Framework
from psl.training.participation import Attendance


class LocalTraining(Framework):
    """Every device trains the whole model for local_steps mini-batches; then all models are averaged with λ_i.

    The devices take turns on one copy of the model: between two rounds they differ in nothing but
    their optimizers, so memory does not grow with the number of devices. A subclass says how a step
    is taken and what travels.

    Where devices are missing (`psl.train`'s `participation`), the average is over the others, with λ_i divided by
    their sum; if all are, the model stays as it was. A device that is late has taken all its steps and sent
    everything, one that drops out only the steps before: their optimizers keep what these steps left, their models
    are not used. The next round starts from the same model on all of them.
    """

    averages = True
    waits_for_all = None

    def __init__(self, setup, link):
        super().__init__(setup, link)
        self.modules["model"] = setup.model

    def round(self, draw, rng, attendance: Attendance | None = None):
        """See `Framework.round`; the loss is over the devices that count, NaN if none does.

        Args:
            draw, rng: as there.
            attendance: who takes part; default everybody.
        """
        here = attendance or Attendance.full(self.setup.n_clients, self.steps)
        model, weights = self.modules["model"], here.weights(self.setup.weights)
        state = [t for t in model.state_dict(keep_vars=True).values() if isinstance(t, torch.Tensor)]
        start = [t.detach().clone() for t in state]
        traveling = exchanged(model)
        moving = {id(t) for t in traveling}
        staying = [t for t in state if id(t) not in moving and not isinstance(t, nn.Parameter)]  # batch counters
        stayed = [t.detach().clone() for t in staying]
        average = Average(traveling)
        total = 0.0
        for client in range(self.setup.n_clients):
            copy_into(state, start)
            for step in range(here.steps[client]):
                self.turn("device", client, step)
                value = self.local_step(client, draw(client, step))
                if here.counted[client]:
                    total = total + weights[client] * value
            if not here.sends_model[client]:
                continue
            received = self.receive(client, traveling)
            if here.counted[client]:
                average.add(received, weights[client])
                stayed = [t.detach().clone() for t in staying]
        means = average.tensors
        if here.participants == 0:
            copy_into(state, start)
            means, total = [t.detach().clone() for t in traveling], float("nan")
        copy_into(traveling, self.send(means))
        copy_into(staying, stayed)
        return total / self.steps

    @abstractmethod
    def local_step(self, client: int, batch) -> torch.Tensor:
        """Train one device on one mini-batch and return its mean loss."""

    @abstractmethod
    def receive(self, client: int, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return a device's model, tensor by tensor, as the server holds it after the upload."""

    @abstractmethod
    def send(self, average: list[torch.Tensor]) -> list[torch.Tensor]:
        """Send the average to all devices, those that missed the round included, and return what they hold then."""

    def client_models(self):
        return [self.modules["model"]]


class Average:
    """A weighted sum of models, added one by one so that they need not be there at once.

    Args:
        like: the tensors of a model.

    Attributes:
        tensors: the sum so far.
    """

    def __init__(self, like: Iterable[torch.Tensor]):
        self.tensors = [torch.zeros_like(tensor, requires_grad=False) for tensor in like]

    @torch.no_grad()
    def add(self, tensors: Iterable[torch.Tensor], weight: float) -> None:
        """Add a model times its weight."""
        for total, tensor in zip(self.tensors, tensors, strict=True):
            total.add_(tensor, alpha=float(weight))


@torch.no_grad()
def copy_into(targets, sources):
    """Overwrite the targets' values."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
