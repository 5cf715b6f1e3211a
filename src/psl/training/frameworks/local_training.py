"""Federated averaging's round: devices train alone for a few steps, then their models are averaged."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from psl.training.communication import exchanged
from psl.training.config import TrainingConfig
from psl.training.devices import Device, copy_into
from psl.training.frameworks.base import Framework, Round
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

    Attributes:
        copies: for devices in other processes, by client: the same framework for this client alone, whose model the
            server trains with it. In one process there are none.
    """

    averages = True
    one_client_model = True
    sends_to_all: ClassVar[bool] = False  # the average goes to all devices at once
    waits_for_all = None

    def __init__(self, model: nn.Module, config: TrainingConfig, weights: np.ndarray | None = None):
        super().__init__(model, config, weights)
        self.modules["model"] = model
        self.copies: dict[int, LocalTraining] = {}

    def train_round(self, this: Round) -> torch.Tensor | float:
        """Run the local steps and the average; the loss is over the devices that count, NaN if none does."""
        here = this.attendance or Attendance.full(len(self.weights), self.steps)
        weights = here.weights(self.weights)
        state = [t for t in self.model.state_dict(keep_vars=True).values() if isinstance(t, torch.Tensor)]
        start = _copies(state)
        traveling = exchanged(self.model)
        moving = {id(t) for t in traveling}
        staying = [t for t in state if id(t) not in moving and not isinstance(t, nn.Parameter)]  # batch counters
        stayed = _copies(staying)
        average = Average(traveling)
        total, counted = 0.0, 0

        def train(device: Device) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
            client = device.number
            copy = self.copies.get(client, self)
            if copy is self:
                copy_into(state, start)
            losses = [copy.local_step(device, step, this) for step in range(here.steps[client])]
            return losses, copy.receive(device) if here.sends_model[client] else None

        for client, (losses, received) in this.devices.each(this.devices.present, train):
            if not here.counted[client] or received is None:
                continue
            for loss in losses:
                total = total + weights[client] * loss
            average.add(received, weights[client])
            stayed = _copies(staying)
            counted += 1
        if counted == 0:
            copy_into(state, start)
            means, total = _copies(traveling), float("nan")
        else:
            means = average.means(whole=counted == here.participants)
            total = total if counted == here.participants else total / average.weight
        self.at_server = self.send(means)
        copy_into(traveling, self.at_server)
        copy_into(staying, stayed)
        for copy in self.copies.values():
            copy_into(exchanged(copy.model), self.at_server)
        this.devices.do(this.devices.present, self.hand_back)
        return total / self.steps

    def hand_back(self, device: Device) -> None:
        """Send a device its part of the average, which those of this process have already."""
        device.take(self.copies.get(device.number, self).part_of(device), broadcast=self.sends_to_all)

    def part_of(self, device: Device) -> list[torch.Tensor]:
        """Return the tensors that travel between the server and a device."""
        return exchanged(self.devices[0 if len(self.devices) == 1 else device.number].module)

    @abstractmethod
    def local_step(self, device: Device, step: int, this: Round) -> torch.Tensor:
        """Train one device on one mini-batch and return its mean loss."""

    @abstractmethod
    def receive(self, device: Device) -> list[torch.Tensor]:
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
        weight: Σ_i λ_i so far.
    """

    def __init__(self, like: Iterable[torch.Tensor]):
        self.weight = 0.0
        self.tensors = [torch.zeros_like(tensor, requires_grad=False) for tensor in like]

    @torch.no_grad()
    def add(self, tensors: Iterable[torch.Tensor], weight: float) -> None:
        """Add a model times its weight."""
        for total, tensor in zip(self.tensors, tensors, strict=True):
            total.add_(tensor, alpha=float(weight))
        self.weight += float(weight)

    def means(self, whole: bool) -> list[torch.Tensor]:
        """Return the average, divided by the sum of the weights unless `whole` says that this is 1."""
        return self.tensors if whole else [tensor / self.weight for tensor in self.tensors]


def _copies(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in tensors]
