"""The global optimum over cuts and bandwidth.

Device i meets a deadline T with w_i(T) = min_j D(j) / (e_i (T − c_i(j))) Hz at least, over the cuts it holds with
c_i(j) < T; so T can be met if and only if Σ w_i(T) ≤ W. Nothing is lost by choosing the cuts device by device.
In a small cluster all cuts are tried, which saves the constant cost of envelopes. From some thousands of devices on
envelopes find them: there the method wins most over trying every cut.
Source: ours [B], for the problem of EdgeSplit (arXiv 2403.15815) [P].
"""

import numpy as np

from psl.schedulers.edgesplit.bandwidth import share_band
from psl.schedulers.edgesplit.problem import EdgeSplitProblem, Report
from psl.schedulers.edgesplit.resource_blocks import share_blocks

_MAX_ROUNDS = 1_000  # as a rule 3 or 4; the round time falls strictly, so there is an end without it


def best_split(problem: EdgeSplitProblem, report: Report | None = None) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (N,) cuts, (N,) Hz and the optimal round time, seconds: bandwidth continuous or in whole blocks.

    Args:
        problem: the joint problem.
        report: called with a dict for the history after every improvement.
    """
    report = report or (lambda event: None)
    if problem.block is None:
        return best_continuous(problem, report)
    # No allocation of whole blocks is earlier than the continuous optimum, which is a bound here and no plan.
    below = best_continuous(problem, lambda event: None)[2]
    cuts, bandwidth = share_blocks(problem, problem.block, below)
    deadline = float(problem.times(cuts, bandwidth).max())
    report({"step": 0, "round_time": deadline})
    return cuts, bandwidth, deadline


def best_continuous(problem: EdgeSplitProblem, report: Report) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (N,) cuts, (N,) Hz and the optimal round time, seconds, for bandwidth that is divisible at will.

    Policy iteration: the cuts that need least bandwidth at T, then the least T for these cuts, until T stays. Every T
    is the optimum for some cuts, hence no less than the optimum; and it falls until the cuts that need least at T need
    the whole band, when no earlier T can be met.
    """
    cuts = problem.best_cuts(problem.total / problem.n_devices)
    bandwidth, deadline = _share(problem, cuts)
    if problem.has_zero_bit_cuts:
        cuts, optimum = _start_with_zero_bits(problem, cuts, deadline)
        bandwidth, deadline = _share(problem, cuts)
        if optimum is not None:
            report({"step": 0, "round_time": optimum})
            return cuts, bandwidth, optimum
    for step in range(_MAX_ROUNDS):
        report({"step": step, "round_time": deadline})
        trial = problem.min_bandwidth_cuts(deadline)
        if np.array_equal(trial, cuts):
            break
        share, earlier = _share(problem, trial)
        if not earlier < deadline * (1 - 1e-15):
            break
        cuts, bandwidth, deadline = trial, share, earlier
    return cuts, bandwidth, deadline


def _share(problem: EdgeSplitProblem, cuts: np.ndarray) -> tuple[np.ndarray, float]:
    return share_band(problem.compute(cuts), problem.load(cuts), problem.total)


def _start_with_zero_bits(
    problem: EdgeSplitProblem, cuts: np.ndarray, deadline: float
) -> tuple[np.ndarray, float | None]:
    """Return cuts to start from where cuts without bits exist, and the optimal round time if they are optimal.

    A device needs no bandwidth at all from the time z_i on that it takes with a cut without bits. Between two of these
    times the needs are continuous, which policy iteration relies on; so find the first z_i that can be met, and begin
    just before it.
    """
    moments = np.unique(problem.zero_bit_cuts[1])
    moments = moments[moments <= deadline]
    low, high = 0, len(moments)
    while low < high:
        middle = (low + high) // 2
        if problem.meets(moments[middle]):
            high = middle
        else:
            low = middle + 1
    if low == len(moments):
        return cuts, None
    before = float(np.nextafter(moments[low], 0.0))
    if not problem.meets(before):
        return problem.min_bandwidth_cuts(moments[low]), float(moments[low])
    return problem.min_bandwidth_cuts(before), None
