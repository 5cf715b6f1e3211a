"""How long a round of EdgeSplit takes: computing c_i(j), bits D(j), and the time T_i of every device."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from psl import html
from psl.errors import check_count, expected
from psl.networks.edge_cluster import EdgeCluster
from psl.profiles import Profile
from psl.records import Record
from psl.schedulers.checks import seconds
from psl.schedulers.edgesplit.checks import check_bandwidth, check_blocks, check_cuts, check_profile

#: s, and bit/s. Larger values are refused: their sums and quotients would come near 1e308, where floating point ends.
BEYOND = 1e100

#: What each term of a device's time holds.
TERMS = {
    "device_compute": "forward and backward on the device",
    "server_compute": "forward and backward on the device's share of the server",
    "optimizer": "optimizer steps of the device and of its share of the server",
    "activation_exchange": "activations up and gradients down",
    "model_exchange": "the device's part of the model down and up",
    "overhead": "what the round and the device's messages take whatever they carry",
}
_RARE = ("overhead",)  # terms that tables show only where they take time


class RoundCosts:
    """Seconds and bits of one round, for any cuts and bandwidths of the devices.

    ::

        T_i    = c_i(j_i) + D(j_i) / (e_i w_i)
        c_i(j) = H b [ (ρ_j + ϖ_j) / s_i + ((ρ_L − ρ_j) + (ϖ_L − ϖ_j)) N / s ]
                 + H [ σ_j / s_i + (σ_L − σ_j) N / s ] + t_0 + t_m n(j)
        D(j)   = H b (ψ_j + χ_j) + 2 δ_j,    with ψ_L = χ_L = 0: a device with the whole model sends no activations
        n(j)   = H ([ψ_j > 0] + [χ_j > 0]) + 2 [δ_j > 0], messages; t_0 and t_m are 0 unless the cluster says otherwise;
             if the cluster has a t_c, H t_c more for a device that meets the server, j < L

    A device with a measured profile of its own takes that profile's seconds in place of (ρ_j + ϖ_j) / s_i.

    Args:
        profile, cluster, batch_size, local_steps: as in `latency`.

    Raises:
        ScenarioError: an argument is out of range, or times would be beyond floating point.

    Source: EdgeSplit (arXiv 2403.15815): computing and communication of a round [P]; its terms [R]; t_0, t_m, t_c [B].
    """

    def __init__(self, profile: Profile, cluster: EdgeCluster, batch_size: int = 32, local_steps: int = 1) -> None:
        check_profile(profile, cluster)
        self.profile, self.cluster = profile, cluster
        self.batch_size = check_count("batch_size", batch_size, fix="give the samples per device and mini-batch")
        self.local_steps = check_count("local_steps", local_steps, fix="give the mini-batches between two averages")
        samples = self.batch_size * self.local_steps
        self.n_devices = cluster.n_devices
        self.efficiency = cluster.spectral_efficiency  # (N,) bit/s/Hz
        passes = samples * (profile.fwd_cost + profile.bwd_cost)
        self.device_steps = self.local_steps * profile.steps  # (L+1,) FLOP of a round's optimizer steps
        self.device_work = passes + self.device_steps  # (L+1,) FLOP of a round before the cut
        # Forward and backward are subtracted apart: in their sum the smaller one loses its digits.
        behind = (profile.fwd_cost[-1] - profile.fwd_cost) + (profile.bwd_cost[-1] - profile.bwd_cost)
        self.server_steps = self.local_steps * (profile.steps[-1] - profile.steps)
        self.server_work = samples * behind + self.server_steps  # (L+1,) FLOP of a round behind the cut
        with np.errstate(over="ignore", invalid="ignore"):  # `_check_finite` refuses what overflows
            self.server_seconds = self.server_work * (self.n_devices / cluster.server_speed)  # (L+1,)
        self.up_bits = samples * profile.act_bits  # (L+1,)
        self.down_bits = samples * profile.grad_bits  # (L+1,)
        self.up_bits[-1] = self.down_bits[-1] = 0.0
        self.model_bits = profile.param_bits  # (L+1,), in each direction
        self.bits = self.up_bits + self.down_bits + 2 * self.model_bits  # (L+1,) D(j)
        messages = self.local_steps * ((self.up_bits > 0).astype(int) + (self.down_bits > 0))
        messages += 2 * (self.model_bits > 0)
        calls = self.local_steps * (np.arange(len(messages)) < profile.n_units)
        fixed = cluster.round_overhead + cluster.message_overhead * messages
        self.overhead = fixed + cluster.call_overhead * calls  # (L+1,) s
        #: (N,) number of each device's row in `measured_seconds`, -1 for a device known by its speed; (rows, L+1) s.
        self.profile_group, self.measured_seconds = self._measured(samples)
        self._check_finite()
        check_blocks(cluster)

    def _measured(self, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the devices' measured profiles as seconds of a round, equal ones once; see `profile_group`."""
        profiles = self.cluster.profiles
        if profiles is None:
            return np.full(self.n_devices, -1), np.empty((0, len(self.device_work)))
        row_of: dict[int, int] = {id(None): -1}
        rows: dict[bytes, tuple[int, np.ndarray]] = {}
        for own in {id(own): own for own in profiles if own is not None}.values():
            row = samples * (own.fwd_cost + own.bwd_cost) + self.local_steps * own.steps
            row_of[id(own)] = rows.setdefault(row.tobytes(), (len(rows), row))[0]
        group = np.array([row_of[id(own)] for own in profiles])
        return group, np.array([row for _, row in rows.values()]).reshape(len(rows), len(self.device_work))

    def _check_finite(self) -> None:
        cluster, total = self.cluster, self.cluster.bandwidth
        with np.errstate(divide="ignore", over="ignore"):
            slowest = self.device_work[-1] / cluster.device_speed[self.profile_group < 0].min(initial=np.inf)
            sending = self.bits.max() / (self.efficiency.min() * (total / self.n_devices))
            limits = (
                ("device_speed", "round", "s", slowest),
                ("server_speed", "round", "s", self.server_seconds[0]),
                ("round_overhead, message_overhead and call_overhead", "round", "s", self.overhead.max()),
                ("bandwidth", "round", "s", sending),
                ("bandwidth", "rate", "bit/s", self.efficiency.max() * total),
            )
        for name, what, unit, value in limits:
            if not value <= BEYOND:
                want, fix = f"a {what} of less than {BEYOND:g} {unit}", "give SI units: FLOP/s, bit/s/Hz, Hz"
                raise expected(f"EdgeCluster.{name}", want, f"{value:.3g} {unit}", fix)

    def device_seconds(self, cuts: np.ndarray) -> np.ndarray:
        """Return (N,) seconds that the devices compute in a round."""
        computing = self.device_work[cuts] / self.cluster.device_speed
        if len(self.measured_seconds):
            measured = np.flatnonzero(self.profile_group >= 0)
            computing[measured] = self.measured_seconds[self.profile_group[measured], cuts[measured]]
        return computing

    def compute(self, cuts: np.ndarray) -> np.ndarray:
        """Return (N,) c_i(j_i), seconds of computing on the device and for it on the server, and of overhead."""
        return self.device_seconds(cuts) + (self.server_seconds + self.overhead)[cuts]

    def load(self, cuts: np.ndarray) -> np.ndarray:
        """Return (N,) D(j_i) / e_i, Hz s: bandwidth times time that the device's bits take."""
        return self.bits[cuts] / self.efficiency

    def times(self, cuts: np.ndarray, bandwidth: np.ndarray | float) -> np.ndarray:
        """Return (N,) T_i, seconds."""
        return self.compute(cuts) + seconds(self.load(cuts), bandwidth)

    def latency(self, cuts: np.ndarray, bandwidth: np.ndarray) -> "RoundLatency":
        """Return the terms of the devices' times for checked (N,) cuts and (N,) Hz."""
        rate = self.efficiency * bandwidth
        device_steps = self.device_steps[cuts] / self.cluster.device_speed
        for i, own in enumerate(self.cluster.profiles or ()):
            if own is not None:
                device_steps[i] = self.local_steps * own.steps[cuts[i]]
        server_steps = self.server_steps[cuts] * (self.n_devices / self.cluster.server_speed)
        return RoundLatency(
            cuts=cuts,
            cut_names=tuple(self.profile.names[j] for j in cuts.tolist()),
            bandwidth=bandwidth,
            rate=rate,
            device_compute=self.device_seconds(cuts) - device_steps,
            server_compute=self.server_seconds[cuts] - server_steps,
            optimizer=device_steps + server_steps,
            activation_exchange=seconds((self.up_bits + self.down_bits)[cuts], rate),
            model_exchange=seconds(2 * self.model_bits[cuts], rate),
            overhead=self.overhead[cuts],
            device_times=self.times(cuts, bandwidth),
            uplink_bits=self.up_bits[cuts] + self.model_bits[cuts],
            downlink_bits=self.down_bits[cuts] + self.model_bits[cuts],
            device_names=self.cluster.device_names,
        )


