"""Parallel split learning: all clients at once, with one server-side model."""

from typing import Any

import numpy as np
import torch

from psl.training.frameworks.base import Round
from psl.training.frameworks.resampled_server import resampled_step
from psl.training.frameworks.split_step import ServerGradients, SplitFramework


class PSL(SplitFramework):
    """Each client has its own client-side model. The server steps on Σ_i λ_i ℓ̄_i, client i on its own ℓ̄_i.

    Two ideas of later papers are options of it:

    * ``sampling="global"``: the mini-batch of N b samples is drawn from the data of all clients together. Client i has
      b_i of them, by chance; without any it misses the round. λ_i is b_i / (N b). With equal client-side models
      the gradient is that of centralised training. Source: global sampling, GPSL (arXiv 2407.15738) [R].
    * ``server_steps``: the server steps first, on resampled activations, and answers the clients afterwards
      (`psl.training.frameworks.resampled_server`). Source: CycleSL (arXiv 2511.18611) [R].

    Source: EPSL (arXiv 2303.15991) with φ = 0 [R].
    """

    name = "psl"
    u_shaped = True

    def settings(self) -> dict[str, Any]:
        """Return the arguments that bear on this framework but not on all, by name."""
        extra = {"sampling": "own", "server_steps": 0}
        changed = {name: getattr(self.config, name) for name in extra if getattr(self.config, name) != extra[name]}
        return super().settings() | changed

    def train_round(self, this: Round) -> torch.Tensor | float:
        """Train all clients at once."""
        losses = []
        for k in range(self.steps):
            clients, weights = list(range(self.config.n_clients)), self.weights
            if this.sizes is not None:
                self.rows = this.sizes(k)
                clients = np.flatnonzero(self.rows).tolist()
                weights = self.rows[clients] / self.rows.sum()
            losses.append(self.train_clients(clients, weights, k, this))
        return sum(losses) / self.steps

    def update_server(
        self, smashed: list[Any], labels: list[torch.Tensor], weights: np.ndarray, rng: np.random.Generator
    ) -> ServerGradients:
        """Take the server's part of a step on the rows of some clients with their weights."""
        steps = self.config.server_steps
        if not steps:
            return super().update_server(smashed, labels, weights, rng)
        options = {"steps": steps, "rng": rng, "loss": self.config.loss}
        return resampled_step(self.server, self.optimizers["server"], smashed, labels, weights, **options)
