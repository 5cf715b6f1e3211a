"""The joint problem in plain arrays: what every cut costs, and what every subchannel can carry."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from psl.aggregation import aggregated_rows
from psl.errors import InfeasibleError, ScenarioError, check_count, check_number, expected
from psl.networks.wireless_cell import WirelessCell
from psl.profiles import Profile
from psl.schedulers.checks import check_own_profiles, check_scenario, check_speeds, seconds
from psl.schedulers.epsl.water_filling import LN2, most_rate


@dataclass(frozen=True)
class CutTerms:
    """Seconds and bits of one round's parts for every cut 0..L: the coefficients of the round's latency.

    Rows are cuts, columns clients: (L+1, C) or (L+1,).
    """

    client_forward: np.ndarray  # (L+1, C) b ρ_j / s_i, s, or b times the client's own measured seconds
    upload_bits: np.ndarray  # (L+1,) b ψ_j
    server_forward: np.ndarray  # (L+1,) C b (ρ_L − ρ_j) / s_srv, s
    server_backward: np.ndarray  # (L+1,) [(n_A + C (b − n_A)) (ϖ_L − ϖ_j − ϖ_last) + C b ϖ_last] / s_srv, s
    broadcast_bits: np.ndarray  # (L+1,) n_A χ_j
    unicast_bits: np.ndarray  # (L+1,) (b − n_A) χ_j
    client_backward: np.ndarray  # (L+1, C) b ϖ_j / s_i, s, likewise

    @classmethod
    def of(cls, profile: Profile, cell: WirelessCell, batch_size: int, phi: float) -> "CutTerms":
        """Compute the terms for a profile, a cell, a mini-batch of b per client and a share φ."""
        b, n_a, n_clients = batch_size, aggregated_rows(phi, batch_size), cell.n_clients
        backward_rest = np.maximum(profile.bwd_cost[-1] - profile.bwd_cost - profile.last_bwd_cost, 0.0)
        rows = n_a + n_clients * (b - n_a)
        forward, backward = client_seconds(profile, cell)
        return cls(
            client_forward=b * forward,
            upload_bits=b * profile.act_bits,
            server_forward=n_clients * b * (profile.fwd_cost[-1] - profile.fwd_cost) / cell.server_speed,
            server_backward=(rows * backward_rest + n_clients * b * profile.last_bwd_cost) / cell.server_speed,
            broadcast_bits=n_a * profile.grad_bits,
            unicast_bits=(b - n_a) * profile.grad_bits,
            client_backward=b * backward,
        )


def client_seconds(profile: Profile, cell: WirelessCell) -> tuple[np.ndarray, np.ndarray]:
    """Return (L+1, C) forward and backward seconds per sample: by a client's own profile, or else by its speed."""
    forward = profile.fwd_cost[:, None] / cell.client_speed
    backward = profile.bwd_cost[:, None] / cell.client_speed
    for i, own in enumerate(cell.profiles or ()):
        if own is not None:
            forward[:, i], backward[:, i] = own.fwd_cost, own.bwd_cost
    return forward, backward


def whole_band_rates(cell: WirelessCell) -> np.ndarray:
    """Return (C,) Σ_k B_k log2(1 + p_dl g_ik / σ²), bit/s: each client's downlink on all subchannels."""
    return (cell.bandwidth * np.log2(1 + cell.downlink_psd * cell.snr_per_psd)).sum(axis=1)


def broadcast_rate(cell: WirelessCell) -> float:
    """Return R_bc, bit/s: the least of the whole-band rates, which everybody can decode."""
    return float(whole_band_rates(cell).min())


def check_profile(profile: Profile, cell: WirelessCell) -> None:
    """Raise `ScenarioError` unless both are what they are called, and speeds and own profiles go with the profile."""
    check_scenario(profile, "cell", cell, WirelessCell, "make one: WirelessCell(...) or WirelessCell.sample()")
    measured = cell.profiles or (None,) * cell.n_clients
    check_own_profiles(profile, measured, lambda i: f"WirelessCell.profiles[{i}]")
    by_speed = [speed for speed, own in zip(cell.client_speed, measured, strict=True) if own is None]
    fix = "WirelessCell(client_speed=[... relative ...], server_speed=...)"
    check_speeds(profile, "cell", [cell.server_speed, *by_speed], fix)


def check_batch(batch_size, phi) -> tuple[int, float]:
    """Return the checked mini-batch size and share φ."""
    batch_size = check_count("batch_size", batch_size, fix="give the samples per client and round, at least 1")
    phi = check_number(
        "phi", phi, minimum=0, maximum=1, fix="φ is the share of slots whose gradients are aggregated, 0 to 1"
    )
    return batch_size, phi


def check_cut(profile: Profile, cut) -> int:
    """Return the number of a cut a plan may use, 1..L-1, given by number or name."""
    index = profile.cut_index(cut)
    if not 1 <= index <= profile.n_units - 1:
        raise expected(
            "cut", f"1..{profile.n_units - 1}, so that raw data stay on the clients and the last layer on the server",
            f"{index} ({profile.names[index]!r})", "choose a cut in between", ScenarioError,
        )  # fmt: skip
    return index


