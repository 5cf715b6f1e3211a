"""The band shared among devices whose cuts are fixed: the least deadline that all of them can meet."""

import numpy as np

from psl.schedulers.edgesplit.problem import EdgeSplitProblem
from psl.schedulers.edgesplit.resource_blocks import share_blocks

_ROUNDING = 1e-13  # relative, of sums over 100,000 devices and more; 1e-16 per addition, pairwise
_MAX_STEPS = 200  # of Newton's method; as a rule 3 to 6


def best_bandwidth(problem: EdgeSplitProblem, cuts: np.ndarray) -> np.ndarray:
    """Return (N,) Hz, continuous or in whole blocks, that make the round with these cuts as short as possible."""
    bandwidth, deadline = share_band(problem.compute(cuts), problem.load(cuts), problem.total)
    if problem.block is None:
        return bandwidth
    return share_blocks(problem, problem.block, deadline, cuts)[1]


def share_band(compute: np.ndarray, load: np.ndarray, total: float) -> tuple[np.ndarray, float]:
    """Return (N,) Hz that let all devices end together as early as possible, and that time, seconds.

    It is the least T with Σ load_i / (T − compute_i) ≤ total and every compute_i ≤ T; the whole band is given away.

    Args:
        compute: (N,) c_i, s.
        load: (N,) D_i / e_i, Hz s; devices that send nothing need no bandwidth, and may end earlier or later.
        total: W, Hz.

    Source: equal round times at the optimum, EdgeSplit (arXiv 2403.15815) [R]; Newton instead of bisection [B].
    """
    sends = load > 0
    if sends.all():
        return _end_together(compute, load, total)
    if not sends.any():
        return np.full(len(load), total / len(load)), float(compute.max())
    shares = np.zeros(len(load))
    shares[sends], deadline = _end_together(compute[sends], load[sends], total)
    return shares, max(deadline, float(compute.max()))


def _end_together(c: np.ndarray, q: np.ndarray, total: float) -> tuple[np.ndarray, float]:
    """Return the bandwidths and the deadline of devices that all have something to send.

    Newton's method on the reciprocal of the sum. Its terms (T − c_i) e_i / D_i are straight lines; the reciprocal of
    the sum of their reciprocals is concave and rises. So from a start below the root every step goes up and none beyond
    it.
    The unknown is τ = T − max c_i, which keeps its digits when the band is so wide that T is nearly max c_i.
    """
    last = float(c.max())
    slack = last - c  # (n,) seconds by which a device computes faster than the slowest one
    # Two bounds from below: each device with the whole band for itself; all loads at their mean slack (Jensen).
    tau = max(float((q / total - slack).max()), float(q.sum() / total - (q * slack).sum() / q.sum()))
    inverse, share = np.empty_like(q), np.empty_like(q)  # reused in every step: fresh memory costs more than sums
    for _ in range(_MAX_STEPS):
        np.divide(1.0, np.add(slack, tau, out=inverse), out=inverse)
        need = float(np.multiply(q, inverse, out=share).sum())
        if need <= total * (1 + _ROUNDING):
            break
        inverse *= share
        tau += need * (need / total - 1.0) / float(inverse.sum())  # no dot product: BLAS would wake its threads
    share *= total / need
    return share, last + tau
