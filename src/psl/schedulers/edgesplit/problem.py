"""One round of EdgeSplit as an optimisation problem: seconds of computing, bits to send, cuts that fit."""

from functools import cached_property
from typing import NamedTuple

import numpy as np

from psl.errors import InfeasibleError, check_array, check_count, expected
from psl.networks.edge_cluster import EdgeCluster
from psl.profiles import Profile
from psl.schedulers.checks import check_own_profiles, check_scenario, check_speeds, seconds
from psl.schedulers.edgesplit.envelope import lowest_lines, undominated

_ROUNDING = 1e-9  # relative; bandwidths that exceed the band by no more are taken to fill it
_FOREVER = 1e100  # s, and bit/s; beyond it sums and quotients leave floating point


class Group(NamedTuple):
    """Devices that may use the same cuts and whose computing time is one line per cut: base_j + work_j x_i."""

    devices: np.ndarray  # (n,)
    cuts: np.ndarray  # (K,)
    base: np.ndarray  # (K,) s
    work: np.ndarray  # (K,) FLOP; 0 for devices with a measured profile
    x: np.ndarray  # (n,) s/FLOP
    #: the same time as pull_j tilt_i and a constant: which (m,) of the devices, (K,) pull, (m,) tilt, neither negative
    sides: list[tuple[np.ndarray, np.ndarray, np.ndarray]]


