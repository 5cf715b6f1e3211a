"""The published scheduler: cuts for given bandwidth and bandwidth for given cuts, in turn.

With bandwidth in any parts, and cuts that all have something to send, its fixed point is the global optimum [B]: there
every T_i equals T, and no cut of any device needs less bandwidth at T; any earlier deadline needs more of every device,
hence more than the band. It can end above the optimum in whole resource blocks, stopped early, or where a cut sends
nothing: devices with such a cut need no bandwidth, and get none back once it is given away. Compare `plan.lower_bound`.
"""

import numpy as np

from psl.schedulers.edgesplit.bandwidth import best_bandwidth
from psl.schedulers.edgesplit.problem import EdgeSplitProblem, Report

_BETTER = 1e-12  # relative; a cut is left only for one that is faster by more than rounding


def alternate(problem: EdgeSplitProblem, report: Report, max_steps: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) cuts and (N,) Hz of the alternation, started from equal bandwidth.

    One step is both: each device's fastest cut for its bandwidth, by enumeration; then the bandwidth that lets all
    devices end together, or whole blocks that make the slowest as fast as can be. It ends when no cut changes or the
    round becomes no shorter.

    Args:
        problem: the joint problem.
        report: called with a dict after each half of a step: "step", "block" ("cuts" or "bandwidth"), "changed", the
            number of devices whose cut or bandwidth is another one, and "round_time".
        max_steps: stop after so many steps; None goes on until nothing changes.

    Source: EdgeSplit (arXiv 2403.15815) [P]; its two blocks [R].
    """
    bandwidth = problem.even_bandwidth()
    cuts = np.zeros(problem.n_devices, dtype=int)  # none yet: cut 0, the raw input, is never proposed
    best, step = np.inf, 0
    while max_steps is None or step < max_steps:
        step += 1
        proposal = problem.best_cuts(bandwidth)
        if step > 1:
            faster = problem.times(proposal, bandwidth) < problem.times(cuts, bandwidth) * (1 - _BETTER)
            proposal = np.where(faster, proposal, cuts)
            if not (proposal != cuts).any():
                break
        between = min(best, float(problem.times(proposal, bandwidth).max()))
        share = best_bandwidth(problem, proposal)
        reached = float(problem.times(proposal, share).max())
        if not reached < best:
            break
        report({"step": step, "block": "cuts", "changed": int((proposal != cuts).sum()), "round_time": between})
        moved = int((np.abs(share - bandwidth) > _BETTER * bandwidth).sum())
        best = min(between, reached)  # equal up to rounding when the bandwidth was optimal already
        report({"step": step, "block": "bandwidth", "changed": moved, "round_time": best})
        cuts, bandwidth = proposal, share
    return cuts, bandwidth
