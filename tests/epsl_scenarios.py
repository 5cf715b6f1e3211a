"""Random profiles and cells for the scheduler's tests: heavy tails, unequal widths, tight and slack power."""

import numpy as np

from psl.networks.wireless_cell import WirelessCell
from psl.profiles import Profile


def random_profile(rng, n_units=4, bits=None) -> Profile:
    """Return a profile with log-normal costs; `bits` overrides the size of every activation."""
    forward = np.concatenate([[0.0], np.cumsum(rng.lognormal(20, 1, n_units))])
    backward = forward * rng.uniform(1.4, 2.0)
    activation = rng.lognormal(14.5, 1.2, n_units + 1) if bits is None else np.full(n_units + 1, bits)
    return Profile(
        names=["input", *(f"unit{j}" for j in range(1, n_units)), "output"],
        fwd_cost=forward,
        bwd_cost=backward,
        act_bits=activation,
        grad_bits=activation * rng.choice([0.5, 1.0]),
        param_bits=np.concatenate([[0.0], np.cumsum(rng.lognormal(15, 1, n_units))]),
        act_memory=np.concatenate([[0.0], np.cumsum(activation[1:])]),
        last_bwd_cost=(backward[-1] - backward[-2]) * rng.choice([0.5, 1.0]),
    )


def random_cell(rng, n_clients, n_subchannels, total_dbm=None, unequal=None, speed=None) -> WirelessCell:
    """Return a cell with path loss, log-normal shadowing and Rayleigh fading per subchannel."""
    base = WirelessCell.sample(n_clients, n_subchannels, seed=int(rng.integers(2**31)), channel="log-distance")
    shadowing = 10 ** (0.8 * rng.normal(size=(n_clients, 1)))
    fading = rng.exponential(size=(n_clients, n_subchannels))
    total_dbm = rng.choice([20.0, 30.0, 37.0, 40.0]) if total_dbm is None else total_dbm
    unequal = rng.random() < 0.5 if unequal is None else unequal
    speed = rng.choice([1.0, 10.0, 100.0]) if speed is None else speed  # fast machines: communication dominates
    return WirelessCell(
        client_speed=base.client_speed * speed,
        server_speed=base.server_speed * speed,
        uplink_gain=base.uplink_gain * shadowing * fading,
        bandwidth=base.bandwidth * (rng.uniform(0.3, 2.0, n_subchannels) if unequal else 1.0),
        noise_psd=base.noise_psd,
        client_power=base.client_power * rng.uniform(0.3, 2.0, n_clients),
        total_power=10 ** (total_dbm / 10 - 3),
        downlink_psd=base.downlink_psd * rng.choice([0.01, 1.0, 100.0]),
    )
