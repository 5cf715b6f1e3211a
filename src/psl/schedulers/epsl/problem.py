"""The joint problem in plain arrays: what every cut costs, and what every subchannel can carry."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from psl.errors import InfeasibleError, PSLError, expected
from psl.gradient_aggregation import sampled_rows
from psl.networks.wireless_cell import WirelessCell
from psl.profiles import Profile
from psl.schedulers.checks import seconds
from psl.schedulers.epsl.terms import CutTerms
from psl.schedulers.epsl.water_filling import LN2, most_rate, with_floor


def no_finite_plan() -> PSLError:
    """Return (not raise) the `InfeasibleError` of a cell in which no plan has a finite round."""
    want = "a rate above 0 between every client and the base station"
    fix = "check gains (linear, not dB), noise_psd (W/Hz), downlink_psd (W/Hz) and power limits (W)"
    return expected("cell", want, "no plan with a finite round time", fix, InfeasibleError)


class RoundProblem:
    """Minimise, over cut j, subchannels and power, T = U + V + constant_j, for the candidate cuts `cuts`.

    U = max_i (A_i + D_u / r_i) is the uplink deadline, V = max_i (E_i + D_d / r_dl,i) the downlink one; A, D_u, E, D_d
    and the constant are the `CutTerms` of `latency`.

    Args:
        profile, cell, batch_size, phi, linearise: as in `solve`, checked.
        cut: number of the only cut to consider, or None for all of min_cut..L-1.
        min_cut: number of the shallowest cut to consider.

    Attributes:
        down_rate: (N, K) downlink bit/s of client i on subchannel k; if rows are drawn, its d_i-th part: then all
            clients have the same bits to receive, those of one row.
    """

    def __init__(
        self,
        profile: Profile,
        cell: WirelessCell,
        batch_size: int,
        phi: float,
        cut: int | None = None,
        linearise: str = "representative",
        min_cut: int = 1,
    ):
        self.profile, self.cell, self.batch_size, self.phi = profile, cell, batch_size, phi
        self.cuts: Sequence[int] = range(min_cut, profile.n_units) if cut is None else [cut]
        rows = sampled_rows(phi, batch_size, cell.n_clients) if linearise == "sampled" else None
        self.terms = terms = CutTerms.of(profile, cell, batch_size, phi, rows=rows)
        self.up_compute, self.up_bits = terms.client_forward, terms.upload_bits
        self.down_compute = terms.client_backward + terms.client_step
        self.down_bits = terms.unicast_bits if rows is None else profile.grad_bits
        broadcast = seconds(terms.broadcast_bits, cell.broadcast_rate())
        server = terms.server_forward + terms.second_forward + terms.server_backward + terms.server_step
        fixed = cell.round_overhead + cell.message_overhead * terms.messages + cell.call_overhead
        self.constant = server + broadcast + fixed  # (L+1,) s
        self.bandwidth = cell.bandwidth
        self.snr = with_floor(cell.snr_per_psd)  # (N, K), per W/Hz
        self.log_snr = np.log2(self.snr)
        rate = cell.subchannel_downlink_rate()
        self.down_rate = rate if rows is None else rate / rows[:, None]  # (N, K)
        self.total = cell.total_power
        self.limit = np.minimum(cell.client_power, cell.total_power)  # (N,)
        self.n_clients, self.n_subchannels = self.snr.shape

    @cached_property
    def candidates(self) -> list[int]:
        """The cuts that can be best: no other costs at most as much in every term (of equals, the last stays)."""
        # Every client counts: with profiles of their own, two need not agree on which of two cuts costs less.
        columns = (self.up_compute, self.up_bits, self.down_compute, self.down_bits, self.constant)
        return self.undominated(np.column_stack(columns))

    def undominated(self, terms: np.ndarray) -> list[int]:
        """Return the cuts that no other beats in every column of (L+1, …) terms; of equals, the last."""

        def beaten(j: int) -> bool:
            return any(
                (terms[i] <= terms[j]).all() and (i > j or (terms[i] < terms[j]).any()) for i in self.cuts if i != j
            )

        return [j for j in self.cuts if not beaten(j)]

    @cached_property
    def uplink_reach(self) -> np.ndarray:
        """(N, K) most uplink bit/s client i can have from any n = 1..K subchannels with its power limit.

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
        """(N, K) most downlink bit/s client i can have from any n = 1..K subchannels."""
        return np.cumsum(-np.sort(-self.down_rate, axis=1), axis=1)

    def reach_bound(self, cut: int) -> float:
        """Return a cheap lower bound of T at a cut: every client alone with its K − N + 1 best subchannels."""
        most = self.n_subchannels - self.n_clients
        up = self.up_compute[cut] + seconds(self.up_bits[cut], self.uplink_reach[:, most])
        down = self.down_compute[cut] + seconds(self.down_bits[cut], self.downlink_reach[:, most])
        return float(up.max() + down.max() + self.constant[cut])

    def downlink_time(self, cut: int, assignment: np.ndarray) -> np.ndarray:
        """Return (N,) seconds of unicast and client backward when subchannel k serves client assignment[k]."""
        # WirelessCell.downlink_rate, from the rates at hand: the local search asks very often.
        rate = np.bincount(assignment, self.down_rate[assignment, np.arange(len(assignment))], self.n_clients)
        return self.down_compute[cut] + seconds(self.down_bits[cut], rate)
