"""Centralised training: all data in one place."""

import numpy as np
import torch
from torch import nn

from psl.training.config import TrainingConfig
from psl.training.frameworks.base import Framework, Round
from psl.training.stage import Stage, full_step


class Centralised(Framework):
    """One mini-batch of n_clients × batch_size samples of all data per round: w ← w − η ∇ℓ̄(w). Nothing is exchanged.

    Source: stochastic gradient descent, the reference for the other frameworks.
    """

    name = "centralised"
    pooled = True
    waits_for_all = "its data is in one place, there are no devices that could be missing"

    def __init__(self, model: nn.Module, config: TrainingConfig, weights: np.ndarray | None = None):
        super().__init__(model, config, weights)
        self.modules["model"] = model
        self.optimizers["model"] = config.make_optimizer(model)
        self._whole = Stage(model, self.optimizers["model"], first=True)

    def train_round(self, this: Round) -> torch.Tensor:
        """Take one step on the round's mini-batch."""
        return full_step(self._whole, this.draw(0, 0), self.config.loss)

    def client_models(self) -> list[nn.Module]:
        """Return the model."""
        return [self.model]