class EdgeSplitProblem:
    """Minimise the largest of the devices' times T_i = c_i(j_i) + D(j_i) / (e_i w_i) over cuts j_i and bandwidths w_i.

    ::

        c_i(j) = H b [ (ρ_j + ϖ_j) / s_i + ((ρ_L − ρ_j) + (ϖ_L − ϖ_j)) N / s_srv ]
        D(j)   = H b (ψ_j + χ_j) + 2 δ_j,    with ψ_L = χ_L = 0: whoever trains everything sends no activations
        limits   Σ w_i ≤ W,   min_cut ≤ j_i,   3 · parameter bytes(j_i) + b a_{j_i} ≤ m_i

    Args:
        profile, cluster, batch_size, local_steps, min_cut: as in `solve`.
        memory: whether the devices' memory limits their cuts.

    Raises:
        ScenarioError: an argument is out of range.
        InfeasibleError: a device holds no cut in its memory, or there are fewer resource blocks than devices.

    Source: EdgeSplit (arXiv 2403.15815): min-max round time over cuts and bandwidth [P]; its terms [R].
    """

    def __init__(
        self, profile: Profile, cluster: EdgeCluster, batch_size=32, local_steps=1, min_cut=1, *, memory: bool = True
    ):
        check_profile(profile, cluster)
        self.profile, self.cluster = profile, cluster
        self.batch_size = check_count("batch_size", batch_size, fix="give the samples per device and mini-batch")
        self.local_steps = check_count("local_steps", local_steps, fix="give the mini-batches between two averages")
        self.min_cut = check_count("min_cut", min_cut, fix="give the shallowest cut allowed; 1 keeps raw data at home")
        if self.min_cut > profile.n_units:
            raise expected("min_cut", f"at most {profile.n_units}, the output", f"{self.min_cut}", "see profile.names")
        samples = self.batch_size * self.local_steps
        self.n_devices = cluster.n_devices
        self.total = cluster.bandwidth
        self.efficiency = cluster.spectral_efficiency
        self.work = samples * (profile.fwd_cost + profile.bwd_cost)  # (L+1,) FLOP of a round, on one side or other
        # What is left to the server: of forward and backward apart, as their sum may swallow the smaller one's digits.
        left = (profile.fwd_cost[-1] - profile.fwd_cost) + (profile.bwd_cost[-1] - profile.bwd_cost)
        self.rest = samples * left  # (L+1,) FLOP
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            self.server_seconds = self.rest * (self.n_devices / cluster.server_speed)  # (L+1,)
        self.up_bits = samples * profile.act_bits  # (L+1,)
        self.down_bits = samples * profile.grad_bits
        self.up_bits[-1] = self.down_bits[-1] = 0.0
        self.model_bits = profile.param_bits
        self.bits = self.up_bits + self.down_bits + 2 * self.model_bits  # (L+1,) D(j)
        self.memory = profile.training_memory(self.batch_size)  # (L+1,) bytes, never falls
        #: (N,) the deepest cut that a device holds in memory; those before it need no more.
        limit = cluster.device_memory if memory else np.full(self.n_devices, np.inf)
        self.deepest = np.searchsorted(self.memory, limit, side="right") - 1
        #: whether some cut sends no bits at all
        self.silent = bool((self.bits[self.min_cut :] == 0).any())
        self.family, self.own_seconds = self._measured_tables(samples)
        self.block = cluster.resource_block
        self._check_feasible()

    def _measured_tables(self, samples):
        """Return (N,) the table of each device, -1 for none, and (tables, L+1) seconds of its computing."""
        profiles = self.cluster.profiles
        if profiles is None:
            return np.full(self.n_devices, -1), np.empty((0, len(self.work)))
        number, tables = {id(None): -1}, {}
        for own in {id(own): own for own in profiles if own is not None}.values():
            table = samples * (own.fwd_cost + own.bwd_cost)
            number[id(own)] = tables.setdefault(table.tobytes(), (len(tables), table))[0]
        family = np.array([number[id(own)] for own in profiles])
        return family, np.array([table for _, table in tables.values()]).reshape(len(tables), len(self.work))

    def _check_feasible(self):
        self._check_finite()
        small = np.flatnonzero(self.deepest < self.min_cut)
        if small.size:
            device = int(small[0])
            shallower = ["a smaller min_cut"] if self.deepest[device] >= 1 else []
            raise self.does_not_fit(device, self.min_cut, "the least that any cut allowed needs", *shallower)
        if self.block is not None and self.n_blocks < self.n_devices:
            raise expected(
                "EdgeCluster.resource_block", f"at least one block for each of {self.n_devices} devices",
                f"{self.n_blocks} blocks of {self.block:g} Hz in {self.total:g} Hz",
                "use narrower blocks, more bandwidth or fewer devices", InfeasibleError,
            )  # fmt: skip

    def _check_finite(self):
        """Refuse clusters whose times are beyond floating point: sums and quotients of them would mean nothing."""
        cluster = self.cluster
        with np.errstate(divide="ignore", over="ignore"):
            limits = (
                (
                    "device_speed",
                    "round",
                    "s",
                    self.work[-1] / cluster.device_speed[self.family < 0].min(initial=np.inf),
                ),
                ("server_speed", "round", "s", self.server_seconds[0]),
                ("bandwidth", "round", "s", self.bits.max() / (self.efficiency.min() * (self.total / self.n_devices))),
                ("bandwidth", "rate", "bit/s", self.efficiency.max() * self.total),
            )
        for name, what, unit, value in limits:
            if not value <= _FOREVER:
                want, fix = f"a {what} of less than {_FOREVER:g} {unit}", "give SI units: FLOP/s, bit/s/Hz, Hz"
                raise expected(f"EdgeCluster.{name}", want, f"{value:.3g} {unit}", fix)

    def does_not_fit(self, device: int, cut: int, why: str, *instead: str) -> InfeasibleError:
        """Return (not raise) the error of a device without the memory that a cut needs; `instead` is advice."""
        need, have = self.memory[cut], self.cluster.device_memory[device]
        if need + (1 - self.batch_size) * self.profile.act_memory[cut] <= have:  # one sample at a time
            instead = ("a smaller batch_size", *instead)
        use = f"use {' or '.join(instead)}, or " if instead else ""
        return expected(
            f"device {self.cluster.describe(device)}",
            f"memory of at least {need:.6g} bytes for cut {cut} ({self.profile.names[cut]!r}), {why}",
            f"{have:.6g} bytes", f"{use}leave the device out", InfeasibleError,
        )  # fmt: skip

    @property
    def n_blocks(self) -> int:
        """Whole resource blocks in the band."""
        return int(np.floor(self.total / self.block * (1 + _ROUNDING)))

    @cached_property
    def groups(self) -> list[Group]:
        """The devices by what they compute with and the deepest cut they hold."""
        share = self.n_devices / self.cluster.server_speed
        pace = 1.0 / self.cluster.device_speed
        key = (self.family + 1) * len(self.work) + self.deepest
        key = key.astype(np.min_scalar_type(int(key.max())))  # NumPy sorts short integers by radix
        order = np.argsort(key, kind="stable")
        keys, first = np.unique(key[order], return_index=True)
        groups = []
        for at, devices in zip(keys, np.split(order, first[1:]), strict=True):
            family, deepest = divmod(int(at), len(self.work))
            cuts, x = np.arange(self.min_cut, deepest + 1), pace[devices]
            if family:
                total = self.server_seconds + self.own_seconds[family - 1]
                cuts = cuts[undominated(total[cuts], self.bits[cuts])]
                sides = [(devices, total[cuts], np.ones(len(devices)))]
                groups.append(Group(devices, cuts, total[cuts], np.zeros(len(cuts)), x, sides))
                continue
            # To some devices the server's share is slower, to others faster: work on the device helps or hurts.
            bits = self.bits[cuts]
            cuts = cuts[undominated(self.work[cuts], bits) | undominated(self.rest[cuts], bits)]
            loss = x - share  # s/FLOP by which the device is slower
            parts = ((loss >= 0, self.work[cuts]), (loss < 0, self.rest[cuts]))
            sides = [(devices[part], pull, np.abs(loss[part])) for part, pull in parts if part.any()]
            groups.append(Group(devices, cuts, self.server_seconds[cuts], self.work[cuts], x, sides))
        return groups

    def device_seconds(self, cuts: np.ndarray) -> np.ndarray:
        """Return (N,) seconds that the devices compute in a round."""
        own = self.work[cuts] / self.cluster.device_speed
        if len(self.own_seconds):
            measured = np.flatnonzero(self.family >= 0)
            own[measured] = self.own_seconds[self.family[measured], cuts[measured]]
        return own

    def compute(self, cuts: np.ndarray) -> np.ndarray:
        """Return (N,) c_i(j_i), seconds of computing on the device and for it on the server."""
        return self.device_seconds(cuts) + self.server_seconds[cuts]

    def load(self, cuts: np.ndarray) -> np.ndarray:
        """Return (N,) D(j_i) / e_i, Hz s: bandwidth times time that the device's bits take."""
        return self.bits[cuts] / self.efficiency

    def times(self, cuts: np.ndarray, bandwidth) -> np.ndarray:
        """Return (N,) T_i, seconds."""
        return self.compute(cuts) + seconds(self.load(cuts), bandwidth)

    def rate(self, bandwidth) -> np.ndarray:
        """Return (N,) bit/s; without bandwidth hardly any, so that a cut without bits is the best by far."""
        return np.maximum(self.efficiency * bandwidth, 1 / _FOREVER)

    def best_cuts(self, bandwidth) -> np.ndarray:
        """Return (N,) the cut that makes each device fastest with the bandwidth (N,) or scalar it has.

        c_i(j) + D(j) / (e_i w_i) is least where D(j) + pull_j (tilt_i e_i w_i) is: one line per cut. No digits
        cancel, as neither pull nor tilt is negative.
        """
        cuts = np.empty(self.n_devices, dtype=int)
        rate = self.rate(bandwidth)
        for group in self.groups:
            for devices, pull, tilt in group.sides:
                cuts[devices] = group.cuts[lowest_lines(self.bits[group.cuts], pull, tilt * rate[devices])]
        return cuts

    def frugal_cuts(self, deadline: float) -> np.ndarray:
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
        if self.silent:
            cut, at = self.silent_cuts
            cuts = np.where(at <= deadline, cut, cuts)
        return cuts

    @cached_property
    def silent_cuts(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) the fastest cut of each device that sends no bits, and c_i of it; inf for a device without one."""
        cuts, at = np.full(self.n_devices, self.min_cut), np.full(self.n_devices, np.inf)
        for j in np.flatnonzero(self.bits == 0):
            if j >= self.min_cut:
                every = self.compute(np.full(self.n_devices, j))
                better = (self.deepest >= j) & (every < at)
                cuts[better], at[better] = j, every[better]
        return cuts, at

    def bandwidth_for(self, cuts: np.ndarray, deadline: float) -> np.ndarray:
        """Return (N,) Hz with which the devices meet the deadline with these cuts; inf where none is enough."""
        slack, load = deadline - self.compute(cuts), self.load(cuts)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(load > 0, np.where(slack > 0, load / slack, np.inf), np.where(slack >= 0, 0.0, np.inf))

    def meets(self, deadline: float) -> bool:
        """Return whether the band is wide enough for all devices to meet a deadline."""
        return bool(self.bandwidth_for(self.frugal_cuts(deadline), deadline).sum() <= self.total * (1 + 1e-14))

    def even_bandwidth(self) -> np.ndarray:
        """Return (N,) Hz, W / N each; of whole resource blocks the first devices get one more as long as they last."""
        if self.block is None:
            return np.full(self.n_devices, self.total / self.n_devices)
        each, more = divmod(self.n_blocks, self.n_devices)
        return (each + (np.arange(self.n_devices) < more)) * self.block

    def check_cuts(self, cuts) -> np.ndarray:
        """Return (N,) numbers of cuts 1..L given by number or name, one for all or one per device, in any sequence."""
        fix = f"give a cut 1..{self.profile.n_units}, by number or name, for each of the {self.n_devices} devices"
        if getattr(getattr(cuts, "dtype", None), "kind", "O") not in "biuf":  # may have names: not an array of numbers
            entries = np.asarray(cuts, dtype=object)
            if any(isinstance(cut, str) for cut in entries.flat):
                cuts = np.reshape([self.profile.cut_index(cut) for cut in entries.flat], entries.shape)
        values = check_array("cuts", cuts, shape=(self.n_devices,), fix=fix)
        wrong = np.flatnonzero((values < 1) | (values > self.profile.n_units) | (values != np.floor(values)))
        if wrong.size:
            got = f"{values[wrong[0]]:g} for device {self.cluster.describe(int(wrong[0]))}"
            raise expected("cuts", f"whole numbers 1..{self.profile.n_units}", got, fix)
        values = values.astype(int)
        values.setflags(write=False)
        return values

    def check_bandwidth(self, bandwidth) -> np.ndarray:
        """Return (N,) Hz after checking that they fit in the band and, with resource blocks, are whole blocks."""
        fix = f"share {self.total:g} Hz among {self.n_devices} devices"
        values = check_array("bandwidth", bandwidth, shape=(self.n_devices,), minimum=0, fix=fix)
        if values.sum() > self.total * (1 + _ROUNDING):
            raise expected("bandwidth", f"at most {self.total:.9g} Hz together", f"{values.sum():.9g} Hz", fix)
        if self.block is not None:
            odd = np.flatnonzero(np.abs(values / self.block - np.rint(values / self.block)) > 1e-6)
            if odd.size:
                got = f"{values[odd[0]]:g} Hz for device {self.cluster.describe(int(odd[0]))}"
                raise expected("bandwidth", f"whole blocks of {self.block:g} Hz", got, fix)
        return values


def check_profile(profile: Profile, cluster: EdgeCluster) -> None:
    """Raise `ScenarioError` unless both are what they are called, and speeds and own profiles go with the profile."""
    check_scenario(profile, "cluster", cluster, EdgeCluster, "make one: EdgeCluster(...) or EdgeCluster.sample()")
    check_own_profiles(profile, cluster.profiles or (), lambda i: f"EdgeCluster.profiles[{i}]")
    by_speed = np.array([own is None for own in cluster.profiles or (None,) * cluster.n_devices])
    fix = "EdgeCluster(device_speed=[... relative ...], server_speed=...)"
    check_speeds(profile, "cluster", np.append(cluster.device_speed[by_speed], cluster.server_speed), fix)
