"""The power step: for fixed channels and cut, the smallest uplink deadline, exactly.

With the rate a deadline asks of each client, its least power is water-filling over its subchannels. The clients' own
limits give a first deadline; if the least total power at that deadline is within the cell's limit, nothing is left
to do. Otherwise total power is convex and decreasing in the deadline, so Newton's steps approach the answer
monotonically from below, and every step is a lower bound.

Source: EPSL (arXiv 2303.15991) optimises power jointly [P]; this algorithm is ours [R]. CVXPY is the test oracle.
"""

import numpy as np

from psl.schedulers.checks import seconds
from psl.schedulers.epsl.problem import RoundProblem
from psl.schedulers.epsl.water_filling import LN2, fill, least_power

_LEAST = 1e-7  # of the most a client can carry: a lower rate drowns in rounding, and costs nothing anyway


class PowerStep:
    """Result of the power step for one assignment at one cut.

    Attributes:
        deadline: U, seconds.
        limits: (C,) deadline each client could meet alone with its own power limit, s.
        need, slope: (C,) least power at U, W, and −d need / d U, W/s.
        density: (M,) transmit power density, W/Hz.
        filled: (M,) whether a subchannel carries power when its client spends its own limit.
    """

    __slots__ = ("deadline", "density", "filled", "limits", "need", "slope")

    def __init__(self, problem: RoundProblem, cut: int, owner: np.ndarray):
        compute, bits = problem.up_compute[cut], problem.up_bits[cut]
        channel = np.arange(len(owner))
        bandwidth, snr = problem.bandwidth, problem.snr[owner, channel]
        if bits == 0:
            self.limits, self.deadline = compute, float(compute.max())
            self.need, self.slope = np.zeros(len(compute)), np.zeros(len(compute))
            self.density, self.filled = np.zeros(len(owner)), np.ones(len(owner), dtype=bool)
            return
        most, self.filled = fill(problem.limit, owner, snr, bandwidth)
        self.limits = compute + bits / most
        deadline = float(self.limits.max())
        for _ in range(200):
            rate = np.clip(bits / np.maximum(deadline - compute, bits / most), _LEAST * most, most)
            need, price, density = least_power(rate, owner, snr, bandwidth)
            slope = np.where(rate > _LEAST * most, price * rate * rate / bits, 0.0)
            excess = float(need.sum()) - problem.total
            if excess <= max(1e-13 * problem.total, 1e-15 * deadline * float(slope.sum())):
                break
            deadline += excess / float(slope.sum())
        self.deadline, self.need, self.slope, self.density = deadline, need, slope, density


def optimal_power(problem: RoundProblem, cut: int, owner: np.ndarray) -> np.ndarray:
    """Return (M,) W/Hz, the optimal transmit densities for given channels; limits hold to the last bit or so."""
    step = PowerStep(problem, cut, owner)
    density, excess = step.density, step.need.sum() - problem.total
    if excess > 0:
        # A deadline too close to a client's compute time has no next number: those who gain most from time give way.
        density = density * np.maximum(1 - excess * step.slope / step.slope.sum() / step.need, 0.0)[owner]
    spent = np.bincount(owner, density * problem.bandwidth, problem.n_clients)
    over = max(float((spent / problem.limit).max()), spent.sum() / problem.total, 1.0)
    return density / over


def uniform_power(problem: RoundProblem, owner: np.ndarray) -> np.ndarray:
    """Return (M,) W/Hz when every client spreads an equal share of power evenly over its subchannels."""
    share = np.minimum(problem.limit, problem.total / problem.n_clients)
    return (share / np.bincount(owner, problem.bandwidth, problem.n_clients))[owner]


def uplink_time(problem: RoundProblem, cut: int, owner: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Return (C,) seconds of client forward and upload for given channels and power."""
    snr = problem.snr[owner, np.arange(len(owner))]
    rate = np.bincount(owner, problem.bandwidth * np.log1p(density * snr) / LN2, problem.n_clients)
    return problem.up_compute[cut] + seconds(problem.up_bits[cut], rate)


def round_time(problem: RoundProblem, cut: int, owner: np.ndarray, density: np.ndarray | None = None) -> float:
    """Return T for given cut and channels, with the given power or (None) the optimal one."""
    if density is None:
        uplink = PowerStep(problem, cut, owner).deadline
    else:
        uplink = float(uplink_time(problem, cut, owner, density).max())
    return uplink + float(problem.downlink_time(cut, owner).max() + problem.constant[cut])
