"""Water-filling over many groups of subchannels at once: most rate for a power, least power for a rate.

Both start with all subchannels in use and drop those whose water level misses their floor. Dropping never brings one
back, so this ends after as many rounds as the deepest group has subchannels to drop: mostly none or one.
"""

import numpy as np

LN2 = float(np.log(2.0))


def most_rate(limit, owner, snr, bandwidth):
    """Return (n,) bit/s, the most each of n groups of subchannels can carry within its power limit.

    Args:
        limit: (n,) W.
        owner: (K,) group of each subchannel entry; every group has at least one.
        snr: (K,) signal-to-noise ratio per W/Hz.
        bandwidth: (K,) Hz.
    """
    return fill(limit, owner, snr, bandwidth)[0]


def fill(limit, owner, snr, bandwidth):
    """Return ((n,) bit/s, (K,) bool): `most_rate`, and which subchannels carry power then."""
    n, used, floor = len(limit), bandwidth, 1.0 / snr
    lowest = np.full(n, np.inf)
    np.minimum.at(lowest, owner, floor)
    rise = floor - lowest[owner]  # levels are counted from the best floor: exact at the lowest SNR too
    while True:
        level = (limit + np.bincount(owner, used * rise, n)) / np.bincount(owner, used, n)  # W/Hz
        density = level[owner] - rise
        dry = (density < 0) & (used > 0)
        if not dry.any():
            return np.bincount(owner, used * np.log1p(np.maximum(density, 0.0) * snr), n) / LN2, used > 0
        used = np.where(dry, 0.0, used)


def least_power(rate, owner, snr, bandwidth):
    """Return the least power with which each of n groups of subchannels carries its rate.

    Args:
        rate: (n,) bit/s.
        owner, snr, bandwidth: as in `most_rate`.

    Returns:
        ((n,) W, (n,) d power / d rate, (K,) W/Hz of each entry).
    """
    n, used = len(rate), bandwidth
    best = np.zeros(n)
    np.maximum.at(best, owner, snr)
    loss = np.log2(snr / best[owner])  # levels in log2 above the best floor
    while True:
        level = (rate - np.bincount(owner, used * loss, n)) / np.bincount(owner, used, n)
        depth = level[owner] + loss
        dry = (depth < 0) & (used > 0)
        if not dry.any():
            break
        used = np.where(dry, 0.0, used)
    level = np.minimum(level, 500.0)  # hopeless rates: huge, but finite
    density = np.expm1(LN2 * np.clip(depth, 0.0, 500.0)) / snr * (used > 0)
    return np.bincount(owner, bandwidth * density, n), LN2 * np.exp2(level) / best, density
