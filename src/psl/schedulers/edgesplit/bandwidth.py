"""The band shared among devices whose cuts are fixed: the least deadline that all of them can meet."""

import numpy as np

_ROUNDING = 1e-13  # relative, of sums over very many devices


def share_band(compute: np.ndarray, load: np.ndarray, total: float) -> tuple[np.ndarray, float]:
    """Return (N,) Hz that let all devices end together as early as possible, and that time, seconds.

    It is the least T with Σ load_i / (T − compute_i) ≤ total and every compute_i ≤ T; the whole band is given away.

    Args:
        compute: (N,) c_i, s.
        load: (N,) q_i = D_i / e_i, Hz s; devices that send nothing need no bandwidth, and may end earlier or later.
        total: W, Hz.

    Source: equal round times at the optimum, EdgeSplit (arXiv 2403.15815) [R]; Newton instead of bisection [B].
    """
    sends = load > 0
    if sends.all():
        return _meet(compute, load, total)
    if not sends.any():
        return np.full(len(load), total / len(load)), float(compute.max())
    shares = np.zeros(len(load))
    shares[sends], deadline = _meet(compute[sends], load[sends], total)
    return shares, max(deadline, float(compute.max()))


def _meet(c, q, total):
    """Return the bandwidths and the deadline of devices that all have something to send.

    Newton's method on the reciprocal of the sum. Its terms (T − c_i) / q_i are straight lines and their parallel sum
    is concave and rises, so that from a start below the root every step goes up and none beyond it: as a rule 3 to 6.
    The unknown is τ = T − max c_i, which keeps its digits when the band is so wide that T is nearly max c_i.
    """
    last = float(c.max())
    slack = last - c  # (n,) seconds by which a device computes faster than the slowest one
    # Two bounds from below: each device with the whole band for itself; all loads at their mean slack (Jensen).
    tau = max(float((q / total - slack).max()), float(q.sum() / total - (q * slack).sum() / q.sum()))
    pace, share = np.empty_like(q), np.empty_like(q)  # written again and again: fresh memory costs more than sums
    for _ in range(200):
        np.divide(1.0, np.add(slack, tau, out=pace), out=pace)
        need = float(np.multiply(q, pace, out=share).sum())
        if need <= total * (1 + _ROUNDING):
            break
        pace *= share
        tau += need * (need / total - 1.0) / float(pace.sum())  # no dot product: BLAS would wake its threads
    share *= total / need
    return share, last + tau
