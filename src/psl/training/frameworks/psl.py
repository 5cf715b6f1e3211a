"""Parallel split learning: all clients at once, with one server-side model."""

import torch

from psl.training.frameworks.base import Round
from psl.training.frameworks.split_step import SplitFramework, normalised


class PSL(SplitFramework):
    """Each client has its own client-side model. The server steps on Σ_i λ_i ℓ̄_i, client i on its own ℓ̄_i.

    Source: EPSL (arXiv 2303.15991) with φ = 0 [R].
    """

    name = "psl"

    def train_round(self, this: Round) -> torch.Tensor | float:
        """Train all clients at once."""
        losses = []
        for k in range(self.steps):
            clients = this.devices.present
            weights = self.weights[clients]
            weights = weights if len(clients) == len(self.weights) else normalised(weights)
            losses.append(self.train_clients(clients, weights, k, this))
        return sum(losses) / self.steps
