"""The problem with every cut of every device tried: for small clusters the fastest way, for large ones a slow one."""

from functools import cached_property

import numpy as np

from psl.schedulers.edgesplit.problem import EdgeSplitProblem

#: devices; up to as many a table of all times costs less than the envelopes of all groups
SMALL = 1_500
_CHUNK = 1024  # devices at a time: their (L, n) times stay in the cache


class EnumeratedProblem(EdgeSplitProblem):
    """The same problem with its two rules for cuts by trying all of them, O(N L), instead of by envelopes."""

    @cached_property
    def table(self) -> np.ndarray:
        """(L', N) c_i(j) of the cuts allowed, seconds; inf where the device has too little memory."""
        allowed = slice(self.min_cut, None)
        table = self.work[allowed, None] / self.cluster.device_speed
        measured = np.flatnonzero(self.family >= 0)
        if measured.size:
            table[:, measured] = self.own_seconds[self.family[measured], allowed].T
        table += self.server_seconds[allowed, None]
        table[np.arange(self.min_cut, len(self.bits))[:, None] > self.deepest] = np.inf
        return table

    def best_cuts(self, bandwidth) -> np.ndarray:
        """Return (N,) the cut that makes each device fastest with the bandwidth it has."""
        wait = 1.0 / self.rate(bandwidth)
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


def make_problem(profile, cluster, *options) -> EdgeSplitProblem:
    """Return the problem of a scenario, the arguments of `EdgeSplitProblem`, in the form that is solved faster."""
    small = getattr(cluster, "n_devices", 0) <= SMALL  # what is no cluster is refused below
    return (EnumeratedProblem if small else EdgeSplitProblem)(profile, cluster, *options)