def no_finite_plan() -> InfeasibleError:
    """Return (not raise) the error of a cell in which no plan has a finite round."""
    return expected(
        "cell", "a rate above 0 between every client and the base station", "no plan with a finite round time",
        "check gains (linear, not dB), noise_psd (W/Hz), downlink_psd (W/Hz) and power limits (W)", InfeasibleError,
    )  # fmt: skip


class RoundProblem:
    """Minimise, over cut j, channels and power, T = U + V + constant_j, for the candidate cuts `cuts`.

    U = max_i (A_i + D_u / R_i) is the uplink deadline, V = max_i (E_i + D_d / R_dl,i) the downlink one.

    Args:
        profile, cell, batch_size, phi: as in `solve`.
        cut: the only cut to consider, or None for all of 1..L-1.

    Raises:
        ScenarioError: an argument is out of range, or the model has fewer than 2 units.
    """

    def __init__(self, profile: Profile, cell: WirelessCell, batch_size: int, phi: float, cut=None):
        check_profile(profile, cell)
        self.profile, self.cell = profile, cell
        self.batch_size, self.phi = check_batch(batch_size, phi)
        if profile.n_units < 2:
            raise expected("profile", "at least 2 units, one on each side", profile.n_units, "split a deeper model")
        self.cuts = range(1, profile.n_units) if cut is None else [check_cut(profile, cut)]
        terms = CutTerms.of(profile, cell, self.batch_size, self.phi)
        self.up_compute, self.up_bits = terms.client_forward, terms.upload_bits
        self.down_compute, self.down_bits = terms.client_backward, terms.unicast_bits
        self.constant = (
            terms.server_forward + terms.server_backward + seconds(terms.broadcast_bits, broadcast_rate(cell))
        )
        self.bandwidth = cell.bandwidth
        self.snr = cell.snr_per_psd  # (C, M), per W/Hz
        self.log_snr = np.log2(self.snr)
        self.down_rate = cell.bandwidth * np.log2(1 + cell.downlink_psd * self.snr)  # (C, M)
        self.total = cell.total_power
        self.limit = np.minimum(cell.client_power, cell.total_power)  # (C,)
        self.n_clients, self.n_subchannels = self.snr.shape

    @cached_property
    def candidates(self) -> list[int]:
        """The cuts that can be best: no other costs at most as much in every term (of equals, the last stays)."""
        # Every client counts: with profiles of their own, two need not agree on which of two cuts costs less.
        terms = np.column_stack([self.up_compute, self.up_bits, self.down_compute, self.down_bits, self.constant])

        def beaten(j):
            return any(
                (terms[i] <= terms[j]).all() and (i > j or (terms[i] < terms[j]).any()) for i in self.cuts if i != j
            )

        return [j for j in self.cuts if not beaten(j)]

    @cached_property
    def uplink_reach(self) -> np.ndarray:
        """(C, M) most uplink bit/s client i can have from any n = 1..M subchannels with its power limit.

        Widths and gains are sorted separately and paired best with best: exact for equal widths, and by the
        rearrangement inequality an upper bound otherwise. Nobody carries more than with all subchannels.
        """
        snr = -np.sort(-self.snr, axis=1)
        width = -np.sort(-self.bandwidth)
        rise = 1.0 / snr - 1.0 / snr[:, :1]
        level = (self.limit[:, None] + np.cumsum(width * rise, axis=1)) / np.cumsum(width)  # above the best floor
        filled = level >= rise  # the n-th best is worth using: true up to some n, false after it
        loss = np.cumsum(width * np.log2(snr / snr[:, :1]), axis=1)
        rate = np.log1p(level * snr[:, :1]) / LN2 * np.cumsum(width) + loss
        rate += 1e-15 * np.cumsum(width)  # rounding must not make it too small
        rate = np.maximum.accumulate(np.where(filled, rate, 0.0), axis=1)
        client = np.repeat(np.arange(self.n_clients), self.n_subchannels)
        whole = most_rate(self.limit, client, self.snr.ravel(), np.tile(self.bandwidth, self.n_clients))
        return np.minimum(rate, whole[:, None])

    @cached_property
    def downlink_reach(self) -> np.ndarray:
        """(C, M) most downlink bit/s client i can have from any n = 1..M subchannels."""
        return np.cumsum(-np.sort(-self.down_rate, axis=1), axis=1)

    def reach_bound(self, cut: int) -> float:
        """Return a cheap lower bound of T at a cut: every client alone with its M − C + 1 best subchannels."""
        most = self.n_subchannels - self.n_clients
        up = self.up_compute[cut] + seconds(self.up_bits[cut], self.uplink_reach[:, most])
        down = self.down_compute[cut] + seconds(self.down_bits[cut], self.downlink_reach[:, most])
        return float(up.max() + down.max() + self.constant[cut])

    def downlink_time(self, cut: int, owner: np.ndarray) -> np.ndarray:
        """Return (C,) seconds of unicast and client backward when subchannel k serves client owner[k]."""
        rate = np.bincount(owner, self.down_rate[owner, np.arange(len(owner))], self.n_clients)
        return self.down_compute[cut] + seconds(self.down_bits[cut], rate)
