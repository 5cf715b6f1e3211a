"""A round in micro-batches, without barriers between its phases: what it takes at given rates, and in which order.

Client i takes f_k for the forward pass of micro-batch k, u_k to upload it, d_k to download its gradients and e_k for
the backward pass. It goes forward through all micro-batches before it goes back, and all its machines take them in
order. So micro-batch k reaches the server at r_ik, and the round cannot end earlier than q_ik after the server is done
with it (`releases`, `tails`).

* φ = 0: the server takes one micro-batch of one client at a time, forward and backward, in `order`. The round takes
  max{max_i Σ_k (f_k + e_k), max_ik (C_ik + q_ik)}.
* φ = 1: micro-batch k of all clients is a *slot*. The server waits for all of it, aggregates, and broadcasts one
  gradient: a pipeline of slots with a barrier for each.

Client and server step once, after their last micro-batch. On half duplex a client's uploads and downloads share its
subchannels. Then there is no closed form: orders are made as jobs arrive, uploads first or downloads first.

Source: ours [B], for the round of EPSL (arXiv 2303.15991) [R].
"""

import heapq
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from psl.networks.wireless_cell import WirelessCell
from psl.schedulers.checks import seconds
from psl.schedulers.epsl.server_order import best_order, preemptive_bound
from psl.schedulers.epsl.terms import CutTerms
from psl.schedulers.micro_batches import line_end, releases, tails

_TIE = 1e-12  # relative; what ends so little later ends at the same moment


def sending_seconds(bits: float, rate: np.ndarray | float, share: np.ndarray, cell: WirelessCell) -> np.ndarray:
    """Return (…, M) s to send each micro-batch's share of a mini-batch's bits, with the time of a message if any.

    Args:
        bits: of the mini-batch.
        rate: (…,) bit/s.
        share: (M,) of each micro-batch.
        cell: has the time of a message.
    """
    return np.asarray(seconds(bits, rate))[..., None] * share + cell.message_overhead * (bits > 0)


def server_seconds(terms: CutTerms, cell: WirelessCell, cut: int, share: np.ndarray, *, slots: bool) -> np.ndarray:
    """Return (M,) s of the server's jobs at a cut: micro-batches of one client, or slots of all."""
    work = terms.server_forward[cut] + terms.second_forward[cut] + terms.server_backward[cut]
    return work * share / (1 if slots else cell.n_clients) + cell.call_overhead


class Served(NamedTuple):
    """A round that was put in order.

    Attributes:
        value: s, with the time t_0 before it.
        order: (N M,) the client of each job of the server, micro-batches of a client in their order; (0,) for slots.
        band: N tuples of 2 M True (upload) or False (download), what a client's subchannels carry in turn on half
            duplex; one tuple for all if gradients are broadcast. () on full duplex.
    """

    value: float
    order: np.ndarray
    band: tuple[tuple[bool, ...], ...] = ()


