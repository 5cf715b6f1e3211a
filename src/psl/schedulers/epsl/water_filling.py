"""Water-filling over many groups of subchannels at once: most rate for a power, least power for a rate.

Both start with all subchannels in use and drop those whose water level misses their floor. Dropping never brings one
back, so this ends after as many rounds as the deepest group has subchannels to drop: mostly none or one.
"""

import numpy as np

LN2 = float(np.log(2.0))
_EDGE = 1e-12  # a subchannel whose water level misses its floor by rounding alone stays in


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
    while True:
        level = (limit + np.bincount(owner, used * floor, n)) / np.bincount(owner, used, n)  # W/Hz
        ratio = level[owner] * snr
        dry = (ratio < 1 - _EDGE) & (used > 0)
        if not dry.any():
            return np.bincount(owner, used * np.log2(np.maximum(ratio, 1.0)), n), used > 0
        used = np.where(dry, 0.0, used)


def least_power(rate, owner, log_snr, bandwidth):
    """Return the least power with which each of n groups of subchannels carries its rate.

    Args:
        rate: (n,) bit/s.
        owner, bandwidth: as in `most_rate`.
        log_snr: (K,) log2 of the signal-to-noise ratio per W/Hz.

    Returns:
        ((n,) W, (n,) d power / d rate, (K,) W/Hz of each entry).
    """
    n, used = len(rate), bandwidth
    while True:
        level = (rate - np.bincount(owner, used * log_snr, n)) / np.bincount(owner, used, n)  # log2 of W/Hz
        depth = level[owner] + log_snr
        dry = (depth < -_EDGE) & (used > 0)
        if not dry.any():
            break
        used = np.where(dry, 0.0, used)
    level = np.minimum(level, 900.0)  # hopeless rates: huge, but finite
    density = np.expm1(LN2 * np.clip(depth, 0.0, 900.0)) * np.exp2(-log_snr) * (used > 0)
    return np.bincount(owner, bandwidth * density, n), LN2 * np.exp2(level), density
