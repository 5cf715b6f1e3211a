"""The power step: for fixed subchannels and cut, the smallest uplink deadline, exactly.

With the rate a deadline asks of each client, its least power is water-filling over its subchannels. The clients' own
limits give a first deadline. If the least total power at that deadline is within the cell's limit, it is the answer.
Otherwise Newton's method follows: the least total power is convex and decreasing in the deadline, so the steps
approach the answer monotonically from below, and every step is a lower bound.

Source: EPSL (arXiv 2303.15991) optimises power jointly [P]; this algorithm is ours [R]. CVXPY is the test oracle.
"""

import numpy as np

from psl.networks.wireless_cell import shannon_rate
from psl.schedulers.checks import seconds
from psl.schedulers.epsl.problem import RoundProblem
from psl.schedulers.epsl.water_filling import fill, least_power

_LEAST = 1e-7  # of a client's highest rate: a lower rate is lost in rounding, and its power is next to nothing


class PowerStep:
    """The power step for one assignment at one cut, and its result.

    Attributes:
        deadline: U, seconds.
        limits: (N,) deadline each client could meet alone with its own power limit, s.
        need, slope: (N,) least power at U, W, and −d need / d U, W/s.
        density: (K,) transmit power density, W/Hz.
        filled: (K,) whether a subchannel carries power when its client spends its own limit.
    """

    __slots__ = ("deadline", "density", "filled", "limits", "need", "slope")

    def __init__(self, problem: RoundProblem, cut: int, assignment: np.ndarray):
        compute, bits = problem.up_compute[cut], problem.up_bits[cut]
        bandwidth, snr = problem.bandwidth, problem.snr[assignment, np.arange(len(assignment))]
        if bits == 0:
            self.limits, self.deadline = compute, float(compute.max())
            self.need, self.slope = np.zeros(len(compute)), np.zeros(len(compute))
            self.density, self.filled = np.zeros(len(assignment)), np.ones(len(assignment), dtype=bool)
            return
        most, self.filled = fill(problem.limit, assignment, snr, bandwidth)
        self.limits = compute + bits / most
        deadline = float(self.limits.max())
        for _ in range(200):
            rate = np.clip(bits / np.maximum(deadline - compute, bits / most), _LEAST * most, most)
            need, price, density = least_power(rate, assignment, snr, bandwidth)
            slope = np.where(rate > _LEAST * most, price * rate * rate / bits, 0.0)
            excess = float(need.sum()) - problem.total
            if excess <= max(1e-13 * problem.total, 1e-15 * deadline * float(slope.sum())):
                break
            deadline += excess / float(slope.sum())
        self.deadline, self.need, self.slope, self.density = deadline, need, slope, density


def optimal_power(problem: RoundProblem, cut: int, assignment: np.ndarray) -> np.ndarray:
    """Return (K,) W/Hz, the optimal transmit densities for given subchannels; limits hold but for rounding."""
    step = PowerStep(problem, cut, assignment)
    density, excess = step.density, step.need.sum() - problem.total
    if excess > 0:
        # Close to a client's compute time, the last bit of the deadline changes the power by much. Each client gives
        # up power in proportion to its slope, as if the deadline lay between two floating-point numbers.
        density = density * np.maximum(1 - excess * step.slope / step.slope.sum() / step.need, 0.0)[assignment]
    return within_limits(problem, assignment, density)


def within_limits(problem: RoundProblem, assignment: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Return (K,) W/Hz, scaled down by what they exceed a limit by through rounding."""
    spent = np.bincount(assignment, density * problem.bandwidth, problem.n_clients)
    return density / max(float((spent / problem.limit).max()), spent.sum() / problem.total, 1.0)


def uniform_power(problem: RoundProblem, assignment: np.ndarray) -> np.ndarray:
    """Return (K,) W/Hz when every client spreads an equal share of power evenly over its subchannels."""
    share = np.minimum(problem.limit, problem.total / problem.n_clients)
    return (share / np.bincount(assignment, problem.bandwidth, problem.n_clients))[assignment]


def uplink_time(problem: RoundProblem, cut: int, assignment: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Return (N,) seconds of client forward and upload for given subchannels and power."""
    snr = problem.snr[assignment, np.arange(len(assignment))]
    # WirelessCell.uplink_rate, from the signal-to-noise ratios at hand: the methods ask often.
    rate = np.bincount(assignment, shannon_rate(problem.bandwidth, density * snr), problem.n_clients)
    return problem.up_compute[cut] + seconds(problem.up_bits[cut], rate)


def round_time(problem: RoundProblem, cut: int, assignment: np.ndarray, density: np.ndarray | None = None) -> float:
    """Return T, s, for given cut and subchannels, with the given power or (None) the optimal one."""
    if density is None:
        uplink = PowerStep(problem, cut, assignment).deadline
    else:
        uplink = float(uplink_time(problem, cut, assignment, density).max())
    return uplink + float(problem.downlink_time(cut, assignment).max() + problem.constant[cut])