@dataclass(frozen=True)
class PipelinedRound:
    """The seconds of every micro-batch on every machine, at given rates.

    Args:
        forward, up, down, backward: (N, M) s; `down` is 0 if gradients are broadcast.
        server: (M,) s of one job: of one client, or of a slot.
        broadcast: (M,) s, or None if every client gets its own gradients.
        client_step: (N,) s of the clients' optimizer steps.
        server_step: s of the server's.
        begin: s before everything, t_0.
        half_duplex: whether a client's uploads and downloads share its subchannels.
    """

    forward: np.ndarray
    up: np.ndarray
    server: np.ndarray
    down: np.ndarray
    backward: np.ndarray
    broadcast: np.ndarray | None
    client_step: np.ndarray
    server_step: float
    begin: float
    half_duplex: bool = False

    @classmethod
    def of(
        cls,
        terms: CutTerms,
        cell: WirelessCell,
        cut: int,
        sizes: np.ndarray,
        up_rate: np.ndarray,
        down_rate: np.ndarray,
        common_rate: float,
        *,
        slots: bool,
        duplex: str = "full",
    ) -> "PipelinedRound":
        """Return the round of a cut in micro-batches of (M,) sizes, at (N,) bit/s up and down.

        Args:
            terms: of the whole mini-batch.
            cell: has the overheads.
            cut: its number.
            sizes: (M,) samples.
            up_rate, down_rate: (N,) bit/s.
            common_rate: bit/s of the broadcast.
            slots: whether gradients are aggregated, φ = 1.
            duplex: "full" or "half".
        """
        share = sizes / sizes.sum()
        return cls(
            forward=terms.client_forward[cut][:, None] * share,
            up=sending_seconds(terms.upload_bits[cut], up_rate, share, cell),
            server=server_seconds(terms, cell, cut, share, slots=slots),
            down=sending_seconds(terms.unicast_bits[cut], down_rate, share, cell),
            backward=terms.client_backward[cut][:, None] * share,
            broadcast=sending_seconds(terms.broadcast_bits[cut], common_rate, share, cell) if slots else None,
            client_step=terms.client_step[cut],
            server_step=float(terms.server_step[cut]),
            begin=cell.round_overhead,
            half_duplex=duplex == "half",
        )

    @cached_property
    def release(self) -> np.ndarray:
        """(N, M) r_ik, s after t_0."""
        return releases(self.forward, self.up)

    @cached_property
    def tail(self) -> np.ndarray:
        """(N, M) q_ik, s, with the client's step, or the server's for the last micro-batch if that is longer."""
        tail = tails(self.down, self.backward) + self.client_step[:, None]
        return np.maximum(tail, self.server_step)

    @cached_property
    def computing(self) -> np.ndarray:
        """(N,) s that each client computes: no round is shorter."""
        return self.forward.sum(axis=1) + self.backward.sum(axis=1) + self.client_step

    @cached_property
    def loads(self) -> dict[str, np.ndarray]:
        """Seconds that the machines work: (N,) of the clients and of their links, (1,) of server and broadcast."""
        n_clients = len(self.forward)
        up, down = self.up.sum(axis=1), self.down.sum(axis=1)
        calls = 1 if self.broadcast is not None else n_clients
        found = {"client": self.computing, "server": np.array([calls * self.server.sum() + self.server_step])}
        common = np.zeros(1) if self.broadcast is None else np.array([self.broadcast.sum()])
        if self.half_duplex:
            return found | {"subchannels of client": up + down + common}
        return (
            found
            | {"uplink of client": up}
            | ({"downlink of client": down} if self.broadcast is None else {"broadcast": common})
        )

    def remaining(self, order: np.ndarray) -> np.ndarray:
        """Return (N, M) the least seconds from the server's start of each job to the end, with its order kept.

        With r_ik it bounds the round, and on full duplex max_ik of the sum, or the computing of a client, is the round.

        Args:
            order: (N M,) as in `Served`; not used for slots.
        """
        if self.broadcast is not None:
            ahead = (tails(np.zeros_like(self.backward), self.backward) + self.client_step[:, None]).max(axis=0)[::-1]
            after = np.maximum(line_end(ahead, self.broadcast[::-1]), self.server_step)
            return np.broadcast_to(line_end(after, self.server[::-1])[::-1], self.forward.shape)
        found, n_clients = np.empty_like(self.tail), len(self.forward)
        left, later = [len(self.server)] * n_clients, 0.0
        tail, p = self.tail.tolist(), self.server.tolist()
        for i in order[::-1].tolist():
            left[i] -= 1
            later = p[left[i]] + max(tail[i][left[i]], later)
            found[i, left[i]] = later
        return found

    def jobs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (N M,) releases, tails and seconds of the server's jobs, client by client."""
        return self.release.ravel(), self.tail.ravel(), np.tile(self.server, len(self.forward))

    def bound(self) -> float:
        """Return s that no order of anything is shorter than, at these rates.

        On half duplex also the work of each client's subchannels, between its first forward and its last backward.
        """
        least = float(self.computing.max())
        if self.broadcast is not None:
            least = max(least, self._slots().value - self.begin)
        else:
            least = max(least, preemptive_bound(*self.jobs()))
        if self.half_duplex:
            common = 0.0 if self.broadcast is None else self.broadcast
            carried = (self.up + self.down + common).sum(axis=1)
            least = max(least, float((self.forward[:, 0] + carried + self.backward[:, -1] + self.client_step).max()))
        return least + self.begin

    def served(self, precision: float = 1e-12) -> Served:
        """Return the best order known, and what the round takes in it.

        Args:
            precision: relative, to which the order is optimal on full duplex with φ = 0 and equal micro-batches.
        """
        if self.half_duplex:
            options = self._lags() if self.broadcast is not None else [self._arriving(first) for first in (True, False)]
            return min(options, key=lambda found: found.value)
        if self.broadcast is not None:
            return self._slots()
        found = best_order(*self.jobs(), precision=precision)
        value = max(float(self.computing.max()), found.value)
        return Served(self.begin + value, found.order // len(self.server))

    def _slots(self) -> Served:
        """Return the round of slots on full duplex: every machine takes them in order."""
        assert self.broadcast is not None
        done = line_end(self.release.max(axis=0), self.server)
        return Served(self.begin + self._ended(line_end(done, self.broadcast), float(done[-1])), np.zeros(0, dtype=int))

    def _ended(self, arrived: np.ndarray, server_done: float) -> float:
        """Return when clients whose gradients arrived at ((N,) M) and the server have stepped."""
        last = line_end(np.broadcast_to(arrived, self.backward.shape), self.backward)[:, -1]
        clients = np.maximum(last, self.computing - self.client_step) + self.client_step
        return max(float(clients.max()), server_done + self.server_step)

    def _lags(self) -> list[Served]:
        """Return rounds of slots on half duplex: the broadcast of slot k comes after all uploads k + lag − 1."""
        assert self.broadcast is not None
        n_clients, n_micro = self.forward.shape
        ready, found = np.cumsum(self.forward, axis=1), []
        for lag in range(1, n_micro + 1):
            free, done = np.zeros(n_clients), 0.0  # when each band, and the server, is free
            ends, arrived, at = np.zeros(n_micro), np.zeros(n_micro), 0
            for k in range(n_micro):
                while at < min(k + lag, n_micro):
                    free = np.maximum(free, ready[:, at]) + self.up[:, at]
                    done = ends[at] = max(done, float(free.max())) + self.server[at]
                    at += 1
                arrived[k] = max(ends[k], float(free.max())) + self.broadcast[k]
                free = np.full(n_clients, arrived[k])
            band = [True] * lag
            for k in range(n_micro):
                band += [False] + [True] * (k + lag < n_micro)
            value = self.begin + self._ended(arrived, done)
            found.append(Served(value, np.zeros(0, dtype=int), (tuple(band),)))
        return found

    def _arriving(self, uplink_first: bool) -> Served:
        """Return the round on half duplex in which everything is served as it arrives.

        A client's subchannels take what waits, uploads first or downloads first; the server the longest tail first.
        """
        n_clients, n_micro = self.forward.shape
        ready = np.cumsum(self.forward, axis=1)
        events = [(float(ready[i, k]), 0, i, k) for i in range(n_clients) for k in range(n_micro)]
        heapq.heapify(events)  # (s, what ended: 0 forward, 1 upload, 2 server, 3 download; client, micro-batch)
        bands: list[list[list[int]]] = [[[], []] for _ in range(n_clients)]  # waiting uploads and downloads
        free, band = [True] * n_clients, [[] for _ in range(n_clients)]
        waiting: list[tuple[float, int, int]] = []
        order, idle, arrived, server_done = [], True, np.zeros((n_clients, n_micro)), 0.0
        up, down, server, tail = self.up.tolist(), self.down.tolist(), self.server.tolist(), self.tail.tolist()
        first, second = (0, 1) if uplink_first else (1, 0)
        while events:
            now = events[0][0]
            touched = set()
            while events and events[0][0] <= now * (1 + _TIE):
                _, what, i, k = heapq.heappop(events)
                if what in (0, 2):
                    bands[i][what // 2].append(k)
                if what == 1:
                    heapq.heappush(waiting, (-tail[i][k], i, k))
                if what == 2:
                    idle, server_done = True, now
                if what in (1, 3):
                    free[i] = True
                if what == 3:
                    arrived[i, k] = now
                touched.add(i)
            for i in sorted(touched):
                which = first if bands[i][first] else second
                if free[i] and bands[i][which]:
                    k = bands[i][which].pop(0)
                    free[i] = False
                    band[i].append(which == 0)
                    lasts = up[i][k] if which == 0 else down[i][k]
                    heapq.heappush(events, (now + lasts, 1 if which == 0 else 3, i, k))
            if idle and waiting:
                _, i, k = heapq.heappop(waiting)
                idle = False
                order.append(i)
                heapq.heappush(events, (now + server[k], 2, i, k))
        value = self.begin + self._ended(arrived, server_done)
        return Served(value, np.array(order), tuple(tuple(sequence) for sequence in band))
