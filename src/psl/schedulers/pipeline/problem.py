"""The placement problem in plain arrays: what every stage and every hop costs, for any micro-batch size."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from psl.errors import InfeasibleError, check_count, expected
from psl.networks.edge_network import EdgeNetwork
from psl.profiles import Profile
from psl.schedulers.checks import check_own_profiles, check_scenario, check_speeds

LINKS = ("once", "shared", "separate")
OBJECTIVES = ("time", "interval")


@dataclass(frozen=True)
class Tables:
    """Seconds of every stage and hop for one micro-batch size b.

    A stage's linear cost (part of the fill time) and its occupancy (candidate for the interval) are the same.
    """

    micro_batch: int  # b
    n_micro_batches: int  # M = ⌈B/b⌉
    stage: np.ndarray  # (L+1, L+1, N) F + K of units i+1..j on node n; inf where i >= j, without compute or memory
    hop_linear: np.ndarray  # (L+1, E) (l_e + b ψ_j/R_e) + (l_e′ + b χ_j/R_e′)
    hop_occupancy: np.ndarray  # (L+1, E) full duplex: max(b ψ_j/R_e, b χ_j/R_e′); half: their sum

    def interval(self, stages, hops) -> float:
        """Return the largest occupancy on a path of stages (n, i, j) and hops (cut, edge), by places; s."""
        return float(max([self.stage[i, j, n] for n, i, j in stages] + [self.hop_occupancy[h] for h in hops]))


class PipelineProblem:
    """Where to run which units of a model and over which links to send what lies between: the arrays behind it.

    Args:
        profile: costs of the model's cuts.
        network: the network.
        batch_size: B, samples per mini-batch.

    Attributes:
        work: (L+1, N) forward plus backward seconds per sample of units 1..j on node n; 0 where it does not compute.
        need: (L+1, L+1) bytes a stage of units i+1..j takes: 3 × parameters + B × (a_j − a_i).
        fits: (L+1, L+1, N) whether node n can host units i+1..j.
        forward, backward: (L+1, E) ψ_j/R_e and χ_j/R_e′, seconds per sample of a hop over edge e at cut j.
        propagation: (E,) l_e + l_e′, s.
        tail, head, reverse, link: (E,) ends, reverse and undirected link of each edge; edges are sorted by tail.
        source: place of the source among the nodes.

    Raises:
        ScenarioError: an argument is out of range, or speeds or measured profiles do not go with the profile.
    """

    def __init__(self, profile: Profile, network: EdgeNetwork, batch_size: int):
        check_profile(profile, network)
        self.profile, self.network = profile, network
        self.batch_size = check_count("batch_size", batch_size, fix="give the samples of a mini-batch, at least 1")
        self.n_units, self.n_nodes, self.n_edges = profile.n_units, network.n_nodes, len(network.edges)
        self.source = network.index[network.source]
        self.work = sum(node_seconds(profile, network))
        self.need = stage_bytes(profile, self.batch_size)
        later = np.triu(np.ones(self.need.shape, dtype=bool), 1)
        room = self.need[:, :, None] <= network.memory * (1 + 1e-12)
        self.fits = later[:, :, None] & room & network.computes
        at = network.index
        self.tail = np.array([at[u] for u, _ in network.edges], dtype=int)
        self.head = np.array([at[v] for _, v in network.edges], dtype=int)
        self.reverse = network.reverse
        self.link = np.minimum(np.arange(self.n_edges), self.reverse)
        self.tail_starts = np.searchsorted(self.tail, np.arange(self.n_nodes))
        self.forward = profile.act_bits[:, None] / network.rate
        self.backward = profile.grad_bits[:, None] / network.rate[self.reverse]
        self.propagation = network.latency + network.latency[self.reverse]
        self.full_duplex = network.duplex == "full"
        self._last: Tables | None = None

    @cached_property
    def _stage_work(self) -> np.ndarray:
        spans = self.work[None] - self.work[:, None]  # (L+1, L+1, N), from i (rows) to j
        return np.where(self.fits, np.maximum(spans, 0.0), np.inf)

    @cached_property
    def _hop_work(self) -> tuple[np.ndarray, np.ndarray]:
        both = self.forward + self.backward
        return both, np.maximum(self.forward, self.backward) if self.full_duplex else both

    def tables(self, micro_batch: int) -> Tables:
        """Return what every stage and hop costs with micro-batches of b samples, 1 <= b <= B."""
        b = check_micro_batch(micro_batch, self.batch_size)
        if self._last is None or self._last.micro_batch != b:
            both, busy = self._hop_work
            self._last = Tables(
                micro_batch=b,
                n_micro_batches=ceil_div(self.batch_size, b),
                stage=b * self._stage_work + 2 * self.network.overhead,
                hop_linear=b * both + self.propagation,
                hop_occupancy=b * busy,
            )
        return self._last

    def shortage(self) -> InfeasibleError | None:
        """Return (not raise) the error of a model that cannot fit whatever the links are, or None if it may fit."""
        network, names = self.network, self.profile.names
        memory = np.where(network.computes, network.memory, 0.0)
        first, whole = self.need[0, 1], self.need[0, -1]
        fix = "give nodes more memory, take a smaller mini-batch, or a model with smaller units"
        if not self.fits[0, 1, self.source]:
            want = f"memory for unit 1 ({names[1]!r}), {first:.4g} bytes"
            return expected(f"source {network.source!r}", want, f"{memory[self.source]:.4g}", fix, InfeasibleError)
        alone = self.fits[np.arange(self.n_units), np.arange(1, self.n_units + 1)]  # (L, N)
        alone[:, self.source] = self.fits[0, 1:, self.source]  # the source hosts all units before it as well
        if not alone.any(axis=1).all():
            k = int(np.argmin(alone.any(axis=1)))
            want = f"a node with memory for unit {k + 1} ({names[k + 1]!r}), {self.need[k, k + 1]:.4g} bytes"
            others = np.delete(memory, self.source)
            return expected(
                "network", want, f"at most {others.max(initial=0.0):.4g} off the source", fix, InfeasibleError
            )
        if memory.sum() * (1 + 1e-9) < whole:
            want = f"memory for the whole model, {whole:.4g} bytes"
            return expected("network", want, f"{memory.sum():.4g} on all nodes together", fix, InfeasibleError)
        return None

    def infeasible(self, links: str = "separate") -> InfeasibleError:
        """Return (not raise) the error that says why no plan exists."""
        once, fix = "", "give nodes more memory, take a smaller mini-batch, or add links"
        if links == "once":
            once, fix = " and one hop per link", fix + " (or say links='shared')"
        want = f"a walk from the source over nodes with memory for the model's parts, one stage per node{once}"
        return self.shortage() or expected("network", want, "none", fix, InfeasibleError)


def ceil_div(whole, part):
    """Return ⌈whole/part⌉ of whole numbers or arrays: M = ⌈B/b⌉, and the smallest b that makes M of B, ⌈B/M⌉."""
    return -(-whole // part)


def link_loads(full_duplex: bool, edge, reverse, forth: float, back: float) -> dict:
    """Return what a hop adds to whom, s: to each direction in full duplex, to the lower of the two in half duplex."""
    return {edge: forth, reverse: back} if full_duplex else {min(edge, reverse): forth + back}


def stage_bytes(profile: Profile, batch_size: int) -> np.ndarray:
    """Return (L+1, L+1) bytes of units i+1..j: weights, gradients and momentum, and the mini-batch's activations."""
    whole = profile.training_memory(batch_size)
    return np.maximum(whole - whole[:, None], 0.0)


