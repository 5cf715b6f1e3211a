"""EdgeSplit as an optimisation problem: which cuts fit, and which cut is best for a bandwidth or for a deadline."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from psl.networks.edge_cluster import EdgeCluster
from psl.profiles import Profile
from psl.schedulers.edgesplit.checks import check_min_cut, deepest_cuts, does_not_fit
from psl.schedulers.edgesplit.envelope import lowest_lines, undominated
from psl.schedulers.edgesplit.latency import BEYOND, RoundCosts

#: What a method calls with every entry of its history.
Report = Callable[[dict[str, Any]], None]


class SlowerSide(NamedTuple):
    """Devices of a group to which work costs time on the same side: on the device itself, or on the server.

    Moving the cut moves work between device and server. Up to a constant, the computing time of a round is the work on
    the slower of the two times how much slower it is; neither factor is negative, so no digits cancel. Overhead, which
    may depend on the cut, comes on top.
    """

    devices: np.ndarray  # (m,)
    work: np.ndarray  # (cuts,) FLOP on the slower side; s for devices with a measured profile
    excess: np.ndarray  # (m,) s/FLOP by which that side is slower; 1 for devices with a measured profile


class Group(NamedTuple):
    """Devices that may use the same cuts and whose computing time is one line per cut: base_j + work_j x_i."""

    devices: np.ndarray  # (n,)
    cuts: np.ndarray  # (cuts,)
    base: np.ndarray  # (cuts,) s, with the overhead
    work: np.ndarray  # (cuts,) FLOP; 0 for devices with a measured profile
    x: np.ndarray  # (n,) s/FLOP
    slower_sides: list[SlowerSide]
    classes: list[np.ndarray]  # positions in `cuts` of those that have one overhead, class by class


class EdgeSplitProblem(RoundCosts):
    """Minimise the largest of the devices' times T_i over cuts j_i and bandwidths w_i; `RoundCosts` has the terms.

    ::

        limits   Σ w_i ≤ W,   min_cut ≤ j_i,   π_{j_i} + b a_{j_i} ≤ memory_i,   π_j: `Profile.param_memory`

    Args:
        profile, cluster, batch_size, local_steps, min_cut: as in `solve`.

    Raises:
        ScenarioError: an argument is out of range.
        InfeasibleError: a device holds no cut in its memory, or there are fewer resource blocks than devices.

    Source: EdgeSplit (arXiv 2403.15815): min-max round time over cuts and bandwidth [P]; its terms [R].
    """

    def __init__(
        self, profile: Profile, cluster: EdgeCluster, batch_size: int = 32, local_steps: int = 1, min_cut: ArrayLike = 1
    ) -> None:
        super().__init__(profile, cluster, batch_size, local_steps)
        given = check_min_cut(profile, min_cut, cluster.n_devices)
        self.floors = np.broadcast_to(given, cluster.n_devices)  # (N,) each device's shallowest cut
        self.min_cut = int(self.floors.min())
        self.total = cluster.bandwidth  # W, Hz
        self.block = cluster.resource_block  # Hz, or None
        self.deepest = deepest_cuts(profile, cluster, self.batch_size)  # (N,)
        small = np.flatnonzero(self.deepest < self.floors)
        if small.size:
            device, why = int(small[0]), "the least that any cut allowed needs"
            if self.deepest[device] >= 1:
                why += f" (it holds cut {self.deepest[device]} at most)"
            advice = ["a smaller min_cut"] if self.deepest[device] >= 1 else []
            raise does_not_fit(profile, cluster, self.batch_size, device, int(self.floors[device]), why, *advice)
        #: whether some cut sends no bits at all
        self.has_zero_bit_cuts = bool((self.bits[self.min_cut :] == 0).any())

    @cached_property
    def groups(self) -> list[Group]:
        """The devices by what they compute with, the deepest cut they hold and the shallowest that is allowed."""
        server_pace = self.n_devices / self.cluster.server_speed  # s/FLOP of a device's share of the server
        pace = 1.0 / self.cluster.device_speed  # (N,) s/FLOP
        key = ((self.profile_group + 1) * len(self.bits) + self.deepest) * len(self.bits) + self.floors
        key = key.astype(np.min_scalar_type(int(key.max())))  # NumPy sorts short integers by radix
        order = np.argsort(key, kind="stable")
        keys, first = np.unique(key[order], return_index=True)
        groups = []
        for at, devices in zip(keys, np.split(order, first[1:]), strict=True):
            rest, floor = divmod(int(at), len(self.bits))
            measured, deepest = divmod(rest, len(self.bits))
            cuts, x = np.arange(floor, deepest + 1), pace[devices]
            if measured:
                total = self.server_seconds + self.measured_seconds[measured - 1]
                cuts = self._worth_trying(cuts, total)
                sides = [SlowerSide(devices, total[cuts], np.ones(len(devices)))]
                base, work = (total + self.overhead)[cuts], np.zeros(len(cuts))
                groups.append(Group(devices, cuts, base, work, x, sides, self._classes(cuts)))
                continue
            cuts = self._worth_trying(cuts, self.device_work, self.server_work)
            excess = x - server_pace  # s/FLOP by which the device is slower than its share of the server
            parts = ((excess >= 0, self.device_work[cuts]), (excess < 0, self.server_work[cuts]))
            sides = [SlowerSide(devices[part], work, np.abs(excess[part])) for part, work in parts if part.any()]
            base = (self.server_seconds + self.overhead)[cuts]
            groups.append(Group(devices, cuts, base, self.device_work[cuts], x, sides, self._classes(cuts)))
        return groups

    def _classes(self, cuts: np.ndarray) -> list[np.ndarray]:
        """Return positions in `cuts` of those that have one overhead, class by class; without messages all."""
        values, found = np.unique(self.overhead[cuts], return_inverse=True)
        return [np.flatnonzero(found == number) for number in range(len(values))]

    def _worth_trying(self, cuts: np.ndarray, *costs: np.ndarray) -> np.ndarray:
        """Return the cuts that no other with the same overhead beats in bits and in one of the (L+1,) costs."""
        keep = np.zeros(len(cuts), dtype=bool)
        for of_class in self._classes(cuts):
            some = cuts[of_class]
            for cost in costs:
                keep[of_class] |= undominated(cost[some], self.bits[some])
        return cuts[keep]

    def rate(self, bandwidth: np.ndarray | float) -> np.ndarray:
        """Return (N,) bit/s; without bandwidth hardly any, so that a cut without bits is the best by far."""
        return np.maximum(self.efficiency * bandwidth, 1 / BEYOND)

    def best_cuts(self, bandwidth: np.ndarray | float) -> np.ndarray:
        """Return (N,) the cut that makes each device fastest with the bandwidth (N,) or scalar it has.

        c_i(j) + D(j) / (e_i w_i) is least where D(j) + work_j (excess_i e_i w_i) is, among the cuts of one overhead:
        one line per cut. The best of every class are compared in seconds.
        """
        cuts = np.empty(self.n_devices, dtype=int)
        rate = self.rate(bandwidth)
        for group in self.groups:
            for side in group.slower_sides:
                x, least = side.excess * rate[side.devices], np.full(len(side.devices), np.inf)
                for of_class in group.classes:
                    some = group.cuts[of_class]
                    lines = lowest_lines(self.bits[some], side.work[of_class], x)
                    if len(group.classes) == 1:
                        cuts[side.devices] = some[lines]
                        break
                    chosen = some[lines]
                    waiting = self.overhead[chosen] * rate[side.devices]
                    value = self.bits[chosen] + side.work[of_class][lines] * x + waiting
                    cuts[side.devices[value < least]] = chosen[value < least]
                    least = np.minimum(least, value)
        return cuts

    def min_bandwidth_cuts(self, deadline: float) -> np.ndarray:
        """Return (N,) the cut with which each device meets a deadline with the least bandwidth.

        (T − c_i(j)) / D(j) is greatest where its negative, one line in x_i per cut, is lowest. A cut without bits
        is taken by the devices that meet the deadline with it. For a deadline that a device cannot meet the cut says
        nothing: then T ≤ c_i of the cut returned.
        """
        cuts = np.empty(self.n_devices, dtype=int)
        for group in self.groups:
            some = self.bits[group.cuts] > 0
            if some.any():
                bits = self.bits[group.cuts[some]]
                line = lowest_lines((group.base[some] - deadline) / bits, group.work[some] / bits, group.x)
                cuts[group.devices] = group.cuts[some][line]
            else:
                cuts[group.devices] = group.cuts[0]
        if self.has_zero_bit_cuts:
            cut, at = self.zero_bit_cuts
            cuts = np.where(at <= deadline, cut, cuts)
        return cuts

    @cached_property
    def zero_bit_cuts(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) the fastest cut of each device that sends no bits, and c_i of it; inf for a device without one."""
        cuts, at = self.floors.copy(), np.full(self.n_devices, np.inf)
        for j in np.flatnonzero(self.bits == 0):
            if j >= self.min_cut:
                every = self.compute(np.full(self.n_devices, j))
                better = (self.deepest >= j) & (self.floors <= j) & (every < at)
                cuts[better], at[better] = j, every[better]
        return cuts, at

    def bandwidth_for(self, cuts: np.ndarray, deadline: float) -> np.ndarray:
        """Return (N,) Hz with which the devices meet the deadline with these cuts; inf where none is enough."""
        slack, load = deadline - self.compute(cuts), self.load(cuts)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(load > 0, np.where(slack > 0, load / slack, np.inf), np.where(slack >= 0, 0.0, np.inf))

    def meets(self, deadline: float) -> bool:
        """Return whether the band is wide enough for all devices to meet a deadline."""
        return bool(self.bandwidth_for(self.min_bandwidth_cuts(deadline), deadline).sum() <= self.total * (1 + 1e-14))

    def even_bandwidth(self) -> np.ndarray:
        """Return (N,) Hz, W / N each; of whole resource blocks the first devices get one more as long as they last."""
        if self.block is None:
            return np.full(self.n_devices, self.total / self.n_devices)
        each, more = divmod(self.cluster.n_blocks, self.n_devices)
        return (each + (np.arange(self.n_devices) < more)) * self.block
