"""Profiles of models that train in part: frozen first units, or small adapters beside frozen weights."""

import dataclasses

import numpy as np

from psl.profiles import Profile


def train_in_part(profile, rng) -> Profile:
    """Return the profile with its first units frozen; by chance, of what is left only a small share trains.

    Before the first weight that trains there is no backward pass, no gradient comes back, and nothing is exchanged.
    Memory holds all weights, and gradients and optimizer state of those that train.
    """
    frozen = int(rng.integers(1, profile.n_units))
    behind = lambda values: np.maximum(values - values[frozen], 0.0)  # noqa: E731
    trains = behind(profile.param_bits) * (0.01 if rng.random() < 0.5 else 1.0)
    backward = behind(profile.bwd_cost)
    return dataclasses.replace(
        profile,
        bwd_cost=backward,
        grad_bits=profile.grad_bits * (np.arange(len(profile.names)) > frozen),
        param_bits=trains,
        param_memory=profile.param_bits / 8 + 2 * trains / 8,
        last_bwd_cost=min(profile.last_bwd_cost, backward[-1] - backward[-2]),
    )
