"""Vanilla split learning: the clients train one after the other."""

import numpy as np
import torch
from torch import nn

from psl.training.config import TrainingConfig
from psl.training.frameworks.base import Round
from psl.training.frameworks.split_step import SplitFramework


class SL(SplitFramework):
    """One client-side model goes from client to client; client and server step on ℓ̄_i after each mini-batch.

    BatchNorm's batch counter, a whole number, is not part of what goes.

    Attributes:
        holder: number of the client that has the newest client-side model; None as long as all have the first.

    Source: split learning (Gupta and Raskar, arXiv 1810.06060).
    """

    name = "sl"
    one_client_model = True
    u_shaped = True
    waits_for_all = "its clients hand one model on, a missing one stops all"

    def __init__(self, model: nn.Module, config: TrainingConfig, weights: np.ndarray | None = None):
        super().__init__(model, config, weights)
        self.holder: int | None = None

    def train_round(self, this: Round) -> torch.Tensor | float:
        """Train one client after the other; a client that is lost, or was not given the model, is left out."""
        total, trained, devices = 0.0, [], this.devices
        for client in devices.present:
            if self.holder not in (None, client):  # who should have handed it on is gone
                self._hand_to(client, this)
            if client not in devices.present:
                continue
            loss = self.train_clients([client], np.ones(1), 0, this)
            if len(self.weights) > 1:
                for _, model in devices.each([client], lambda device: device.give()):
                    self.at_server, self.holder = [self.bits.up(tensor) for tensor in model], client
            if client not in devices.present:
                continue
            total = total + self.weights[client] * loss
            trained.append(client)
            if len(self.weights) > 1:
                there = devices.present
                self._hand_to(next((other for other in there if other > client), there[0]), this)
        if len(trained) == len(self.weights):
            return total
        return total / self.weights[trained].sum() if trained else float("nan")

    def _hand_to(self, client: int, this: Round) -> None:
        assert self.at_server is not None
        model = [self.bits.down(tensor) for tensor in self.at_server]
        took = this.devices.do([client], lambda device: device.take(model))
        self.holder = client if took else -1
