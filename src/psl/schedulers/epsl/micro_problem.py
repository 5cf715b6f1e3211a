"""The joint problem of rounds in micro-batches: what a cut takes at given rates, and the power that a deadline needs.

Source: ours [B].
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from psl.networks.wireless_cell import shannon_rate
from psl.schedulers.epsl.pipelined import PipelinedRound, Served, sending_seconds, server_seconds
from psl.schedulers.epsl.power import optimal_power, within_limits
from psl.schedulers.epsl.problem import RoundProblem
from psl.schedulers.epsl.server_order import preemptive_bound
from psl.schedulers.epsl.water_filling import fill, least_power
from psl.schedulers.micro_batches import one_client

_PRECISION = 1e-5  # relative, of deadlines while subchannels are searched
_ORDER = 1e-3  # relative, of the server's orders then; a smaller loss is left to the end
_SLACK = 1 + 1e-9  # a client this close to the end of the round is critical


class MicroProblem(RoundProblem):
    """Minimise, over cut, subchannels and power, the time of a round in micro-batches of given sizes.

    Args:
        profile, cell, batch_size, cut, min_cut: as in `RoundProblem`.
        phi: 0 or 1.
        sizes: (M,) samples of each micro-batch.
        duplex: "full" or "half".
    """

    def __init__(self, *scenario: Any, sizes: np.ndarray, duplex: str = "full", **options: Any) -> None:
        super().__init__(*scenario, **options)
        self.sizes, self.duplex = sizes, duplex
        self.tried: dict[tuple[int, bytes], float] = {}  # s, by cut and assignment
        self.slots = self.phi == 1
        self.shares = sizes / sizes.sum()  # (M,)
        self.common_rate = self.cell.broadcast_rate()

    @cached_property
    def candidates(self) -> list[int]:
        """The cuts that can be best: no other costs at most as much on every machine (of equals, the last stays)."""
        t = self.terms
        server = t.server_forward + t.second_forward + t.server_backward
        columns = (t.client_forward, t.upload_bits, server, t.server_step, t.broadcast_bits, t.unicast_bits)
        return self.undominated(np.column_stack([*columns, t.client_backward, t.client_step]))

    def round(self, cut: int, up_rate: np.ndarray, down_rate: np.ndarray) -> PipelinedRound:
        """Return the round of a cut at (N,) bit/s up and down."""
        return PipelinedRound.of(
            self.terms, self.cell, cut, self.sizes, up_rate, down_rate, self.common_rate,
            slots=self.slots, duplex=self.duplex,
        )  # fmt: skip

    def client_bound(self, cut: int, client: np.ndarray, up_rate: np.ndarray, down_rate: np.ndarray) -> np.ndarray:
        """Return (n,) s that a round takes at least, because client[n] has these rates: it alone with the server."""
        t, share, cell = self.terms, self.shares, self.cell
        forward, backward = t.client_forward[cut][client], t.client_backward[cut][client]
        up = sending_seconds(t.upload_bits[cut], up_rate, share, cell)
        down = sending_seconds(t.unicast_bits[cut], down_rate, share, cell)
        if self.slots:
            down = np.broadcast_to(sending_seconds(t.broadcast_bits[cut], self.common_rate, share, cell), up.shape)
        step, first, last = t.client_step[cut][client], forward * share[0], backward * share[-1]
        server = server_seconds(t, cell, cut, share, slots=self.slots)
        least = one_client(forward[:, None] * share, up, server, down, backward[:, None] * share)
        if self.duplex == "half":
            least = np.maximum(least, first + (up + down).sum(axis=1) + last)
        return cell.round_overhead + least + step

    def least_counts(self, cut: int, below: float) -> np.ndarray | None:
        """Return (N,) the least subchannels that each client of a shorter round holds, or None if there is none.

        Args:
            cut: its number.
            below: s, the round is to be shorter.
        """
        n_clients, n_subchannels = self.n_clients, self.n_subchannels
        client = np.repeat(np.arange(n_clients), n_subchannels)
        times = self.client_bound(cut, client, self.uplink_reach.ravel(), self.downlink_reach.ravel())
        enough = times.reshape(n_clients, n_subchannels) < below  # (N, K) with the n + 1 best
        if not enough[:, -1].all():
            return None
        counts = np.argmax(enough, axis=1) + 1
        return counts if counts.sum() <= n_subchannels else None

    def reach_bound(self, cut: int, counts: np.ndarray | None = None) -> float:
        """Return a cheap lower bound of a cut: every client with the best subchannels that the others can leave it.

        Args:
            cut: its number.
            counts: (N,) subchannels that each client needs at least; one each if None.
        """
        counts = np.ones(self.n_clients, dtype=int) if counts is None else counts
        most = self.n_subchannels - counts.sum() + counts - 1
        who = np.arange(self.n_clients)
        up, down = self.uplink_reach[who, most], self.downlink_reach[who, most]
        found = self.round(cut, up, down)
        least = float(self.client_bound(cut, who, up, down).max())
        if not self.slots:
            return max(least, self.cell.round_overhead + preemptive_bound(*found.jobs()))
        return max(least, found.bound())


@dataclass
class MicroState:
    """An assignment at a cut with the power that makes its round short.

    Attributes:
        value: s of the round.
        up_rate, down_rate, most: (N,) bit/s; `most` is what a client's own power limit allows.
        density: (K,) W/Hz.
        round: the round at these rates.
        served: its order.

    Args:
        problem, cut, assignment: the problem, and what is given.
        thorough: begin with several orders of the server, and find the best order for the final rates.
    """

    problem: MicroProblem
    cut: int
    assignment: np.ndarray
    thorough: bool = False

    def __post_init__(self) -> None:
        problem, cut, k = self.problem, self.cut, np.arange(self.problem.n_subchannels)
        self.snr = problem.snr[self.assignment, k]
        self.down_rate = np.bincount(self.assignment, problem.down_rate[self.assignment, k], problem.n_clients)
        self.most = fill(problem.limit, self.assignment, self.snr, problem.bandwidth)[0]
        self._take(self.most)
        if problem.terms.upload_bits[cut] == 0:
            self.density = np.zeros(problem.n_subchannels)
            return
        if problem.limit.sum() <= problem.total * _SLACK:
            self._spend()
            return
        least = self.value  # no power within the clients' own limits makes it shorter
        even = problem.limit * (problem.total / problem.limit.sum())
        met = fill(even, self.assignment, self.snr, problem.bandwidth)[0]  # (N,) bit/s within all limits
        best: tuple[Any, ...] = (np.inf,)
        for number, start in enumerate([self.most, met, self._whole_batch()] if self.thorough else [self.most]):
            before = np.inf
            if number > 0:  # the first was taken above
                self._take(start)
            for _ in range(4):
                self._take(self._raised(self._rates_for_power(least, met)))
                best = min(best, self._now(), key=lambda state: state[0])
                if self.value >= before * (1 - _PRECISION) or best[0] <= least * (1 + _PRECISION):
                    break
                before = self.value
        self.value, self.up_rate, self.round, self.served = best
        self._spend()

    def _whole_batch(self) -> np.ndarray:
        """Return (N,) bit/s that are best for a whole mini-batch with barriers."""
        density = optimal_power(self.problem, self.cut, self.assignment)
        return np.bincount(self.assignment, shannon_rate(self.problem.bandwidth, density * self.snr), len(self.most))

    def _raised(self, rate: np.ndarray) -> np.ndarray:
        """Return (N,) bit/s raised by one share of the way to the most, in logarithms, so that all power is spent."""
        low, high = 0.0, 1.0
        for _ in range(12):
            share = 0.5 * (low + high)
            spent = self._power(rate ** (1 - share) * self.most**share)[0]
            low, high = (share, high) if spent <= self.problem.total else (low, share)
        return rate ** (1 - low) * self.most**low

    def _spend(self) -> None:
        self.density = within_limits(self.problem, self.assignment, self._power(self.up_rate)[1])

    def _now(self) -> tuple[Any, ...]:
        return self.value, self.up_rate, self.round, self.served

    def _take(self, rate: np.ndarray) -> None:
        self.up_rate, self.round = rate, self.problem.round(self.cut, rate, self.down_rate)
        self.served: Served = self.round.served(precision=1e-9 if self.thorough else _ORDER)
        self.value = self.served.value

    def _power(self, rate: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the least W in total, and (K,) W/Hz, with which the clients carry (N,) bit/s."""
        need, _, density = least_power(rate, self.assignment, self.snr, self.problem.bandwidth)
        return float(need.sum()), density

    def _rates_for_power(self, least: float, met: np.ndarray) -> np.ndarray:
        """Return (N,) bit/s that meet the earliest deadline the total power allows, with the server's order kept.

        Args:
            least: s, no deadline is earlier.
            met: (N,) bit/s that all limits allow.
        """
        total, rate_for = self.problem.total, self._rate_for()
        slow = self.problem.round(self.cut, met, self.down_rate)
        low, high = (
            least,
            slow.begin
            + max(float(slow.computing.max()), float((slow.release + slow.remaining(self.served.order)).max())),
        )
        if slow.half_duplex:
            high = max(high, slow.bound())

        def excess(deadline: float) -> tuple[float, np.ndarray]:
            rate = rate_for(deadline)
            spent = self._power(np.minimum(rate, self.most))[0]
            return (np.log(spent / total) if (rate <= self.most * _SLACK).all() else np.inf), rate

        at_low, rate = excess(low)
        if at_low <= 0:
            return np.minimum(rate, self.most)
        at_high, best = excess(high)
        for _ in range(60):
            if high - low <= 0.01 * _PRECISION * high:
                break
            step = at_high / (at_high - at_low) if np.isfinite(at_low) and at_low > at_high else 0.5
            middle = high - (high - low) * min(max(step, 0.02), 0.98)
            value, rate = excess(middle)
            if value <= 0:
                high, at_high, best = middle, value, rate
                at_low *= 0.5  # Illinois: the end that stays counts half
            else:
                low, at_low = middle, value
                at_high *= 0.5
        return np.minimum(best, self.most)

    def _rate_for(self) -> Any:
        """Return a function from a deadline to the (N,) least bit/s up that meet it, with the order kept."""
        found, share, bits = self.round, self.problem.shares, float(self.problem.terms.upload_bits[self.cut])
        carried = np.cumsum(share)
        part = carried[None, :] - (carried - share)[:, None]  # (l, k): share of micro-batches l..k
        number = np.arange(len(share))
        fixed = self.problem.cell.message_overhead * (number[None, :] - number[:, None] + 1)
        valid = np.triu(np.ones_like(part, dtype=bool))
        ready = np.cumsum(found.forward, axis=1)[:, :, None]  # (N, l, 1)
        rest = found.remaining(self.served.order)[:, None, :]  # (N, 1, k)
        ahead = ready + rest + fixed + found.begin
        common = 0.0 if found.broadcast is None else found.broadcast
        busy = found.forward[:, 0] + found.backward[:, -1] + found.client_step + (found.down + common).sum(axis=1)
        busy += found.begin + fixed[0, -1]

        def rate_for(deadline: float) -> np.ndarray:
            slack = deadline - ahead
            with np.errstate(divide="ignore"):
                rate = np.where(valid, np.where(slack > 0, bits * part / np.maximum(slack, 1e-300), np.inf), 0.0)
                rate = rate.max(axis=(1, 2))
                if found.half_duplex:
                    left = deadline - busy
                    rate = np.maximum(rate, np.where(left > 0, bits / np.maximum(left, 1e-300), np.inf))
            return rate

        return rate_for

    def critical(self) -> np.ndarray:
        """Return the clients whose links the end of the round waits for; none if it waits for a client's computing."""
        found, order = self.round, self.served.order
        end = self.value - found.begin
        if float(found.computing.max()) >= end / _SLACK:
            return np.zeros(0, dtype=int)
        first = (found.release + found.remaining(order)).max(axis=1)
        if found.half_duplex:
            common = 0.0 if found.broadcast is None else found.broadcast
            first = np.maximum(first, (found.up + found.down + common).sum(axis=1))
            return np.argsort(-first)[:2]
        clients = set(np.flatnonzero(first >= first.max() / _SLACK).tolist())
        if found.broadcast is None:
            done, now, left = np.zeros_like(found.release), 0.0, [0] * len(found.forward)
            for i in order.tolist():
                now = done[i, left[i]] = max(now, found.release[i, left[i]]) + found.server[left[i]]
                left[i] += 1
            last = (done + found.tail).max(axis=1)
            clients |= set(np.flatnonzero(last >= last.max() / _SLACK).tolist())
        return np.array(sorted(clients))
