"""A wireless cell: clients with subchannels around one base station with a server, and the rates of their links."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from psl.errors import check_array, check_choice, check_count, check_number, expected, missing_package
from psl.networks import channel_models
from psl.networks.overheads import FIELDS, without_zeros
from psl.networks.validation import check_profiles, check_range
from psl.profiles import Profile
from psl.records import Record
from psl.units import dbm_to_watt

#: Client and server speeds of the default scenario [R]: cycles per second times FLOP per cycle.
CLIENT_SPEED_RANGE = (1.0e9 * 16, 1.6e9 * 16)
SERVER_SPEED = 5.0e9 * 32

_LN2 = math.log(2.0)


def shannon_rate(bandwidth: np.ndarray | float, snr: np.ndarray) -> np.ndarray:
    """Return w log2(1 + SNR), bit/s, element by element.

    Args:
        bandwidth: Hz.
        snr: signal-to-noise ratio, linear; broadcasts with `bandwidth`.
    """
    return bandwidth * np.log1p(snr) / _LN2  # log1p: optimal powers may be so low that 1 + SNR is 1


@dataclass(frozen=True, repr=False, eq=False)
class WirelessCell(Record):
    """N clients share K subchannels to one server; every subchannel serves exactly one client.

    Args:
        client_speed: (N,) client speeds s_i, FLOP/s; for a model whose profile is measured, relative to its reference
            device (1.0 is that device).
        server_speed: server speed s_srv, in the same unit.
        uplink_gain: (N, K) linear power gain g_ik, antenna gains included; used for both directions. 0 is a subchannel
            that a client cannot use.
        bandwidth: (K,) subchannel bandwidths w_k, Hz; a scalar serves all.
        noise_psd: noise power spectral density n_0, W/Hz.
        client_power: (N,) power limit P_i of each client, W; a scalar serves all.
        total_power: limit on the clients' summed power, W.
        downlink_psd: transmit power spectral density p_dl of the base station, W/Hz.
        round_overhead: t_0, s that every round takes whatever it carries; 0 as in the papers' formulas.
        message_overhead: t_m, s that every message takes besides its bits; messages of different clients that travel
            at a time take it once.
        call_overhead: t_c, s that every forward and backward pass of the server takes besides its FLOP, however few
            rows it has. `psl.networks.overheads` has typical values of all three [R].
        positions: (N, 2) client positions around the base station, m; optional, for plots.
        line_of_sight: (N,) 1 where a client sees the base station, else 0; optional.
        profiles: N measured profiles (unit "s") of the model that is planned, one per client, or None for clients known
            by their speed; optional. A client's own profile gives its forward and backward seconds in place of its
            speed; bits, and the server's costs, stay those of the profile that is planned with.

    Raises:
        ScenarioError: wrong shapes, NaN, non-positive speeds, bandwidths or powers, gains over noise beyond the range
            of floating point, fewer subchannels than clients (every client needs at least one), or a client's
            profile that is not measured.

    Source: EPSL (arXiv 2303.15991): a cell of heterogeneous clients [P]; its model [R]; `profiles`, overheads [B].
    """

    client_speed: np.ndarray
    server_speed: float
    uplink_gain: np.ndarray
    bandwidth: np.ndarray
    noise_psd: float
    client_power: np.ndarray
    total_power: float
    downlink_psd: float
    round_overhead: float = 0.0
    message_overhead: float = field(default=0.0, kw_only=True)
    call_overhead: float = field(default=0.0, kw_only=True)
    positions: np.ndarray | None = field(default=None, kw_only=True)
    line_of_sight: np.ndarray | None = field(default=None, kw_only=True)
    profiles: tuple[Profile | None, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        speeds = check_array("WirelessCell.client_speed", self.client_speed, shape=(None,), minimum=0, strict=True)
        fix = "pass linear power gains (not dB), one row per client and one column per subchannel"
        shape = (len(speeds), None)
        gain = check_array("WirelessCell.uplink_gain", self.uplink_gain, shape=shape, minimum=0, fix=fix)
        n_clients, n_subchannels = gain.shape
        if n_clients < 1 or n_subchannels < n_clients:
            got = f"{n_clients} clients and {n_subchannels} subchannels"
            want = "at least one client and one subchannel per client"
            raise expected("WirelessCell.uplink_gain", want, got, "add subchannels or remove clients")
        self._set(client_speed=speeds, uplink_gain=gain)
        for name, shape in (("bandwidth", (n_subchannels,)), ("client_power", (n_clients,))):
            value = check_array(f"WirelessCell.{name}", getattr(self, name), shape=shape, minimum=0, strict=True)
            self._set(**{name: value})
        for name in ("server_speed", "noise_psd", "total_power", "downlink_psd"):
            value = check_number(f"WirelessCell.{name}", getattr(self, name), minimum=0, strict=True)
            self._set(**{name: value})
        for name in FIELDS:
            self._set(**{name: check_number(f"WirelessCell.{name}", getattr(self, name), minimum=0)})
        with np.errstate(over="ignore"):
            snr = self.snr_per_psd
        fits = np.isfinite(snr) & (snr >= np.finfo(float).tiny)  # below it, 1 / snr may overflow
        odd = np.argwhere(~(fits | (gain == 0)))
        if odd.size:
            i, k = map(int, odd[0])
            got = f"{snr[i, k]:g} for client {i} on subchannel {k}"
            fix = "pass linear power gains, and the noise in W/Hz"
            raise expected("WirelessCell.uplink_gain / noise_psd", "a positive, finite ratio", got, fix)
        for name, shape in (("positions", (n_clients, 2)), ("line_of_sight", (n_clients,))):
            if getattr(self, name) is not None:
                self._set(**{name: check_array(f"WirelessCell.{name}", getattr(self, name), shape=shape)})
        if self.profiles is not None:
            profiles = check_profiles("WirelessCell.profiles", self.profiles, n_clients, "client")
            self._set(profiles=profiles)

    def _values(self) -> dict[str, Any]:
        return without_zeros(super()._values())

    @property
    def n_clients(self) -> int:
        """N, the number of clients."""
        return self.uplink_gain.shape[0]

    @property
    def n_subchannels(self) -> int:
        """K, the number of subchannels."""
        return self.uplink_gain.shape[1]

    @property
    def snr_per_psd(self) -> np.ndarray:
        """(N, K) g_ik / n_0: signal-to-noise ratio per W/Hz of transmit density."""
        return self.uplink_gain / self.noise_psd

    def uplink_rate(self, assignment: ArrayLike, power: ArrayLike) -> np.ndarray:
        """Return (N,) r_i = Σ_k x_ik w_k log2(1 + p_k g_ik / n_0), bit/s, for x_ik = 1 where assignment[k] = i, else 0.

        Args:
            assignment: (K,) client of each subchannel; a client without a subchannel has no rate.
            power: (K,) transmit power density p_k on each subchannel, W/Hz. The limits of clients and cell are not
                checked.

        Raises:
            ScenarioError: wrong shapes, clients that do not exist, or a power that is negative or not finite.

        Source: EPSL (arXiv 2303.15991), reconstruction [R].
        """
        snr = self._assigned_snr(assignment)
        density = np.asarray(power, dtype=float)
        if density.shape != snr.shape or not ((density >= 0) & (density < np.inf)).all():
            want = f"{self.n_subchannels} finite densities of at least 0"
            raise expected("power", want, repr(power)[:80], "give the W/Hz on each subchannel")
        return np.bincount(assignment, shannon_rate(self.bandwidth, density * snr), self.n_clients)

    def downlink_rate(self, assignment: ArrayLike) -> np.ndarray:
        """Return (N,) r_dl,i = Σ_k x_ik w_k log2(1 + p_dl g_ik / n_0), bit/s: unicast to client i on its subchannels.

        Args:
            assignment: (K,) client of each subchannel.

        Raises:
            ScenarioError: the wrong shape, or clients that do not exist.

        Source: EPSL (arXiv 2303.15991), reconstruction [R].
        """
        return np.bincount(assignment, self._downlink(self._assigned_snr(assignment)), self.n_clients)

    def subchannel_downlink_rate(self) -> np.ndarray:
        """Return (N, K) w_k log2(1 + p_dl g_ik / n_0), bit/s: the downlink of client i on subchannel k."""
        return self._downlink(self.snr_per_psd)

    def whole_band_downlink_rate(self) -> np.ndarray:
        """Return (N,) Σ_k w_k log2(1 + p_dl g_ik / n_0), bit/s: each client's downlink on all subchannels."""
        return self.subchannel_downlink_rate().sum(axis=1)

    def broadcast_rate(self) -> float:
        """Return r_bc = min_i Σ_k w_k log2(1 + p_dl g_ik / n_0), bit/s: on all subchannels, for the worst client.

        Source: EPSL (arXiv 2303.15991), reconstruction [R].
        """
        return float(self.whole_band_downlink_rate().min())

    def _downlink(self, snr_per_psd: np.ndarray) -> np.ndarray:
        """Return bit/s for (..., K) signal-to-noise ratios per W/Hz."""
        # Not `shannon_rate`, which has other last bits: they decide between plans that are equally good, and the
        # plans of the committed figures were made with these.
        return self.bandwidth * np.log2(1 + self.downlink_psd * snr_per_psd)

    def _assigned_snr(self, assignment: ArrayLike) -> np.ndarray:
        """Return (K,) signal-to-noise ratio per W/Hz of each subchannel at the client that has it."""
        client, n = np.asarray(assignment), self.n_clients
        if (
            client.shape != (self.n_subchannels,)
            or client.dtype.kind not in "iu"
            or not ((client >= 0) & (client < n)).all()
        ):
            want = f"the number 0..{n - 1} of a client for each of the {self.n_subchannels} subchannels"
            raise expected("assignment", want, repr(assignment)[:80], "give whole numbers, one per subchannel")
        return self.snr_per_psd[client, np.arange(len(client))]

    @classmethod
    def sample(
        cls,
        n_clients: int = 5,
        n_subchannels: int = 20,
        seed: int = 0,
        channel: str = "umi",
        *,
        radius: float = 200.0,
        subchannel_bandwidth: float = 10e6,
        carrier_frequency: float = 28e9,
        noise_dbm_per_hz: float = -174.0,
        antenna_gain: float = 10.0,
        client_power_dbm: float = 31.76,
        total_power_dbm: float = 36.99,
        downlink_psd_dbm_per_hz: float = -50.0,
        client_speed_range: tuple[float, float] = CLIENT_SPEED_RANGE,
        server_speed: float = SERVER_SPEED,
        round_overhead: float = 0.0,
        message_overhead: float = 0.0,
        call_overhead: float = 0.0,
    ) -> "WirelessCell":
        """Draw the default scenario: clients uniform in a disc around the base station.

        Args:
            n_clients, n_subchannels: N and K.
            seed: the same seed gives the same cell, on every machine of the same library versions.
            channel: ``"umi"``: 3GPP TR 38.901 urban micro (street canyon) from Sionna, with path loss,
                line-of-sight state, shadowing and frequency selectivity; ``"log-distance"``: the
                dependency-free path loss 32.4 + 21 log10 d + 20 log10 f_GHz dB for line of sight, flat
                over the subchannels.
            radius: of the disc, m.
            subchannel_bandwidth, carrier_frequency: Hz.
            noise_dbm_per_hz: noise density, dBm/Hz.
            antenna_gain: product of both ends' antenna gains, linear.
            client_power_dbm, total_power_dbm: power limits, dBm.
            downlink_psd_dbm_per_hz: base station's transmit density, dBm/Hz.
            client_speed_range: clients' speeds are uniform in it, FLOP/s.
            server_speed: FLOP/s. Scale it (and `total_power_dbm`) with the number of clients in scaling
                studies: with an unscaled server the best cut moves to the last layer.
            round_overhead, message_overhead, call_overhead: as in `WirelessCell`.

        Warns where a client or the carrier is outside the range for which TR 38.901 gives a path loss.

        Raises:
            ScenarioError: an argument is out of range.
            ModuleNotFoundError: ``channel="umi"`` without torch or Sionna.

        Source: EPSL (arXiv 2303.15991); default scenario [R].
        """
        n_clients = check_count("n_clients", n_clients)
        n_subchannels = check_count("n_subchannels", n_subchannels)
        seed = check_count("seed", seed, minimum=0)
        check_choice("channel", channel, channel_models.MODELS)
        for name, value in {
            "radius": radius,
            "subchannel_bandwidth": subchannel_bandwidth,
            "carrier_frequency": carrier_frequency,
            "antenna_gain": antenna_gain,
            "server_speed": server_speed,
        }.items():
            check_number(name, value, minimum=0, strict=True)
        slowest, fastest = check_range("client_speed_range", client_speed_range, "FLOP/s")
        rng = np.random.default_rng(seed)
        speeds = rng.uniform(slowest, fastest, n_clients)
        # Nobody stands closer than 10 m: below that TR 38.901 does not define a path loss.
        distance = np.sqrt(rng.uniform(min(10.0 / radius, 1.0) ** 2, 1.0, n_clients)) * radius
        angle = rng.uniform(0, 2 * np.pi, n_clients)
        positions = np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1)
        channel_models.warn_outside_validity(distance, carrier_frequency, stacklevel=2)
        try:
            gain, line_of_sight = channel_models.MODELS[channel](
                positions, n_subchannels, subchannel_bandwidth, carrier_frequency, seed
            )
        except ModuleNotFoundError as cause:  # torch or Sionna
            raise missing_package(f"channel={channel!r}", cause, ", or use channel='log-distance'") from cause
        return cls(
            client_speed=speeds,
            server_speed=server_speed,
            uplink_gain=antenna_gain * gain,
            bandwidth=np.full(n_subchannels, subchannel_bandwidth),
            noise_psd=float(dbm_to_watt(noise_dbm_per_hz)),
            client_power=np.full(n_clients, float(dbm_to_watt(client_power_dbm))),
            total_power=float(dbm_to_watt(total_power_dbm)),
            downlink_psd=float(dbm_to_watt(downlink_psd_dbm_per_hz)),
            round_overhead=round_overhead,
            message_overhead=message_overhead,
            call_overhead=call_overhead,
            positions=positions,
            line_of_sight=line_of_sight,
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row per client: distance, line of sight, speed, power limit, mean gain in dB."""
        frame = pd.DataFrame(
            {
                "speed": self.client_speed,
                "power_limit_w": self.client_power,
                "mean_gain_db": 10 * np.log10(self.uplink_gain.mean(axis=1)),
            }
        ).rename_axis("client")
        if self.positions is not None:
            frame.insert(0, "distance_m", np.hypot(*self.positions.T))
        if self.line_of_sight is not None:
            frame.insert(1, "line_of_sight", self.line_of_sight.astype(bool))
        return frame

    def __repr__(self) -> str:
        return (
            f"WirelessCell({self.n_clients} clients, {self.n_subchannels} subchannels, "
            f"{self.bandwidth.sum() / 1e6:.4g} MHz, server {self.server_speed / 1e9:.4g} GFLOP/s)"
        )
