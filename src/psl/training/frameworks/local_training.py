"""Federated averaging's round: devices train alone for a few steps, then their models are averaged."""

from abc import abstractmethod
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from psl.training.communication import exchanged
from psl.training.config import TrainingConfig
from psl.training.frameworks.base import Batch, Framework, Round
from psl.training.participation import Attendance


class LocalTraining(Framework):
    """Every device trains the whole model for local_steps mini-batches; then w ← Σ_i λ_i w_i.

    The devices use one copy of the model one after the other: between two rounds they differ in nothing but
    their optimizers, so memory does not grow with the number of devices. A subclass says how a step
    is taken and what travels.

    Where devices are missing (`psl.train`'s `participation`), the average is over the others, with λ_i divided by
    their sum; if all are, the model stays as it was. A device that is late has taken all its steps and sent
    everything, one that drops out only the steps before: their optimizers keep what these steps left, their models
    are not used. The next round starts from the same model on all of them.
    """

    averages = True
    waits_for_all = None

    def __init__(self, model: nn.Module, config: TrainingConfig, weights: np.ndarray | None = None):
        super().__init__(model, config, weights)
        self.modules["model"] = model

    def train_round(self, this: Round) -> torch.Tensor | float:
        """Run the local steps and the average; the loss is over the devices that count, NaN if none does."""
        here = this.attendance or Attendance.full(self.config.n_clients, self.steps)
        weights = here.weights(self.weights)
        state = [t for t in self.model.state_dict(keep_vars=True).values() if isinstance(t, torch.Tensor)]
        start = _copies(state)
        traveling = exchanged(self.model)
        moving = {id(t) for t in traveling}
        staying = [t for t in state if id(t) not in moving and not isinstance(t, nn.Parameter)]  # batch counters
        stayed = _copies(staying)
        average = Average(traveling)
        total = 0.0
        for client in range(self.config.n_clients):
            copy_into(state, start)
            for step in range(here.steps[client]):
                this.seed_for("device", client, step)
                value = self.local_step(client, this.draw(client, step))
                if here.counted[client]:
                    total = total + weights[client] * value
            if not here.sends_model[client]:
                continue
            received = self.receive(client, traveling)
            if here.counted[client]:
                average.add(received, weights[client])
                stayed = _copies(staying)
        means = average.tensors
        if here.participants == 0:
            copy_into(state, start)
            means, total = _copies(traveling), float("nan")
        copy_into(traveling, self.send(means))
        copy_into(staying, stayed)
        return total / self.steps

    @abstractmethod
    def local_step(self, client: int, batch: Batch) -> torch.Tensor:
        """Train one device on one mini-batch and return its mean loss."""

    @abstractmethod
    def receive(self, client: int, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return a device's model, tensor by tensor, as the server holds it after the upload."""

    @abstractmethod
    def send(self, average: list[torch.Tensor]) -> list[torch.Tensor]:
        """Send the average to all devices, those that missed the round included, and return what they hold then."""

    def client_models(self) -> list[nn.Module]:
        """Return the model that all devices have after the average."""
        return [self.model]


class Average:
    """Σ_i λ_i w_i of models, added one by one so that they need not be there at once.

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
def copy_into(targets: Iterable[torch.Tensor], sources: Iterable[torch.Tensor]) -> None:
    """Overwrite the targets' values."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _copies(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in tensors]
