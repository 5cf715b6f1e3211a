"""The band in whole resource blocks: the least deadline that whole numbers of blocks can meet, exactly.

The number of blocks with which a device meets a deadline only falls when the deadline moves back, so bisection finds
the optimum's neighbourhood; it ends when no allocation is left that would be earlier. Source: ours [B]; EdgeSplit
(arXiv 2403.15815) shares bandwidth continuously.
"""

from collections.abc import Callable

import numpy as np

_TIE = 1e-12  # relative; times that differ by less are equal up to rounding


def share_blocks(
    bandwidth_for: Callable, times: Callable, start: np.ndarray, below: float, n_blocks: int, width: float
) -> np.ndarray:
    """Return (N,) whole numbers of blocks, each at least 1, whose largest device time is as small as any can be.

    Args:
        bandwidth_for: deadline → (N,) least Hz with which each device meets it, inf where none is enough.
        times: (N,) Hz → (N,) seconds of each device.
        start: (N,) blocks of some allocation.
        below: s, a deadline known to be no later than the optimum, such as that of a continuous band.
        n_blocks: in the band, at least N.
        width: of a block, Hz.
    """
    counts = start
    above = float(times(counts * width).max())
    while above > np.finfo(float).tiny:  # nothing beats a round of no time, and no smaller number has all its digits
        near = above - below <= 4 * _TIE * above
        deadline = above * (1 - _TIE) if near else (above + below) / 2
        trial = np.maximum(np.ceil(bandwidth_for(deadline) / width * (1 - _TIE)), 1.0)
        if near:  # here it matters that rounding took no block too many and none too few
            trial = _least(times, trial, deadline, width)
        if trial.sum() > n_blocks:
            if near:
                break  # every earlier deadline needs more blocks than there are: proven
            below = deadline
        else:
            counts = trial
            above = min(deadline, float(times(counts * width).max())) if near else deadline
    return deal_rest(counts, times, n_blocks, width)


def _least(times, counts, deadline, width):
    """Correct numbers of blocks that rounding may have put off by one: the least that meet the deadline."""
    if not np.isfinite(counts).all():
        return counts
    counts = counts + (times(counts * width) > deadline)
    fewer = np.maximum(counts - 1, 1.0)
    return np.where(times(fewer * width) <= deadline, fewer, counts)


def deal_rest(counts: np.ndarray, times: Callable, n_blocks: int, width: float) -> np.ndarray:
    """Return the allocation with the blocks that are left dealt out, the slowest devices first."""
    each, more = divmod(int(n_blocks - counts.sum()), len(counts))
    slowest = np.argsort(-times(counts * width), kind="stable")[:more]
    counts = counts + each
    counts[slowest] += 1
    return counts
