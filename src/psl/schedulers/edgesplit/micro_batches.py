"""EdgeSplit in micro-batches: the time of a device whose mini-batch goes through its band and server share in parts.

Within a local step the device goes forward through all micro-batches, then back; its band carries uploads and downloads
in turn (half duplex: both directions share the device's bandwidth), download k after upload k + lag − 1, with a lag of
1, 2, 4 … or M; its share of
the server takes them as they come. Device and server step after the last, and the next local step begins when both
have. For a given cut and lag the time is a maximum of lines in x = 1 / (e_i w_i), so it is convex in x: the least
bandwidth for a deadline follows by Newton's method, and the optimum over cuts, lags and bandwidths by bisection.

Source: ours [B], for the round of EdgeSplit (arXiv 2403.15815) [R].
"""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np

from psl.schedulers.edgesplit.latency import RoundCosts
from psl.schedulers.edgesplit.problem import EdgeSplitProblem

_STEPS = 150  # at most, to a deadline that is exact to 1e-13
_NEWTON = 100  # steps at most; a line is left at every step, so that few are needed
_TIE = 1e-12  # relative; as many blocks are enough as are needed but for rounding


class Work(NamedTuple):
    """What devices at their cuts compute and send in one local step; E pairs of device and cut."""

    forward: np.ndarray  # (E,) s
    backward: np.ndarray  # (E,) s
    server: np.ndarray  # (E,) s, forward and backward on the device's share
    up: np.ndarray  # (E,) bits
    down: np.ndarray  # (E,) bits
    device_step: np.ndarray  # (E,) s
    server_step: np.ndarray  # (E,) s
    model: np.ndarray  # (E,) bits, in each direction
    alone: np.ndarray  # (E,) bool: the device holds the whole model and meets the server only for the average


class Line(NamedTuple):
    """(E,) values of piecewise linear functions at x, and their slopes there."""

    value: np.ndarray
    slope: np.ndarray

    def plus(self, value: np.ndarray | float, slope: np.ndarray | float = 0.0) -> "Line":
        """Return the sum with a line."""
        return Line(self.value + value, self.slope + slope)

    def later(self, other: "Line") -> "Line":
        """Return the larger of two."""
        mine = self.value >= other.value
        return Line(np.where(mine, self.value, other.value), np.where(mine, self.slope, other.slope))


