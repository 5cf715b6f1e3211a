"""Parallel split learning: all clients at once, with one server-side model."""

import numpy as np
import torch

from psl.training.frameworks.base import Draw, SeedFor, no_seed
from psl.training.frameworks.split_step import SplitFramework
from psl.training.participation import Attendance


class PSL(SplitFramework):
    """Each client has its own client-side model. The server steps on Σ_i λ_i ℓ̄_i, client i on its own ℓ̄_i.

    Source: EPSL (arXiv 2303.15991) with φ = 0 [R].
    """

    name = "psl"

    def round(
        self, draw: Draw, rng: np.random.Generator, attendance: Attendance | None = None, seed_for: SeedFor = no_seed
    ) -> torch.Tensor | float:
        """Train all clients at once; see `Framework.round`."""
        self.check_participation(attendance)
        clients = range(self.config.n_clients)
        losses = [self.train_clients(clients, self.weights, k, draw, rng, seed_for) for k in range(self.steps)]
        return sum(losses) / self.steps
