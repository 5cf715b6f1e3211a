"""Closed-form time of a pipelined mini-batch: fill time, pipeline interval, and what every stage and hop takes."""

import operator
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pandas as pd

from psl.errors import check_choice, expected
from psl.networks.edge_network import EdgeNetwork
from psl.networks.validation import own_name
from psl.profiles import Profile
from psl.records import Record
from psl.schedulers.pipeline.problem import (
    LINKS,
    ceil_div,
    check_micro_batch,
    check_profile,
    link_loads,
    node_seconds,
    stage_bytes,
)

Stages = tuple[tuple[int | str, int, int], ...]
Hops = tuple[tuple[int, int | str, int | str], ...]


@dataclass(frozen=True, repr=False, eq=False)
class PipelineLatency(Record):
    """Seconds of one mini-batch through the pipeline, resource by resource: T = T_f + (M − 1) T_i.

    Args:
        names: what each of the R resources is, in the order of the path: ``"node: i-j"`` or ``"u -> v at cut j"``;
            nodes are written as `EdgeNetwork.labels` has them.
        kinds: "stage" or "hop" of each.
        forward, backward: (R,) s per micro-batch of each pass, overhead and propagation included.
        occupancy: (R,) s that a micro-batch keeps the resource busy; with shared links a hop shows its link's load.
        memory: (R,) bytes; 0 for hops.
        n_micro_batches: M.

    Attributes:
        linear: (R,) forward + backward.
        fill_time: T_f, the sum of `linear`, s.
        interval: T_i, the largest occupancy, s.
        total: T, s.

    Source: pipelined split learning (arXiv 2505.04368): min-sum of the fill time and min-max of the interval [P];
        the terms [R].
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    forward: np.ndarray
    backward: np.ndarray
    occupancy: np.ndarray
    memory: np.ndarray
    n_micro_batches: int
    fill_time: float = field(init=False)
    interval: float = field(init=False)
    total: float = field(init=False)

    def __post_init__(self):
        fill, interval = float(self.linear.sum()), float(self.occupancy.max())
        object.__setattr__(self, "fill_time", fill)
        object.__setattr__(self, "interval", interval)
        object.__setattr__(self, "total", fill + (self.n_micro_batches - 1) * interval)

    @property
    def linear(self) -> np.ndarray:
        """(R,) linear cost, the resource's part of the fill time."""
        return self.forward + self.backward

    def to_frame(self) -> pd.DataFrame:
        """Return one row per stage or hop, in the order of the path."""
        return pd.DataFrame(
            {
                "kind": self.kinds,
                "forward_s": self.forward,
                "backward_s": self.backward,
                "linear_s": self.linear,
                "occupancy_s": self.occupancy,
                "memory_bytes": self.memory,
                "is_bottleneck": self.occupancy >= self.interval * (1 - 1e-12),
            },
            index=pd.Index(self.names, name="resource"),
        )

    def __repr__(self):
        return (
            f"PipelineLatency({self.total:.6g} s = {self.fill_time:.4g} s + {self.n_micro_batches - 1} × "
            f"{self.interval:.4g} s; bottleneck {self.names[int(np.argmax(self.occupancy))]})"
        )


def latency(
    profile: Profile,
    network: EdgeNetwork,
    *,
    stages,
    hops,
    micro_batch: int,
    batch_size: int,
    links: str = "once",
) -> PipelineLatency:
    """Return the time of a mini-batch with given stages and hops: T_f + (⌈B/b⌉ − 1) T_i.

    A stage of units i+1..j on node n takes F = o_n + b (ρ_j − ρ_i)/s_n forth and K = o_n + b (ϖ_j − ϖ_i)/s_n back,
    and is busy for F + K. A hop e at cut j takes l_e + b ψ_j/R_e forth and l_e′ + b χ_j/R_e′ back over its reverse
    e′; it is busy for the larger of b ψ_j/R_e and b χ_j/R_e′ on a full-duplex link, for their sum on a half-duplex one.

    Args:
        profile: costs of the model's cuts.
        network: the network.
        stages: (node, i, j) in order: consecutive parts of the model, the first on the source.
        hops: (cut, u, v) in order: the way from each stage to the next.
        micro_batch: b, samples per micro-batch.
        batch_size: B, samples per mini-batch.
        links: "once": refuse a plan that uses a link twice; "shared": the hops over a link add up, per direction in
            full duplex; "separate": every hop counts by itself, as published.

    Raises:
        ScenarioError: stages or hops do not form a path, a node hosts twice or beyond its memory, or an argument is
            out of range.

    Source: pipelined split learning (arXiv 2505.04368); reconstruction [R], `links` [B].
    """
    check_choice("links", links, LINKS)
    check_profile(profile, network)
    b = check_micro_batch(micro_batch, batch_size)
    stages, hops = check_path(profile, network, stages, hops, links)
    need = stage_bytes(profile, batch_size)
    for node, i, j in stages:
        room = network.memory[network.index[node]]
        if need[i, j] > room * (1 + 1e-12):
            what, want = f"stage {i}-{j} on node {node!r}", f"at most {room:.4g} bytes of memory"
            raise expected(what, want, f"{need[i, j]:.4g}", "move units to another node")
    return assess(profile, network, stages, hops, b, batch_size, links)


