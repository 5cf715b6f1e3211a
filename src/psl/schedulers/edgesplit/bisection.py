"""Bisection on the round time with every cut of every device tried: simple, slow, the reference of `exact`."""

from functools import cached_property

import numpy as np

from psl.schedulers.edgesplit.exact import best_blocks
from psl.schedulers.edgesplit.problem import EdgeSplitProblem
from psl.schedulers.edgesplit.sharing import share_band

_CHUNK = 1024  # devices at a time: their (L, n) times stay in the cache


class EnumeratedProblem(EdgeSplitProblem):
    """The same problem with its two rules for cuts by trying all of them, O(N L), instead of by envelopes."""

    @cached_property
    def table(self) -> np.ndarray:
        """(L', N) c_i(j) of the cuts allowed, seconds; inf where the device has too little memory."""
        cuts = np.arange(self.min_cut, len(self.bits))
        table = np.empty((len(cuts), self.n_devices))
        for row, j in zip(table, cuts, strict=True):
            row[:] = self.compute(np.full(self.n_devices, j))
            row[self.deepest < j] = np.inf
        return table

    def best_cuts(self, bandwidth) -> np.ndarray:
        """Return (N,) the cut that makes each device fastest with the bandwidth it has."""
        wait = np.broadcast_to(np.asarray(1.0 / self.efficiency) / bandwidth, (self.n_devices,))
        bits = self.bits[self.min_cut :, None]
        cuts = np.empty(self.n_devices, dtype=int)
        for part in self._parts():
            cuts[part] = np.argmin(self.table[:, part] + bits * wait[part], axis=0)
        return cuts + self.min_cut

    def frugal_cuts(self, deadline: float) -> np.ndarray:
        """Return (N,) the cut with which each device meets a deadline with the least bandwidth."""
        cuts = np.empty(self.n_devices, dtype=int)
        for part in self._parts():
            cuts[part] = np.argmax(self._speed_needed(deadline, part), axis=0)
        return cuts + self.min_cut

    def least_bandwidth(self, deadline: float) -> np.ndarray:
        """Return (N,) Hz with which each device meets the deadline; inf where none is enough."""
        most = np.empty(self.n_devices)
        for part in self._parts():
            self._speed_needed(deadline, part).max(axis=0, out=most[part])
        with np.errstate(divide="ignore"):
            return np.where(most > 0, 1.0 / (self.efficiency * most), np.inf)

    def _speed_needed(self, deadline, part):
        """Return (L', n) (T − c_i(j)) / D(j), the reciprocal of the bit/s needed; inf for no bits in time."""
        left = deadline - self.table[:, part]
        bits = self.bits[self.min_cut :, None]
        if not self.silent:
            left /= bits
            return left
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(bits > 0, left / bits, np.where(left >= 0, np.inf, -np.inf))

    def _parts(self):
        return [slice(at, at + _CHUNK) for at in range(0, self.n_devices, _CHUNK)]


def bisect_deadline(problem: EnumeratedProblem, tolerance: float = 1e-12, report=None) -> float:
    """Return a round time, seconds, that can be met and is within a relative tolerance of the optimum.

    Args:
        problem: the joint problem, bandwidth continuous.
        tolerance: relative, of the deadline.
        report: called with (step, T) for every T found to be met.
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


def bisection(problem: EnumeratedProblem, report) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) cuts and (N,) Hz of the optimum, continuous or in whole blocks, by bisection."""
    if problem.block is not None:
        cuts, bandwidth = best_blocks(problem, float(problem.table.min(axis=0).max()))
        report({"step": 0, "round_time": float(problem.times(cuts, bandwidth).max())})
        return cuts, bandwidth
    cuts = problem.frugal_cuts(bisect_deadline(problem, report=report))
    return cuts, share_band(problem.compute(cuts), problem.load(cuts), problem.total)[0]