def node_seconds(profile: Profile, network: EdgeNetwork) -> tuple[np.ndarray, np.ndarray]:
    """Return (L+1, N) forward and backward seconds per sample, by a node's own profile or its speed; 0 for relays."""
    speed = np.where(network.speed > 0, network.speed, np.inf)
    forward, backward = profile.fwd_cost[:, None] / speed, profile.bwd_cost[:, None] / speed
    for n, own in enumerate(network.profiles):
        if own is not None:
            forward[:, n], backward[:, n] = own.fwd_cost, own.bwd_cost
    return forward, backward


def check_micro_batch(micro_batch, batch_size: int) -> int:
    """Return the checked micro-batch size b, 1..B."""
    b = check_count("micro_batch", micro_batch, fix="give the samples of a micro-batch, at least 1")
    if b > batch_size:
        raise expected("micro_batch", f"at most batch_size = {batch_size}", b, "split the mini-batch, do not pad it")
    return b


def check_profile(profile: Profile, network: EdgeNetwork) -> None:
    """Raise `ScenarioError` unless both are what they are called, and speeds and own profiles go with the profile."""
    check_scenario(profile, "network", network, EdgeNetwork, "wrap a networkx.DiGraph: EdgeNetwork(graph, source)")
    check_own_profiles(profile, network.profiles, lambda n: f"node {network.nodes[n]!r}: profile")
    by_speed = [speed for speed, own in zip(network.speed, network.profiles, strict=True) if own is None]
    check_speeds(profile, "network", by_speed, "give nodes speed relative to that device")