def assess(
    profile: Profile, network: EdgeNetwork, stages: Stages, hops: Hops, b: int, batch_size: int, links: str
) -> PipelineLatency:
    """Return the latency of a path without checking it; nodes booked twice count as two."""
    forward, backward = node_seconds(profile, network)
    need, names, kinds, rows = stage_bytes(profile, batch_size), [], [], []
    full = network.duplex == "full"
    load: Counter = Counter()
    waiting = list(hops)
    for node, i, j in stages:
        n = network.index[node]
        over = network.overhead[n]
        fwd, bwd = over + b * (forward[j, n] - forward[i, n]), over + b * (backward[j, n] - backward[i, n])
        names.append(f"{network.labels[node]}: {i}-{j}")
        kinds.append("stage")
        rows.append((fwd, bwd, fwd + bwd, need[i, j]))
        while waiting and waiting[0][0] == j:
            _, u, v = waiting.pop(0)
            e = network.edge_index[u, v]
            back = network.reverse[e]
            up, down = b * profile.act_bits[j] / network.rate[e], b * profile.grad_bits[j] / network.rate[back]
            busy = max(up, down) if full else up + down
            names.append(f"{network.labels[u]} -> {network.labels[v]} at cut {j}")
            kinds.append("hop")
            rows.append((network.latency[e] + up, network.latency[back] + down, busy, 0.0))
            load.update(link_loads(full, e, back, up, down))
    forth, back, busy, memory = np.array(rows).T.copy()
    if links == "shared":
        where = [k for k, kind in enumerate(kinds) if kind == "hop"]
        for k, (_, u, v) in zip(where, hops, strict=True):
            e = network.edge_index[u, v]
            busy[k] = max(load[r] for r in link_loads(full, e, network.reverse[e], 0.0, 0.0))
    return PipelineLatency(tuple(names), tuple(kinds), forth, back, busy, memory, ceil_div(batch_size, b))


def check_path(profile: Profile, network: EdgeNetwork, stages, hops, links: str) -> tuple[Stages, Hops]:
    """Return stages and hops as tuples after checking that they lead from the source through the whole model."""
    fix = "give stages [(node, i, j), ...] and hops [(cut, u, v), ...] in the order of the path"
    try:
        stages = tuple((node, _cut(i), _cut(j)) for node, i, j in stages)
        hops = tuple((_cut(cut), u, v) for cut, u, v in hops)
    except (TypeError, ValueError) as cause:
        raise expected("stages, hops", "triples with whole numbers for cuts", str(cause), fix) from cause
    for node in [node for _, u, v in hops for node in (u, v)]:
        if own_name(node) not in network.index:
            raise expected("hops", "nodes of the network", repr(node), "see network.nodes")
    for node, _, _ in stages:
        if (n := network.index.get(own_name(node))) is None or not network.computes[n]:
            raise expected("stages", "nodes that compute", repr(node), "see network.to_frame()")
    stages = tuple((own_name(node), i, j) for node, i, j in stages)
    hops = tuple((cut, own_name(u), own_name(v)) for cut, u, v in hops)
    for node, i, j in stages:
        if not 0 <= i < j <= profile.n_units:
            raise expected("stages", f"0 <= i < j <= {profile.n_units}", f"({node!r}, {i}, {j})", fix)
    bounds = [0, *(j for _, _, j in stages)]
    if not stages or bounds[-1] != profile.n_units or any(i != a for (_, i, _), a in zip(stages, bounds, strict=False)):
        spans = ", ".join(f"{i}-{j}" for _, i, j in stages) or "none"
        raise expected("stages", f"consecutive parts of units 0-{profile.n_units}", spans, fix)
    if stages[0][0] != network.source:
        raise expected("stages", f"the first on the source {network.source!r}", repr(stages[0][0]), fix)
    twice = [node for node, count in Counter(node for node, _, _ in stages).items() if count > 1]
    if twice:
        raise expected("stages", "at most one stage per node", f"several on {twice[0]!r}", "merge or move them")
    done = 0
    for (node, _, j), (after, _, _) in pairwise(stages):
        at = node
        while (
            done < len(hops)
            and hops[done][0] == j
            and hops[done][1] == at
            and (at, hops[done][2]) in network.graph.edges
        ):
            at = hops[done][2]
            done += 1
        if at != after:
            want = f"links from {node!r} to {after!r} at cut {j}"
            raise expected("hops", want, f"a way that ends at {at!r}", fix)
    if done < len(hops):
        raise expected("hops", "no hop beside the path of the stages", repr(hops[done]), fix)
    used = Counter(frozenset((u, v)) for _, u, v in hops)
    twice = [link for link, count in used.items() if count > 1]
    if links == "once" and twice:
        raise expected(
            "hops", "every link at most once", f"several hops over {' - '.join(map(repr, sorted(twice[0], key=str)))}",
            "take another way, or say links='shared' or links='separate'",
        )  # fmt: skip
    return stages, hops


def _cut(value) -> int:
    """Return the number of a cut; no fraction is rounded, and True is not 1."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{value!r} for a cut")
    return operator.index(value)
