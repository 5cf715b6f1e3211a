"""The global optimum over cuts and bandwidth.

Device i meets a deadline T with w_i(T) = min_j D(j) / (e_i (T − c_i(j))) Hz at least, over the cuts it holds with
c_i(j) < T; so T can be met if and only if Σ w_i(T) ≤ W. Nothing is lost by choosing the cuts device by device.
In a small cluster the cuts are found by trying all of them, where this saves the constant cost of envelopes; from some
thousands of devices on by envelopes, which is where the method wins most over trying every cut.
Source: ours [B], for the problem of EdgeSplit (arXiv 2403.15815) [P].
"""

import numpy as np

from psl.schedulers.edgesplit.bandwidth import share_band
from psl.schedulers.edgesplit.problem import EdgeSplitProblem
from psl.schedulers.edgesplit.resource_blocks import share_blocks


def best_split(problem: EdgeSplitProblem, report=None) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (N,) cuts, (N,) Hz and the optimal round time, seconds: bandwidth continuous or in whole blocks.

    Args:
        problem: the joint problem.
        report: called with a dict for the history after every improvement.
    """
    report = report or (lambda event: None)
    cuts, bandwidth, deadline = best_continuous(problem, report)
    if problem.block is None:
        return cuts, bandwidth, deadline
    # No allocation of whole blocks is earlier than the continuous optimum.
    cuts, bandwidth = best_blocks(problem, deadline)
    deadline = float(problem.times(cuts, bandwidth).max())
    report({"step": 0, "round_time": deadline})
    return cuts, bandwidth, deadline


def best_continuous(problem: EdgeSplitProblem, report) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (N,) cuts, (N,) Hz and the optimal round time, seconds, for bandwidth that can be shared in any parts.

    Policy iteration: the cuts that need least bandwidth at T, then the least T for these cuts, until T stays. Every T
    is the optimum for some cuts, hence no less than the optimum; and it falls until the cuts that need least at T need
    the whole band, when no earlier T can be met: as a rule 3 or 4 rounds.
    """
    cuts = problem.best_cuts(problem.total / problem.n_devices)
    bandwidth, deadline = _share(problem, cuts)
    if problem.silent:
        cuts, optimum = _after_silence(problem, cuts, deadline)
        bandwidth, deadline = _share(problem, cuts)
        if optimum is not None:
            report({"step": 0, "round_time": optimum})
            return cuts, bandwidth, optimum
    for step in range(1_000):
        # In whole blocks this is a bound, not a plan: nothing to report.
        if problem.block is None:
            report({"step": step, "round_time": deadline})
        trial = problem.frugal_cuts(deadline)
        if np.array_equal(trial, cuts):
            break
        share, earlier = _share(problem, trial)
        if not earlier < deadline * (1 - 1e-15):
            break
        cuts, bandwidth, deadline = trial, share, earlier
    return cuts, bandwidth, deadline


def _share(problem, cuts):
    return share_band(problem.compute(cuts), problem.load(cuts), problem.total)


def _after_silence(problem, cuts, deadline):
    """Return cuts to start from where cuts without bits exist, and the optimal round time if they are optimal.

    A device needs no bandwidth at all from the time z_i on that it takes with a cut without bits. Between two of these
    times the needs are continuous, which is what policy iteration takes for granted; so find the first z_i that can be
    met, and begin just before it.
    """
    moments = np.unique(problem.silent_cuts[1])
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
        return problem.frugal_cuts(moments[low]), float(moments[low])
    return problem.frugal_cuts(before), None


def best_blocks(problem: EdgeSplitProblem, below: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) cuts and (N,) Hz in whole resource blocks whose round time no other allocation beats.

    Args:
        problem: the joint problem.
        below: s, a deadline known to be no later than the optimum.
    """

    def bandwidth_for(deadline):
        return problem.bandwidth_for(problem.frugal_cuts(deadline), deadline)

    def times(bandwidth):
        return problem.times(problem.best_cuts(bandwidth), bandwidth)

    start = np.rint(problem.even_bandwidth() / problem.block)
    counts = share_blocks(bandwidth_for, times, start, below, problem.n_blocks, problem.block)
    bandwidth = counts * problem.block
    return problem.best_cuts(bandwidth), bandwidth


def best_bandwidth(problem: EdgeSplitProblem, cuts: np.ndarray) -> np.ndarray:
    """Return (N,) Hz, continuous or in whole blocks, that make the round with these cuts as short as possible."""
    bandwidth, below = _share(problem, cuts)
    if problem.block is None:
        return bandwidth
    counts = share_blocks(
        lambda deadline: problem.bandwidth_for(cuts, deadline),
        lambda bandwidth: problem.times(cuts, bandwidth),
        np.rint(problem.even_bandwidth() / problem.block),
        below,
        problem.n_blocks,
        problem.block,
    )
    return counts * problem.block
