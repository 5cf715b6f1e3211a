"""The problem with every cut of every device tried: the fastest way for small clusters, a slow one for large ones."""

from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from psl.networks.edge_cluster import EdgeCluster
from psl.profiles import Profile
from psl.schedulers.edgesplit.problem import EdgeSplitProblem

#: Devices. Up to so many, a table of all times costs less than the envelopes of all groups. With 10 to 50 cuts both
#: took equally long at 1,500 to 5,000 devices, depending on the machine.
SMALL = 1_500
_CHUNK = 1024  # devices at a time: 50 cuts × 1024 × 8 bytes = 400 kB stay in a core's second-level cache


class EnumeratedProblem(EdgeSplitProblem):
    """The same problem; its two rules for cuts try all of them, O(N L), instead of using envelopes."""

    @cached_property
    def table(self) -> np.ndarray:
        """(L', N) c_i(j) of the cuts allowed, seconds; inf where the device has too little memory."""
        allowed = slice(self.min_cut, None)
        table = self.device_work[allowed, None] / self.cluster.device_speed
        measured = np.flatnonzero(self.profile_group >= 0)
        if measured.size:
            table[:, measured] = self.measured_seconds[self.profile_group[measured], allowed].T
        table += (self.server_seconds + self.overhead)[allowed, None]
        cut = np.arange(self.min_cut, len(self.bits))[:, None]
        table[(cut > self.deepest) | (cut < self.floors)] = np.inf
        return table

    def best_cuts(self, bandwidth: np.ndarray | float) -> np.ndarray:
        """Return (N,) the cut that makes each device fastest with the bandwidth it has."""
        wait = 1.0 / self.rate(bandwidth)
        bits = self.bits[self.min_cut :, None]
        cuts = np.empty(self.n_devices, dtype=int)
        for part in self._parts():
            cuts[part] = np.argmin(self.table[:, part] + bits * wait[part], axis=0)
        return cuts + self.min_cut

    def min_bandwidth_cuts(self, deadline: float) -> np.ndarray:
        """Return (N,) the cut with which each device meets a deadline with the least bandwidth."""
        cuts = np.empty(self.n_devices, dtype=int)
        for part in self._parts():
            cuts[part] = np.argmax(self._time_per_bit(deadline, part), axis=0)
        return cuts + self.min_cut

    def least_bandwidth(self, deadline: float) -> np.ndarray:
        """Return (N,) w_i(T), Hz with which each device meets the deadline; inf where none is enough."""
        most = np.empty(self.n_devices)
        for part in self._parts():
            self._time_per_bit(deadline, part).max(axis=0, out=most[part])
        with np.errstate(divide="ignore"):
            return np.where(most > 0, 1.0 / (self.efficiency * most), np.inf)

    def _time_per_bit(self, deadline: float, part: slice) -> np.ndarray:
        """Return (L', n) (T − c_i(j)) / D(j), s/bit left for sending; inf for no bits in time."""
        left = deadline - self.table[:, part]
        bits = self.bits[self.min_cut :, None]
        if not self.has_zero_bit_cuts:
            left /= bits
            return left
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(bits > 0, left / bits, np.where(left >= 0, np.inf, -np.inf))

    def _parts(self) -> list[slice]:
        return [slice(at, at + _CHUNK) for at in range(0, self.n_devices, _CHUNK)]


def make_problem(
    profile: Profile, cluster: EdgeCluster, batch_size: int, local_steps: int, min_cut: ArrayLike = 1
) -> EdgeSplitProblem:
    """Return the problem of a scenario, in the form that is solved faster; arguments as in `EdgeSplitProblem`."""
    small = isinstance(cluster, EdgeCluster) and cluster.n_devices <= SMALL  # anything else is refused there
    kind = EnumeratedProblem if small else EdgeSplitProblem
    return kind(profile, cluster, batch_size, local_steps, min_cut)
