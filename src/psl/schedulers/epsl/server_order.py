"""The order in which the server takes micro-batches: 1 | r_j | max (C_j + q_j), one machine with releases and tails.

Source: longest tail first is Schrage's rule, its preemptive form Jackson's bound: textbook scheduling. The optimum for
equal times is Garey, Johnson, Simons and Tarjan's (SIAM J. Comput. 10, 1981). Their use here is ours [B].
"""

import heapq
from typing import NamedTuple

import numpy as np

_TIE = 1e-10  # relative; a job released so little later counts as waiting: rounding must not change the order
_SOLVED = 1e-12  # relative; an order that is as short as the bound is optimal
_MOST_EXACT = 200  # jobs; with more, longest tail first is kept: it is within one job of the bound


class ServerOrder(NamedTuple):
    """An order of n jobs, and the time by which the last tail has ended."""

    order: np.ndarray  # (n,) numbers of the jobs
    value: float  # s, max_j (C_j + q_j)


def longest_tail_first(release: np.ndarray, tail: np.ndarray, seconds: np.ndarray) -> ServerOrder:
    """Serve, whenever the server is free, the waiting job with the longest tail (Schrage's rule).

    Args:
        release, tail, seconds: (n,) s: r_j, q_j and p_j.
    """
    r, q, p = release.tolist(), tail.tolist(), seconds.tolist()
    arriving = np.argsort(release, kind="stable").tolist()
    waiting: list[tuple[float, int]] = []
    order, now, value, at = [], 0.0, 0.0, 0
    while len(order) < len(r):
        if not waiting:
            now = max(now, r[arriving[at]])
        while at < len(r) and r[arriving[at]] <= now * (1 + _TIE):
            heapq.heappush(waiting, (-q[arriving[at]], arriving[at]))
            at += 1
        minus_tail, job = heapq.heappop(waiting)
        now = max(now, r[job]) + p[job]
        value = max(value, now - minus_tail)
        order.append(job)
    return ServerOrder(np.array(order), value)


def preemptive_bound(release: np.ndarray, tail: np.ndarray, seconds: np.ndarray) -> float:
    """Return the optimum if jobs may be interrupted (Jackson's rule): no order is shorter; arguments as above."""
    r, q, left = release.tolist(), tail.tolist(), seconds.tolist()
    arriving = np.argsort(release, kind="stable").tolist()
    waiting: list[tuple[float, int]] = []
    now, value, at = 0.0, 0.0, 0
    while at < len(r) or waiting:
        if not waiting:
            now = max(now, r[arriving[at]])
        while at < len(r) and r[arriving[at]] <= now:
            heapq.heappush(waiting, (-q[arriving[at]], arriving[at]))
            at += 1
        minus_tail, job = waiting[0]
        until = r[arriving[at]] if at < len(r) else np.inf
        if now + left[job] <= until:
            now += left[job]
            heapq.heappop(waiting)
            value = max(value, now - minus_tail)
        else:
            left[job] -= until - now
            now = until
    return value


def best_order(release: np.ndarray, tail: np.ndarray, seconds: np.ndarray, precision: float = _SOLVED) -> ServerOrder:
    """Return the optimal order if all jobs take equally long, else the one by longest tail first.

    For equal times a deadline T is met or proven out of reach (`_meeting`); bisection between the preemptive bound and
    longest tail first finds the least. With unequal times the problem is NP-hard.

    Args:
        release, tail, seconds: as above.
        precision: relative, of the value found.
    """
    found = longest_tail_first(release, tail, seconds)
    equal = np.ptp(seconds) <= 1e-12 * seconds.max()
    if not equal or len(release) > _MOST_EXACT:
        return found
    low = preemptive_bound(release, tail, seconds)
    while found.value - low > precision * found.value:
        middle = 0.5 * (low + found.value)
        order = _meeting(release, middle - tail, float(seconds[0]))
        if order is None:
            low = middle
        else:
            found = ServerOrder(order, min(found.value, value_of(order, release, tail, seconds)))
            if found.value > middle * (1 + _SOLVED):
                break  # rounding: the order misses by a little what it was to meet
    return found


def value_of(order: np.ndarray, release: np.ndarray, tail: np.ndarray, seconds: np.ndarray) -> float:
    """Return max_j (C_j + q_j) of an order, s."""
    now = value = 0.0
    for job in order.tolist():
        now = max(now, release[job]) + seconds[job]
        value = max(value, now + tail[job])
    return float(value)


def _meeting(release: np.ndarray, deadline: np.ndarray, p: float) -> np.ndarray | None:
    """Return an order of jobs of p seconds that meets their deadlines, or None if there is none.

    From the last release back, the latest starts that the deadlines of later releases allow are packed. Where a job
    must start within p before a release, that stretch is forbidden to all starts. The earliest deadline first, outside
    the forbidden stretches, then meets all deadlines if anything does.
    """
    forbidden: list[tuple[float, float]] = []  # open; the latest first
    by_deadline = np.sort(deadline)
    latest = by_deadline.copy()  # start of the packed jobs for each deadline
    slack = 1e-13 * float(deadline.max())
    for job in np.argsort(-release, kind="stable").tolist():
        affected = by_deadline >= deadline[job]
        start = latest[affected] - p
        for low, high in forbidden:
            start = np.where((start > low) & (start < high), low, start)
        latest[affected] = start
        critical = float(start.min())
        if critical < release[job] - slack:
            return None
        if critical - p < release[job]:
            forbidden.append((critical - p, float(release[job])))
    arriving = np.argsort(release, kind="stable").tolist()
    waiting: list[tuple[float, int]] = []
    order, now, at = [], 0.0, 0
    while len(order) < len(release):
        if not waiting:
            now = max(now, float(release[arriving[at]]))
        for low, high in reversed(forbidden):
            if low + slack < now < high - slack:
                now = high
        while at < len(release) and release[arriving[at]] <= now + slack:
            heapq.heappush(waiting, (float(deadline[arriving[at]]), arriving[at]))
            at += 1
        due, job = heapq.heappop(waiting)
        if now + p > due + 10 * slack:
            return None
        order.append(job)
        now += p
    return np.array(order)
