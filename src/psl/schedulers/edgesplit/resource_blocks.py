"""The band in whole resource blocks: the least deadline that whole numbers of blocks can meet, exactly.

A later deadline never needs more blocks. So bisection finds the optimum's neighbourhood; it ends when no allocation is
left that would be earlier. Source: ours [B]; EdgeSplit (arXiv 2403.15815) shares bandwidth continuously.
"""

import numpy as np

from psl.schedulers.edgesplit.problem import EdgeSplitProblem

_TIE = 1e-12  # relative; times that differ by less are equal up to rounding, which is about 1e-15 per operation


def share_blocks(
    problem: EdgeSplitProblem, block: float, below: float, cuts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) cuts and (N,) Hz in whole blocks, at least one each, whose round time no other allocation beats.

    Args:
        problem: the joint problem.
        block: its `block`, the width in Hz.
        below: s, a deadline known to be no later than the optimum, such as that of a continuous band.
        cuts: (N,) given cuts; None lets every device use its best cut for its blocks.
    """

    def times(counts: np.ndarray) -> np.ndarray:
        bandwidth = counts * block
        return problem.times(problem.best_cuts(bandwidth) if cuts is None else cuts, bandwidth)

    def needed(deadline: float) -> np.ndarray:
        chosen = problem.min_bandwidth_cuts(deadline) if cuts is None else cuts
        hertz = problem.bandwidth_for(chosen, deadline)
        return np.maximum(np.ceil(hertz / block * (1 - _TIE)), 1.0)

    def corrected(counts: np.ndarray, deadline: float) -> np.ndarray:
        """Return the least counts that meet the deadline: rounding may have put them off by one."""
        if not np.isfinite(counts).all():
            return counts
        counts = counts + (times(counts) > deadline)
        fewer = np.maximum(counts - 1, 1.0)
        return np.where(times(fewer) <= deadline, fewer, counts)

    n_blocks = problem.cluster.n_blocks
    counts = np.rint(problem.even_bandwidth() / block)
    above = float(times(counts).max())
    while above > np.finfo(float).tiny:  # nothing beats a round of no time, and no smaller number has all its digits
        near = above - below <= 4 * _TIE * above
        deadline = above * (1 - _TIE) if near else (above + below) / 2
        trial = needed(deadline)
        if near:
            trial = corrected(trial, deadline)
        if trial.sum() > n_blocks:
            if near:
                break  # every earlier deadline needs more blocks than there are: proven
            below = deadline
        else:
            counts = trial
            above = min(deadline, float(times(counts).max())) if near else deadline

    # The blocks that are left are dealt out, the slowest devices first.
    each, more = divmod(int(n_blocks - counts.sum()), problem.n_devices)
    slowest = np.argsort(-times(counts), kind="stable")[:more]
    counts = counts + each
    counts[slowest] += 1
    bandwidth = counts * block
    return problem.best_cuts(bandwidth) if cuts is None else cuts, bandwidth
