"""Bisection on the round time with every cut of every device tried: simple, slow, the reference of "exact"."""

import numpy as np

from psl.schedulers.edgesplit.bandwidth import share_band
from psl.schedulers.edgesplit.enumeration import EnumeratedProblem
from psl.schedulers.edgesplit.problem import Report
from psl.schedulers.edgesplit.resource_blocks import share_blocks


def bisection(problem: EnumeratedProblem, report: Report) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) cuts and (N,) Hz of the optimum, continuous or in whole blocks, by bisection."""
    if problem.block is not None:
        cuts, bandwidth = share_blocks(problem, problem.block, float(problem.table.min(axis=0).max()))
        report({"step": 0, "round_time": float(problem.times(cuts, bandwidth).max())})
        return cuts, bandwidth
    cuts = problem.min_bandwidth_cuts(bisect_deadline(problem, report=report))
    return cuts, share_band(problem.compute(cuts), problem.load(cuts), problem.total)[0]


def bisect_deadline(problem: EnumeratedProblem, tolerance: float = 1e-12, report: Report | None = None) -> float:
    """Return a round time, seconds, that can be met and is within a relative tolerance of the optimum.

    Args:
        problem: the joint problem, bandwidth continuous.
        tolerance: relative, of the deadline.
        report: called with step and round time for every deadline found to be met.
    """
    even = problem.total / problem.n_devices
    above = float(problem.times(problem.best_cuts(even), even).max())
    below = float(problem.table.min(axis=0).max())
    for step in range(200):
        if above - below <= tolerance * above:
            break
        middle = (above + below) / 2
        if problem.least_bandwidth(middle).sum() <= problem.total:
            above = middle
            if report:
                report({"step": step, "round_time": above})
        else:
            below = middle
    return above
