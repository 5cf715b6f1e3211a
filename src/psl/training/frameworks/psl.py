"""Parallel split learning: all clients at once, with one server-side model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from psl.training.frameworks.base import Round
from psl.training.frameworks.micro_batched import micro_batched_step, weighted
from psl.training.frameworks.resampled_server import resampled_step
from psl.training.frameworks.split_step import ServerGradients, SplitFramework, normalised, server_step


class PSL(SplitFramework):
    """Each client has its own client-side model. The server steps on Σ_i λ_i ℓ̄_i, client i on its own ℓ̄_i.

    Two ideas of later papers are options of it:

    * ``sampling="global"``: the mini-batch of N b samples is drawn from the data of all clients together. Client i has
      b_i of them, by chance; without any it misses the round. λ_i is b_i / (N b). With equal client-side models
      the gradient is that of centralised training. Source: global sampling, GPSL (arXiv 2407.15738) [R].
    * ``server_steps``: the server steps first, on resampled activations, and answers the clients afterwards
      (`psl.training.frameworks.resampled_server`). Source: CycleSL (arXiv 2511.18611) [R].

    With ``micro_batch`` mini-batches go through in parts (`psl.training.frameworks.micro_batched`): the same gradient.

    Source: EPSL (arXiv 2303.15991) with φ = 0 [R].
    """

    name = "psl"
    u_shaped = True
    micro_batched = True
    slots = False  # whether the server waits for micro-batch k of all clients

    def settings(self) -> dict[str, Any]:
        """Return the arguments that bear on this framework but not on all, by name."""
        extra = {"sampling": "own", "server_steps": 0} | ({"micro_batch": None} if self.micro_batched else {})
        changed = {name: getattr(self.config, name) for name in extra if getattr(self.config, name) != extra[name]}
        return super().settings() | changed

    def train_round(self, this: Round) -> torch.Tensor | float:
        """Train all clients at once."""
        losses = []
        for k in range(self.steps):
            clients, weights = this.devices.present, self.weights
            if this.sizes is not None:
                weights = self.rows = this.sizes(k)
                clients = [i for i in clients if self.rows[i]]
            if this.sizes is not None or len(clients) < len(weights):
                weights = normalised(weights[clients])
            losses.append(self.train_clients(clients, weights, k, this))
        return sum(losses) / self.steps

    def train_clients(
        self, clients: Sequence[int], weights: np.ndarray, step: int, this: Round
    ) -> torch.Tensor | float:
        """Train some clients, by number, and the server on one mini-batch each; returns Σ_i λ_i ℓ̄_i."""
        size = self.config.micro_batch
        if size is None or not self.micro_batched:
            return super().train_clients(clients, weights, step, this)

        known = dict(zip(clients, weights, strict=True))

        def serve(
            which: Sequence[int], smashed: list[Any], labels: list[torch.Tensor], share: float, number: int
        ) -> ServerGradients:
            loss = weighted(self.config.loss, share)
            with this.at_server(which[0], number):
                return self.server_gradients(smashed, labels, np.array([known[i] for i in which]), this.rng, loss)

        options: dict[str, Any] = {"batch_size": self.config.batch_size, "size": size, "slots": self.slots}
        options["bits_of"] = None if self.config.defence is None else self.config.defence.bits_of
        return server_step(
            self.optimizers["server"],
            lambda: micro_batched_step(this.devices, clients, step, serve, self.bits, **options),
        )

    def update_server(
        self, smashed: list[Any], labels: list[torch.Tensor], weights: np.ndarray, rng: np.random.Generator
    ) -> ServerGradients:
        """Take the server's part of a step on the rows of some clients with their weights."""
        steps = self.config.server_steps
        if not steps:
            return super().update_server(smashed, labels, weights, rng)
        options = {"steps": steps, "rng": rng, "loss": self.config.loss}
        return resampled_step(self.server, self.optimizers["server"], smashed, labels, weights, **options)
