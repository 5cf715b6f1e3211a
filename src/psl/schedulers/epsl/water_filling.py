"""Water-filling over many groups of subchannels at once: most rate for a power, least power for a rate.

Both start with all subchannels in use and drop those whose floor (1 / SNR) is above the water level. A dropped
subchannel never comes back, so this ends soon: mostly after one round or two. Rates are those of `shannon_rate`, but
written out: one divides whole sums by ln 2, the other works with the logarithm of the level.
"""

import numpy as np

LN2 = float(np.log(2.0))
_NO_SNR = 1e-280  # per W/Hz; too low to carry anything, and its inverse times a width is still finite


def with_floor(snr: np.ndarray) -> np.ndarray:
    """Return signal-to-noise ratios per W/Hz in which 0, a subchannel that cannot be used, is the lowest number."""
    return np.where(snr > 0, snr, _NO_SNR)


def most_rate(limit: np.ndarray, group: np.ndarray, snr: np.ndarray, bandwidth: np.ndarray) -> np.ndarray:
    """Return (n,) bit/s, the most each of n groups of subchannels can carry within its power limit.

    Args:
        limit: (n,) W.
        group: (entries,) group of each subchannel entry; every group has at least one.
        snr: (entries,) signal-to-noise ratio per W/Hz, above 0 (`with_floor`).
        bandwidth: (entries,) Hz.
    """
    return fill(limit, group, snr, bandwidth)[0]


def fill(limit: np.ndarray, group: np.ndarray, snr: np.ndarray, bandwidth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ((n,) bit/s, (entries,) bool): `most_rate`, and which subchannels carry power then."""
    n, used, floor = len(limit), bandwidth, 1.0 / snr
    lowest = np.full(n, np.inf)
    np.minimum.at(lowest, group, floor)
    rise = floor - lowest[group]  # levels are counted from the best floor: exact at the lowest SNR too
    while True:
        level = (limit + np.bincount(group, used * rise, n)) / np.bincount(group, used, n)  # W/Hz
        density = level[group] - rise
        dry = (density < 0) & (used > 0)
        if not dry.any():
            return np.bincount(group, used * np.log1p(np.maximum(density, 0.0) * snr), n) / LN2, used > 0
        used = np.where(dry, 0.0, used)


def least_power(
    rate: np.ndarray, group: np.ndarray, snr: np.ndarray, bandwidth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the least power with which each of n groups of subchannels carries its rate.

    Args:
        rate: (n,) bit/s.
        group, snr, bandwidth: as in `most_rate`.

    Returns:
        ((n,) W, (n,) d power / d rate, (entries,) W/Hz of each entry).
    """
    n, used = len(rate), bandwidth
    best = np.zeros(n)
    np.maximum.at(best, group, snr)
    loss = np.log2(snr / best[group])  # levels in log2 above the best floor
    while True:
        level = (rate - np.bincount(group, used * loss, n)) / np.bincount(group, used, n)
        depth = level[group] + loss
        dry = (depth < 0) & (used > 0)
        if not dry.any():
            break
        used = np.where(dry, 0.0, used)
    level = np.minimum(level, 500.0)  # a rate out of reach needs a huge power, but a finite one
    density = np.expm1(LN2 * np.clip(depth, 0.0, 500.0)) / snr * (used > 0)
    return np.bincount(group, bandwidth * density, n), LN2 * np.exp2(level) / best, density
