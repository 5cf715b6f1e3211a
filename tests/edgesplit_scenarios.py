"""Random clusters for the tests of EdgeSplit: computing and communication of like size, memory tight or not."""

import numpy as np

from epsl_scenarios import random_profile
from psl.networks.edge_cluster import EdgeCluster
from psl.profiles import Profile

BATCH, STEPS = 16, 3


def random_cluster(rng, profile, n_devices, blocks=None, memory=None) -> EdgeCluster:
    """Return a cluster whose band is neither hopeless nor plenty; `blocks` is the number of resource blocks in it.

    With `memory` (else by chance) some devices do not hold the whole model; all hold the first unit.
    """
    speed = rng.lognormal(25, rng.choice([0.3, 1.0, 2.0]), n_devices)
    efficiency = rng.uniform(0.3, 6, n_devices)
    work = BATCH * STEPS * (profile.fwd_cost + profile.bwd_cost)[-1]
    bits = np.median(BATCH * STEPS * (profile.act_bits + profile.grad_bits)[:-1] + 2 * profile.param_bits[1:])
    server = np.median(speed) * n_devices * 10 ** rng.uniform(-0.5, 2)
    bandwidth = (bits / efficiency).sum() / np.median(work / speed) * 10 ** rng.uniform(-1, 1.5)
    need = 3 * profile.param_bits / 8 + BATCH * profile.act_memory
    tight = rng.random() < 0.5 if memory is None else memory
    limit = need[1] + (need[-1] - need[1]) * rng.uniform(0, 1.5, n_devices) if tight else np.inf
    width = None if blocks is None else bandwidth / blocks
    return EdgeCluster(speed, limit, efficiency, bandwidth, server, resource_block=width)


def random_case(seed, n_units=(1, 8), n_devices=(1, 12), blocks_per_device=None, memory=None):
    """Return (profile, cluster) of a seed; sizes are drawn from ranges (lowest, highest)."""
    rng = np.random.default_rng(seed)
    profile = random_profile(rng, int(rng.integers(n_units[0], n_units[1] + 1)))
    n = int(rng.integers(n_devices[0], n_devices[1] + 1))
    blocks = None
    if blocks_per_device is not None:
        blocks = max(n, round(n * rng.uniform(*blocks_per_device)))
    return profile, random_cluster(rng, profile, n, blocks, memory)


def measured(profile, forward, backward) -> Profile:
    """Return the measured profile of a device that takes these seconds; its bits must not matter."""
    return Profile.measured(profile.names, forward, backward, np.ones(len(profile.names)))
