"""Plans and bounds against exhaustive search over every cut and assignment of small cells."""

import numpy as np
import pytest

from epsl_scenarios import random_cell, random_profile
from oracles import exhaustive
from psl.schedulers import epsl


def small_scenario(seed):
    """Return (profile, cell, φ): 1–3 clients, 4–6 subchannels or as many as clients; all regimes of power and speed."""
    rng = np.random.default_rng(seed)
    n_clients = int(rng.choice([1, 2, 3], p=[0.1, 0.45, 0.45]))
    m = n_clients if rng.random() < 0.15 else int(rng.integers(4, 7))
    phi = float(rng.choice([0.0, 0.3, 0.5, 1.0]))
    return random_profile(rng), random_cell(rng, n_clients, m), phi


@pytest.mark.parametrize("block", range(4))
def test_search_finds_and_bounds_the_optimum(block):
    excess = []
    for seed in range(25 * block, 25 * block + 25):
        profile, cell, phi = small_scenario(seed)
        optimum, _, _ = exhaustive(profile, cell, 16, phi)
        plan = epsl.solve(profile, cell, batch_size=16, phi=phi)
        assert plan.lower_bound <= optimum * (1 + 1e-8), f"seed {seed}: the bound is above the optimum"
        assert plan.round_time >= optimum * (1 - 1e-8), f"seed {seed}: better than the optimum, so wrong"
        excess.append(plan.round_time / optimum - 1)
    assert np.quantile(excess, 0.99) <= 0.01, f"seeds {25 * block}..{25 * block + 24}: {np.sort(excess)[-3:]}"


def test_every_method_lies_between_bound_and_nothing():
    for seed in range(200, 206):
        profile, cell, phi = small_scenario(seed)
        optimum, _, _ = exhaustive(profile, cell, 16, phi)
        for method in epsl.METHODS:
            plan = epsl.solve(profile, cell, batch_size=16, phi=phi, method=method)
            assert plan.lower_bound <= optimum * (1 + 1e-8), f"seed {seed}, {method}"
            assert plan.round_time >= optimum * (1 - 1e-8), f"seed {seed}, {method}"