class MicroBatchedDevices:
    """The times of devices in micro-batches, for any cuts and bandwidths.

    Args:
        costs: the round with the whole mini-batch at a time.
        sizes: (M,) samples of each micro-batch.
    """

    def __init__(self, costs: RoundCosts, sizes: np.ndarray) -> None:
        profile, cluster = costs.profile, costs.cluster
        self.costs, self.share = costs, sizes / sizes.sum()
        n, b, steps = costs.n_devices, costs.batch_size, costs.local_steps
        self.forward = b * profile.fwd_cost / cluster.device_speed[:, None]  # (N, L+1)
        self.backward = b * profile.bwd_cost / cluster.device_speed[:, None]
        self.device_step = profile.steps / cluster.device_speed[:, None]
        for i, own in enumerate(cluster.profiles or ()):
            if own is not None:
                self.forward[i], self.backward[i], self.device_step[i] = b * own.fwd_cost, b * own.bwd_cost, own.steps
        pace = n / cluster.server_speed
        self.server_step = costs.server_steps / steps * pace  # (L+1,)
        self.server = (costs.server_work - costs.server_steps) / steps * pace

    def work(self, device: np.ndarray, cut: np.ndarray) -> Work:
        """Return the work of E pairs of a device and a cut."""
        costs, steps = self.costs, self.costs.local_steps
        return Work(
            self.forward[device, cut],
            self.backward[device, cut],
            self.server[cut],
            costs.up_bits[cut] / steps,
            costs.down_bits[cut] / steps,
            self.device_step[device, cut],
            self.server_step[cut],
            costs.model_bits[cut],
            cut == costs.profile.n_units,
        )

    def round(self, work: Work, x: np.ndarray) -> Line:
        """Return T and its slope at (E, lags) x = 1 / rate, s/bit, with each of `lags`."""
        cluster, share, n_micro = self.costs.cluster, self.share, len(self.share)
        work = Work(*(part[:, None] for part in work))  # (E, 1)
        per_up, per_down = cluster.message_overhead * (work.up > 0), cluster.message_overhead * (work.down > 0)
        calls = cluster.call_overhead * ~work.alone
        zero = np.zeros_like(x)
        band = server = Line(zero, zero)
        ready = np.cumsum(share)
        # (M, E, lags): when the server is done with a micro-batch, and when its gradient has come.
        ends, end_slopes, come, come_slopes = (np.zeros((n_micro, *x.shape)) for _ in range(4))
        for up, number in self._turns:  # (lags,) what the band carries next, and of which micro-batch
            go, back = np.flatnonzero(up), np.flatnonzero(~up)
            part, after = share[number], np.zeros_like(x)
            after[:, go] = ready[number[go]] * work.forward
            after_slope = np.zeros_like(x)
            after[:, back], after_slope[:, back] = (kept[number[back], :, back].T for kept in (ends, end_slopes))
            bits = part * np.where(up, work.up, work.down)
            sent = bits * x + np.where(up, per_up, per_down)
            band = band.later(Line(after, after_slope)).plus(sent, bits)
            served = server.later(band).plus(part * work.server + calls)
            server = Line(np.where(up, served.value, server.value), np.where(up, served.slope, server.slope))
            ends[number[go], :, go], end_slopes[number[go], :, go] = server.value[:, go].T, server.slope[:, go].T
            come[number[back], :, back] = band.value[:, back].T
            come_slopes[number[back], :, back] = band.slope[:, back].T
        last = Line(work.forward + zero, zero)
        for k in range(n_micro):
            last = last.later(Line(come[k], come_slopes[k])).plus(share[k] * work.backward)
        step = last.plus(work.device_step).later(server.plus(work.server_step))
        return self._around(work, step, x)

    @cached_property
    def lags(self) -> np.ndarray:
        """(lags,) how far downloads lag behind uploads, 1 (as soon as they can), 2, 4, … and M (all uploads first)."""
        n_micro = len(self.share)
        return np.unique([min(2**p, n_micro) for p in range(n_micro.bit_length() + 1)])

    @cached_property
    def _turns(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """2 M pairs of (lags,): whether the band carries an upload, and of which micro-batch."""
        n_micro, orders = len(self.share), []
        for lag in self.lags.tolist():
            order = [(True, k) for k in range(lag)]
            for k in range(n_micro):
                order += [(False, k)] + ([(True, k + lag)] if k + lag < n_micro else [])
            orders.append(order)
        return [(np.array([o[n][0] for o in orders]), np.array([o[n][1] for o in orders])) for n in range(2 * n_micro)]

    def _around(self, work: Work, step: Line, x: np.ndarray) -> Line:
        """Return the round of local steps that take `step` each."""
        cluster, steps = self.costs.cluster, self.costs.local_steps
        fixed = cluster.round_overhead + 2 * cluster.message_overhead * (work.model > 0)
        return Line(steps * step.value + fixed + 2 * work.model * x, steps * step.slope + 2 * work.model)

    def served(self, cuts: np.ndarray, bandwidth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (N,) T_i, s, and the lag that makes it shortest."""
        device = np.arange(self.costs.n_devices)
        work = self.work(device, cuts)
        x = 1.0 / np.maximum(self.costs.efficiency * bandwidth, 1e-100)
        x = np.where(work.up + work.down + work.model > 0, x, 0.0)
        times = self.round(work, np.repeat(x[:, None], len(self.lags), axis=1)).value  # (N, lags)
        best = times.argmin(axis=1)
        return times[device, best], self.lags[best]

    def busy(self, cuts: np.ndarray, bandwidth: np.ndarray) -> dict[str, np.ndarray]:
        """Return (N,) seconds that each device, its band and its share of the server work in a round."""
        costs, device = self.costs, np.arange(self.costs.n_devices)
        work, steps, cluster = self.work(device, cuts), costs.local_steps, costs.cluster
        sending = costs.load(cuts) / np.maximum(bandwidth, 1e-100)
        messages, calls = self._messages(work)
        return {
            "device": steps * (work.forward + work.backward + work.device_step),
            "band of device": sending + cluster.message_overhead * messages,
            "server for device": steps * (work.server + work.server_step) + cluster.call_overhead * calls,
        }

    def overhead(self, cuts: np.ndarray) -> np.ndarray:
        """Return (N,) s, t_0 + t_m × messages + t_c × calls of a round."""
        cluster = self.costs.cluster
        messages, calls = self._messages(self.work(np.arange(self.costs.n_devices), cuts))
        return cluster.round_overhead + cluster.message_overhead * messages + cluster.call_overhead * calls

    def _messages(self, work: Work) -> tuple[np.ndarray, np.ndarray]:
        number = self.costs.local_steps * len(self.share)
        exchanged = number * ((work.up > 0).astype(int) + (work.down > 0))
        return exchanged + 2 * (work.model > 0), number * ~work.alone

    def rows(self, work: Work) -> list[Line]:
        """Return lines α + β x, no round is shorter than any of them, whatever the order; value is α, slope β."""
        share, zero = self.share, np.zeros_like(work.forward)
        cluster, n_micro = self.costs.cluster, len(self.share)
        up, down = cluster.message_overhead * (work.up > 0), cluster.message_overhead * (work.down > 0)
        calls = cluster.call_overhead * ~work.alone
        first, last = share[0], share[-1]
        ends = first * work.forward + last * work.backward + work.device_step
        in_and_out = up + down, first * work.up + last * work.down
        steps = [
            Line(work.forward + work.backward + work.device_step, zero),
            Line(ends + n_micro * (up + down), work.up + work.down),
            Line(ends + in_and_out[0] + work.server + n_micro * calls, in_and_out[1]),
            Line(first * work.forward + up + work.server + n_micro * calls + work.server_step, first * work.up),
            Line(
                work.forward + last * (work.server + work.backward) + calls + up + down + work.device_step,
                last * (work.up + work.down),
            ),
            Line(
                first * (work.forward + work.server) + work.backward + calls + up + down + work.device_step,
                first * (work.up + work.down),
            ),
        ]
        return [self._around(work, step, zero) for step in steps]

    def most_seconds_per_bit(self, work: Work, deadline: float) -> np.ndarray:
        """Return (E,) the largest x with which the round meets the deadline in some order; below 0 where none does."""
        bound = _at_most(self.rows(work), deadline)
        never, free = bound < 0, np.isinf(bound)
        x = np.repeat(np.where(never | free, 0.0, bound)[:, None], len(self.lags), axis=1)  # (E, lags)
        for _ in range(_NEWTON):
            now = self.round(work, x)
            excess = now.value - deadline
            step = np.where((excess > 1e-14 * deadline) & (now.slope > 0), excess / np.maximum(now.slope, 1e-300), 0.0)
            before, x = x, np.maximum(x - step, 0.0)
            if not (before - x > 1e-14 * before).any():
                break
        met = (now.value <= deadline * (1 + 1e-13)) & ~never[:, None]
        return np.where(met, np.where(free[:, None], np.inf, x), -1.0).max(axis=1)


def _at_most(rows: list[Line], deadline: float) -> np.ndarray:
    """Return (E,) the largest x at which all lines meet a deadline; below 0 where none does."""
    with np.errstate(divide="ignore", invalid="ignore"):
        each = [
            np.where(row.slope > 0, (deadline - row.value) / row.slope, np.where(row.value <= deadline, np.inf, -1.0))
            for row in rows
        ]
    return np.min(each, axis=0)


def _pairs(problem: EdgeSplitProblem) -> tuple[np.ndarray, np.ndarray]:
    """Return (E,) devices and cuts: all pairs that are allowed."""
    cut = np.arange(problem.profile.n_units + 1)
    allowed = (cut >= problem.floors[:, None]) & (cut <= problem.deepest[:, None])
    device, allowed_cut = np.nonzero(allowed)
    return device, allowed_cut


def best_micro_batched(problem: EdgeSplitProblem, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (N,) cuts, (N,) Hz and a lower bound, s: the optimum over cuts, lags and bandwidths in micro-batches.

    The plan is the optimum of this order of serving; the bound holds for every order.

    Args:
        problem: the joint problem with the whole mini-batch at a time.
        sizes: (M,) samples of each micro-batch.
    """
    devices = MicroBatchedDevices(problem, sizes)
    device, cut = _pairs(problem)
    work = devices.work(device, cut)
    rows = devices.rows(work)

    def by_order(deadline: float) -> np.ndarray:
        return devices.most_seconds_per_bit(work, deadline)

    def by_bound(deadline: float) -> np.ndarray:
        return _at_most(rows, deadline)

    def needed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (N,) cuts and Hz that (E,) x stand for; inf where a device has no cut."""
        grid = np.full((problem.n_devices, problem.profile.n_units + 1), -1.0)
        grid[device, cut] = x
        chosen, most = grid.argmax(axis=1), grid.max(axis=1)
        with np.errstate(divide="ignore"):
            hertz = np.where(most > 0, 1.0 / (problem.efficiency * np.maximum(most, 1e-300)), np.inf)
        if problem.block is not None:
            hertz = np.maximum(np.ceil(hertz / problem.block * (1 - _TIE)), 1.0) * problem.block
        return chosen, hertz

    even = problem.even_bandwidth()
    start = problem.best_cuts(even)
    high = float(devices.served(start, even)[0].max())
    low, cuts, hertz = _least(by_bound, needed, problem.total, 0.0, high)
    if cuts is not None and hertz is not None and np.isfinite(hertz).all():
        high = min(high, float(devices.served(cuts, hertz)[0].max()) * (1 + 1e-9))
    _, cuts, hertz = _least(by_order, needed, problem.total, low, high)
    if cuts is None or hertz is None:
        return start, even, low
    if problem.block is None:
        spare = problem.total / hertz.sum() if hertz.sum() > 0 else 1.0
        return cuts, hertz * spare, low
    left = round((problem.total - float(hertz.sum())) / problem.block)
    for _ in range(int(left)):  # to the slowest, one by one
        hertz[int(devices.served(cuts, hertz)[0].argmax())] += problem.block
    return cuts, hertz, low


def _least(
    inverse: Callable[[float], np.ndarray], needed: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    total: float, low: float, high: float,
) -> tuple[float, np.ndarray | None, np.ndarray | None]:  # fmt: skip
    """Return a deadline that cannot be met, and cuts and Hz for one just behind it.

    The logarithm of the Hz that are needed is nearly a line: a secant, or bisection where it does not help.
    """
    cuts = hertz = None
    at_low = at_high = np.inf
    for trial in range(_STEPS):
        secant = np.isfinite(at_low) and np.isfinite(at_high) and trial % 3 < 2
        part = at_high / (at_high - at_low) if secant else 0.5  # from the later end
        middle = high - (high - low) * min(max(part, 1e-3), 1 - 1e-3)
        found = needed(inverse(middle))
        with np.errstate(divide="ignore"):
            excess = float(np.log(found[1].sum() / total))
        if excess <= 1e-13:
            high, at_high, (cuts, hertz) = middle, excess, found
        else:
            low, at_low = middle, excess
        if high - low <= 1e-13 * high:
            break
    return low, cuts, hertz
