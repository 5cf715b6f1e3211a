"""Assignments of subchannels to start from: round robin, the greedy rule, and a max-weight matching."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from psl.networks.wireless_cell import shannon_rate
from psl.schedulers.checks import seconds
from psl.schedulers.epsl.problem import RoundProblem
from psl.schedulers.epsl.water_filling import most_rate


def round_robin(n_clients: int, n_subchannels: int) -> np.ndarray:
    """Return (K,) subchannel k to client k mod N."""
    return np.arange(n_subchannels) % n_clients


def greedy(problem: RoundProblem, cut: int) -> np.ndarray:
    """Give every client its best subchannel, then let the current straggler take the best one left, and so on.

    Stragglers are judged with an equal share of the total power, within their own limits.

    Returns:
        (K,) client of each subchannel.

    Source: EPSL (arXiv 2303.15991): a greedy subchannel allocation [P]; its details [R].
    """
    n_clients, n_subchannels = problem.snr.shape
    share = np.minimum(problem.limit, problem.total / n_clients)
    alone = shannon_rate(problem.bandwidth, share[:, None] * problem.snr / problem.bandwidth)  # (N, K) bit/s
    assignment = np.full(n_subchannels, -1)
    time = np.empty(n_clients)

    def take(i: int, k: int) -> None:
        assignment[k] = i
        held = np.flatnonzero(assignment == i)
        zeros = np.zeros(len(held), dtype=int)
        up = most_rate(share[i : i + 1], zeros, problem.snr[i, held], problem.bandwidth[held])[0]
        down = problem.down_rate[i, held].sum()
        time[i] = problem.up_compute[cut, i] + problem.down_compute[cut, i]
        time[i] += float(seconds(problem.up_bits[cut], up) + seconds(problem.down_bits[cut], down))

    # The client whose best subchannel is worst chooses first: it would lose most.
    for i in np.argsort(alone.max(axis=1), kind="stable").tolist():
        take(i, int(np.argmax(np.where(assignment < 0, alone[i], -1.0))))
    for _ in range(n_subchannels - n_clients):
        i = int(np.argmax(time))
        take(i, int(np.argmax(np.where(assignment < 0, alone[i], -1.0))))
    return assignment


def matched(problem: RoundProblem, weight: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Give client i exactly counts[i] subchannels so that the summed weight is largest: a max-weight matching.

    Args:
        weight: (N, K) value of subchannel k to client i.
        counts: (N,) whole numbers that add up to K.

    Returns:
        (K,) client of each subchannel.
    """
    client = np.repeat(np.arange(problem.n_clients), counts)  # (K,) each as often as it gets subchannels
    rows, columns = linear_sum_assignment(weight[client], maximize=True)
    assignment = np.empty(problem.n_subchannels, dtype=int)
    assignment[columns] = client[rows]
    return assignment


def spectral_weight(problem: RoundProblem, assignment: np.ndarray) -> np.ndarray:
    """Return (N, K) bit/s of every client on every subchannel, at the power density that it has in `assignment`.

    A client spreads an equal share of the total power, within its own limit, evenly over its subchannels there.
    """
    share = np.minimum(problem.limit, problem.total / problem.n_clients)
    density = share / np.bincount(assignment, problem.bandwidth, problem.n_clients)
    return shannon_rate(problem.bandwidth, density[:, None] * problem.snr)


def repaired(problem: RoundProblem, assignment: np.ndarray) -> np.ndarray:
    """Give every client without a subchannel its best one from a client that can spare one."""
    assignment = assignment.copy()
    counts = np.bincount(assignment, minlength=problem.n_clients)
    for i in np.flatnonzero(counts == 0):
        k = int(np.argmax(np.where(counts[assignment] > 1, problem.snr[i], -1.0)))
        counts[assignment[k]] -= 1
        assignment[k], counts[i] = i, 1
    return assignment
