"""What EdgeSplit is compared with: the optimiser is left one decision or none.

Source: our reconstruction of the usual comparisons [R].
"""

import numpy as np

from psl.schedulers.edgesplit.bandwidth import best_bandwidth
from psl.schedulers.edgesplit.checks import does_not_fit
from psl.schedulers.edgesplit.problem import EdgeSplitProblem

#: method: what it does.
BASELINES = {
    "fedavg": "every device trains the whole model; equal bandwidth",
    "sfl": "the best cut that is the same for all devices; equal bandwidth",
    "adaptive-equal": "each device's own best cut; equal bandwidth",
    "common-optimal": "the best cut that is the same for all devices; optimal bandwidth",
}


def baseline(problem: EdgeSplitProblem, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) cuts and (N,) Hz of a baseline, a key of `BASELINES`.

    Common cuts are those that every device holds in memory, the whole model among them.

    Raises:
        InfeasibleError: for "fedavg", a device does not hold the whole model; no common cut is allowed to all.
    """
    even = problem.even_bandwidth()
    everyone = lambda j: np.full(problem.n_devices, j)  # noqa: E731
    if method == "adaptive-equal":
        return problem.best_cuts(even), even
    last = problem.profile.n_units
    if method == "fedavg":
        small = np.flatnonzero(problem.deepest < last)
        if small.size:
            scenario = (problem.profile, problem.cluster, problem.batch_size)
            why = "as FedAvg trains the whole model on every device"
            raise does_not_fit(*scenario, int(small[0]), last, why, "another method")
        return everyone(last), even
    first = int(problem.floors.max())
    if (small := np.flatnonzero(problem.deepest < first)).size:
        scenario = (problem.profile, problem.cluster, problem.batch_size)
        raise does_not_fit(*scenario, int(small[0]), first, "the shallowest that all devices may use", "another method")
    best, chosen = np.inf, (everyone(first), even)
    for j in range(first, int(problem.deepest.min()) + 1):
        cuts = everyone(j)
        bandwidth = even if method == "sfl" else best_bandwidth(problem, cuts)
        reached = float(problem.times(cuts, bandwidth).max())
        if reached < best:
            best, chosen = reached, (cuts, bandwidth)
    return chosen
