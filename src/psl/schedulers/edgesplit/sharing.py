"""The band shared among devices whose cuts are fixed: the least deadline that all of them can meet."""

import numpy as np

_ROUNDING = 1e-14


def shared_deadline(compute: np.ndarray, load: np.ndarray, total: float) -> float:
    """Return the least T, seconds, with Σ load_i / (T − compute_i) ≤ total and every compute_i ≤ T.

    Args:
        compute: (N,) c_i, s.
        load: (N,) q_i = D_i / e_i, Hz s; devices that send nothing need no bandwidth.
        total: W, Hz.

    Source: equal round times at the optimum, EdgeSplit (arXiv 2403.15815) [R]; Newton instead of bisection [B].
    """
    sends = load > 0
    if not sends.any():
        return float(compute.max())
    last, tau, _ = _meet(compute[sends], load[sends], total)
    return max(float(compute.max()), last + tau)


def share_band(compute: np.ndarray, load: np.ndarray, total: float) -> np.ndarray:
    """Return (N,) Hz that add up to the band and let all devices that send end together, as early as possible.

    Args: as in `shared_deadline`.
    """
    sends = load > 0
    if not sends.any():
        return np.full(len(load), total / len(load))
    shares = np.zeros(len(load))
    shares[sends] = _meet(compute[sends], load[sends], total)[2]
    return shares * (total / shares.sum())


def _meet(c, q, total):
    """Return max c, the time τ after it when all meet, and the (n,) bandwidths of that.

    Newton's method on the reciprocal of the sum. Its terms (T − c_i) / q_i are straight lines and their parallel sum
    is concave and rises, so that from a start below the root every step goes up and none beyond it: as a rule 4 to 8.
    The unknown is τ = T − max c_i, which keeps its digits when the band is so wide that T is nearly max c_i.
    """
    last = float(c.max())
    slack = last - c  # (n,) seconds by which a device computes faster than the slowest one
    # Two bounds from below: each device with the whole band for itself; all loads at their mean slack (Jensen).
    tau = max(float((q / total - slack).max()), float(q.sum() / total - q @ slack / q.sum()))
    for _ in range(200):
        pace = 1.0 / (tau + slack)
        share = q * pace
        need = float(share.sum())
        step = need * (need / total - 1.0) / float(share @ pace)
        if need <= total * (1 + _ROUNDING) or tau + step == tau:
            break
        tau += step
    return last, tau, share