@dataclass(frozen=True, repr=False, eq=False)
class RoundLatency(Record):
    """Seconds of one round of every device, by term.

    Args:
        cuts: (N,) j_i, numbers of the cuts.
        cut_names: N names of them.
        bandwidth: (N,) w_i, Hz.
        rate: (N,) e_i w_i, bit/s.
        device_compute: (N,) s, H b (ρ_j + ϖ_j) / s_i, or H b times the device's own measured seconds.
        server_compute: (N,) s, H b ((ρ_L − ρ_j) + (ϖ_L − ϖ_j)) / (s / N).
        optimizer: (N,) s, H [σ_j / s_i + (σ_L − σ_j) / (s / N)]; 0 for a profile without `step_cost`.
        activation_exchange: (N,) s, H b (ψ_j + χ_j) / (e_i w_i); nothing at j = L.
        model_exchange: (N,) s, 2 δ_j / (e_i w_i).
        device_times: (N,) T_i, s: the sum of the five, and of `overhead`.
        uplink_bits, downlink_bits: (N,) bits of a round in each direction.
        device_names: N names of the devices, or None.
        overhead: (N,) s, t_0 + t_m n(j) + t_c H; None for none.
        overlap: (N,) s, in micro-batches: by how much `device_times` is less than the sum, as machines work side by
            side; None without.

    Source: EdgeSplit (arXiv 2403.15815): computing and communication of a round [P]; its terms [R].
    """

    cuts: np.ndarray
    cut_names: tuple[str, ...]
    bandwidth: np.ndarray
    rate: np.ndarray
    device_compute: np.ndarray
    server_compute: np.ndarray
    optimizer: np.ndarray
    activation_exchange: np.ndarray
    model_exchange: np.ndarray
    device_times: np.ndarray
    uplink_bits: np.ndarray
    downlink_bits: np.ndarray
    device_names: tuple[str, ...] | None = None
    overhead: np.ndarray | None = None
    overlap: np.ndarray | None = None

    def terms(self) -> dict[str, np.ndarray]:
        """Return (N,) seconds by term; rare ones only where they take time."""
        found = {term: getattr(self, term) for term in TERMS}
        return {
            term: value for term, value in found.items() if term not in _RARE or (value is not None and value.any())
        }

    @property
    def total(self) -> float:
        """Seconds of the round: the time of the slowest device."""
        return float(self.device_times.max())

    def to_frame(self) -> pd.DataFrame:
        """Return one row per device: cut, bandwidth, rate, the terms and their total in seconds, and the bits."""
        columns = {
            "cut": self.cuts,
            "cut_name": np.array(self.cut_names, dtype=object),
            "bandwidth_hz": self.bandwidth,
            "rate_bit_s": self.rate,
            **self.terms(),
            **({} if self.overlap is None else {"overlap": self.overlap}),
            "total": self.device_times,
            "uplink_bits": self.uplink_bits,
            "downlink_bits": self.downlink_bits,
        }
        frame = pd.DataFrame(columns).rename_axis("device")
        if self.device_names is not None:
            frame.insert(0, "name", self.device_names)
        return frame

    def __repr__(self) -> str:
        slowest = int(self.device_times.argmax())
        shown = ", ".join(f"{term} {value[slowest]:.4g}" for term, value in self.terms().items())
        return f"RoundLatency({len(self.cuts)} devices: {self.total:.6g} s, of device {slowest}: {shown})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the terms of a few devices, the slowest among them."""
        chosen = html.some(len(self.cuts), [int(self.device_times.argmax())])
        terms = [term for term, value in self.terms().items() if value.any()]
        rows = []
        whole = self.total + (0.0 if self.overlap is None else float(self.overlap.max()))
        for i in chosen:
            device = i if self.device_names is None else f"{i}: {self.device_names[i]}"
            values = [float(getattr(self, term)[i]) for term in terms]
            bar = html.Bar([html.share(value, whole) for value in values])
            cut = f"{self.cuts[i]}: {self.cut_names[i]}"
            rows.append([device, cut, self.bandwidth[i] / 1e6, *values, self.device_times[i], bar])
        header = ["device", "cut", "MHz", *(f"{term}, s" for term in terms), "total, s", ""]
        note = html.left_out(len(self.cuts), len(chosen), "devices")
        return html.table(f"One round: {html.number(self.total, 's')}", header, rows, parts=terms, note=note)


def latency(
    profile: Profile,
    cluster: EdgeCluster,
    *,
    cuts: ArrayLike,
    bandwidth: ArrayLike,
    batch_size: int = 32,
    local_steps: int = 1,
) -> RoundLatency:
    """Return the time of one round of every device, in the terms that `RoundLatency` lists.

    Args:
        profile: costs of the model's cuts.
        cluster: the devices, their band and server.
        cuts: (N,) numbers 1..L or names of cuts; one for all is enough. Memory is not checked.
        bandwidth: (N,) Hz, together at most the band; whole blocks where the cluster has them.
        batch_size: b, samples per device and mini-batch.
        local_steps: H, mini-batches between two averages.

    Returns:
        The terms; `.total` is the round time, `.to_frame()` has a row per device.

    Raises:
        ScenarioError: an argument is out of range or of the wrong shape.
        InfeasibleError: there are fewer resource blocks than devices.

    Source: EdgeSplit (arXiv 2403.15815): computing and communication of a round [P]; its terms [R].
    """
    costs = RoundCosts(profile, cluster, batch_size, local_steps)
    return costs.latency(check_cuts(profile, cluster, cuts), check_bandwidth(cluster, bandwidth))
