"""The placement problem in plain arrays: what every stage and every hop costs, for any micro-batch size."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from psl.errors import InfeasibleError, PSLError, expected
from psl.networks.edge_network import EdgeNetwork
from psl.profiles import Profile
from psl.schedulers.pipeline.checks import ROUNDING, check_batch_size, check_micro_batch, check_profile
from psl.schedulers.pipeline.latency import (
    RoundLatency,
    ceil_div,
    first_step_seconds,
    hop_seconds,
    occupancy,
    round_latency,
    sending_seconds,
    stage_seconds,
    unit_seconds,
)
from psl.schedulers.pipeline.path import Path


@dataclass(frozen=True)
class Tables:
    """Seconds of every stage and hop for one micro-batch size m.

    A stage's linear cost (part of the fill time) and its occupancy (candidate for the interval) are the same, but for
    the optimizer step at the end of a first stage.
    """

    micro_batch: int  # m
    n_micro_batches: int  # M = ⌈b/m⌉
    stage: np.ndarray  # (L+1, L+1, V) units i+1..j on node v, both passes; inf where i >= j, without speed or memory
    stage_linear: np.ndarray  # (L+1, L+1, V) the same, with the optimizer step of a first stage
    hop_linear: np.ndarray  # (L+1, E) (ℓ_e + m ψ_j/r_e) + (ℓ_e′ + m χ_j/r_e′)
    hop_occupancy: np.ndarray  # (L+1, E) full duplex: max(m ψ_j/r_e, m χ_j/r_e′); half: their sum

    def interval(self, path: Path) -> float:
        """Return the largest occupancy on a path, every hop by itself, s."""
        stages = [self.stage[i, j, n] for n, i, j in path.stages]
        return float(max(stages + [self.hop_occupancy[hop] for hop in path.hops]))


class PipelineProblem:
    """Which node runs which units of a model, and over which links the data between them go: the arrays behind it.

    Args:
        profile: costs of the model's cuts.
        network: the network.
        batch_size: b, samples per mini-batch.
        allowed: (L+1, L+1, V) whether node v may host units i+1..j; None: it may where its memory suffices.

    Attributes:
        work: (L+1, V) forward plus backward seconds per sample of units 1..j on node v; 0 where it does not compute.
        overhead: (V,) 2 o_v, s per micro-batch.
        first_step: (L+1,) s, optimizer step of a first stage of units 1..j.
        need: (L+1, L+1) bytes that a stage of units i+1..j takes.
        fits: (L+1, L+1, V) whether node v can and may host units i+1..j.
        forward, backward: (L+1, E) ψ_j/r_e and χ_j/r_e′, seconds per sample of a hop over edge e at cut j.
        propagation: (E,) ℓ_e + ℓ_e′, s.
        tail, head, reverse: (E,) ends and reverse of each edge; edges are sorted by tail.
        tail_starts: (V,) first edge out of each node.
        link: (E,) number of each edge's undirected link: the lower of the edge and its reverse.
        source: place of the source among the nodes.

    Raises:
        ScenarioError: an argument is out of range, or speeds or measured profiles do not go with the profile.
    """

    def __init__(self, profile: Profile, network: EdgeNetwork, batch_size: int, *, allowed: np.ndarray | None = None):
        check_profile(profile, network)
        self.profile, self.network, self.batch_size = profile, network, check_batch_size(batch_size)
        self.n_units, self.n_nodes, self.n_edges = profile.n_units, network.n_nodes, len(network.edges)
        self.source = network.index[network.source]
        forward, backward = unit_seconds(profile, network)
        self.work, self.overhead = forward + backward, 2 * network.overhead
        self.first_step = first_step_seconds(profile, network)
        memory = profile.training_memory(self.batch_size)
        self.need = memory - memory[:, None]
        later = np.triu(np.ones(self.need.shape, dtype=bool), 1)
        room = self.need[:, :, None] <= network.memory * (1 + ROUNDING)
        self.fits = later[:, :, None] & room & network.computes
        self.restricted_stages = allowed is not None
        if allowed is not None:
            self.fits = self.fits & allowed
        at = network.index
        self.tail = np.array([at[u] for u, _ in network.edges], dtype=int)
        self.head = np.array([at[v] for _, v in network.edges], dtype=int)
        self.reverse = network.reverse
        self.link = np.minimum(np.arange(self.n_edges), self.reverse)
        self.tail_starts = np.searchsorted(self.tail, np.arange(self.n_nodes))
        self.forward = sending_seconds(1, profile.act_bits[:, None], network.rate)
        self.backward = sending_seconds(1, profile.grad_bits[:, None], network.rate[self.reverse])
        self.propagation = network.latency + network.latency[self.reverse]
        self.full_duplex = network.duplex == "full"
        self._last: Tables | None = None

    def restricted(self, allowed: np.ndarray) -> "PipelineProblem":
        """Return the problem with only some of its stages: allowed (L+1, L+1, V), units i+1..j on node v."""
        return PipelineProblem(self.profile, self.network, self.batch_size, allowed=self.fits & allowed)

    @cached_property
    def _stage_work(self) -> np.ndarray:
        spans = self.work - self.work[:, None]  # (L+1, L+1, V), from i (rows) to j
        return np.where(self.fits, spans, np.inf)

    @cached_property
    def _hop_work(self) -> tuple[np.ndarray, np.ndarray]:
        return self.forward + self.backward, occupancy(self.forward, self.backward, self.full_duplex)

    def tables(self, micro_batch: int) -> Tables:
        """Return what every stage and hop costs with micro-batches of m samples, 1 <= m <= b."""
        m = check_micro_batch(micro_batch, self.batch_size)
        if self._last is None or self._last.micro_batch != m:  # a search asks for the same size several times
            sending, busy = self._hop_work
            stage = linear = stage_seconds(self.overhead, m, self._stage_work)
            if self.first_step.any():
                linear = stage.copy()
                linear[0, :, self.source] += self.first_step
            self._last = Tables(
                micro_batch=m,
                n_micro_batches=ceil_div(self.batch_size, m),
                stage=stage,
                stage_linear=linear,
                hop_linear=hop_seconds(self.propagation, m * sending),
                hop_occupancy=m * busy,
            )
        return self._last

    def latency(self, path: Path, micro_batch: int, links: str) -> RoundLatency:
        """Return the terms of a path at one micro-batch size; a node that hosts two stages counts as two nodes."""
        return round_latency(self.profile, self.network, path, micro_batch, self.batch_size, links)

    def repeated(self, path: Path) -> tuple[list[int], list[int]]:
        """Return the nodes that host several stages of a path, and the undirected links that several hops use."""
        hosts = Counter(n for n, _, _ in path.stages)
        used = Counter(int(self.link[e]) for _, e in path.hops)
        return [n for n, count in hosts.items() if count > 1], [link for link, count in used.items() if count > 1]

    def shortage(self) -> PSLError | None:
        """Return (not raise) the error of a model that cannot fit whatever the links are, or None if it may fit."""
        if self.restricted_stages:
            return None  # memory is then not the only reason why a stage may be missing
        network, names = self.network, self.profile.names
        memory = np.where(network.computes, network.memory, 0.0)
        first, whole = self.need[0, 1], self.need[0, -1]
        fix = "give nodes more memory, take a smaller mini-batch, or a model with smaller units"
        if not self.fits[0, 1, self.source]:
            want = f"memory for unit 1 ({names[1]!r}), {first:.4g} bytes"
            return expected(f"source {network.source!r}", want, f"{memory[self.source]:.4g}", fix, InfeasibleError)
        alone = self.fits[np.arange(self.n_units), np.arange(1, self.n_units + 1)]  # (L, V)
        alone[:, self.source] = self.fits[0, 1:, self.source]  # the source hosts all units before it as well
        if not alone.any(axis=1).all():
            k = int(np.argmin(alone.any(axis=1)))
            want = f"a node with memory for unit {k + 1} ({names[k + 1]!r}), {self.need[k, k + 1]:.4g} bytes"
            got = f"at most {np.delete(memory, self.source).max(initial=0.0):.4g} off the source"
            return expected("network", want, got, fix, InfeasibleError)
        if memory.sum() * (1 + 1e-9) < whole:
            want = f"memory for the whole model, {whole:.4g} bytes"
            return expected("network", want, f"{memory.sum():.4g} on all nodes together", fix, InfeasibleError)
        return None

    def infeasible(self, links: str = "separate") -> PSLError:
        """Return (not raise) the error that says why no plan exists."""
        once, fix = "", "give nodes more memory, take a smaller mini-batch, or add links"
        if links == "once":
            once, fix = " and one hop per link", fix + " (or say links='shared')"
        want = f"a path from the source over nodes with memory for the model's parts, one stage per node{once}"
        return self.shortage() or expected("network", want, "none", fix, InfeasibleError)
