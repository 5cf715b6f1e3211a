"""Vanilla split learning: the clients train one after the other."""

import numpy as np
import torch

from psl.training.communication import exchanged
from psl.training.frameworks.base import Round
from psl.training.frameworks.split_step import SplitFramework


class SL(SplitFramework):
    """One client-side model goes from client to client; client and server step on ℓ̄_i after each mini-batch.

    Source: split learning (Gupta and Raskar, arXiv 1810.06060).
    """

    name = "sl"
    one_client_model = True
    u_shaped = True
    waits_for_all = "its clients hand one model on, a missing one stops all"

    def train_round(self, this: Round) -> torch.Tensor | float:
        """Train one client after the other."""
        total = 0.0
        for client, weight in enumerate(self.weights):
            total = total + weight * self.train_clients([client], np.ones(1), 0, this)
            if self.config.n_clients > 1:
                for tensor in exchanged(self.clients[0]):
                    self.bits.down(self.bits.up(tensor))
        return total
