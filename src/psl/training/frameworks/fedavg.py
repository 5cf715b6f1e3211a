"""Federated averaging: every device trains the whole model, the server averages the models."""

import numpy as np
import torch
from torch import nn

from psl.training.config import TrainingConfig
from psl.training.devices import Device
from psl.training.frameworks.base import Round
from psl.training.frameworks.local_training import LocalTraining
from psl.training.stage import Stage


class FedAvg(LocalTraining):
    """The whole model is on every device; after local_steps mini-batches w ← Σ_i λ_i w_i.

    All models go up, their average comes down once for all.

    Source: FedAvg (McMahan et al., arXiv 1602.05629).
    """

    name = "fedavg"
    sends_to_all = True

    def __init__(self, model: nn.Module, config: TrainingConfig, weights: np.ndarray | None = None):
        super().__init__(model, config, weights)
        self.optimizers = {f"client {i}": config.make_optimizer(model) for i in range(config.n_clients)}
        self.devices = [Stage(model, optimizer, first=True) for optimizer in self.optimizers.values()]

    def local_step(self, device: Device, step: int, this: Round) -> torch.Tensor:
        """Train one device on one mini-batch and return its mean loss."""
        return device.train_alone(step)

    def receive(self, device: Device) -> list[torch.Tensor]:
        """Return a device's model as the server receives it."""
        return [self.bits.up(tensor) for tensor in device.give()]

    def send(self, average: list[torch.Tensor]) -> list[torch.Tensor]:
        """Send the average to all devices at once."""
        return [self.bits.broadcast(mean) for mean in average]
