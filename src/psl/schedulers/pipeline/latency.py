"""The closed form of a pipelined mini-batch: what every stage and hop takes, and T = T_f + (M − 1) T_i."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from psl import html
from psl.errors import check_choice
from psl.networks.edge_network import EdgeNetwork
from psl.profiles import Profile
from psl.records import Record
from psl.schedulers.pipeline.checks import (
    LINKS,
    ROUNDING,
    check_batch_size,
    check_micro_batch,
    check_path,
    check_profile,
)
from psl.schedulers.pipeline.path import Path

Count = TypeVar("Count", int, np.ndarray)
Seconds = TypeVar("Seconds", float, np.ndarray)
Direction = TypeVar("Direction", int, tuple[int, int])

_SHOWN = 12  # stages and hops that a notebook shows


def ceil_div(whole: int, part: Count) -> Count:
    """Return ⌈whole/part⌉ of whole numbers: M = ⌈b/m⌉, and the smallest m that makes M of b, ⌈b/M⌉."""
    return -(-whole // part)


def round_time(fill_time: Seconds, interval: Seconds, n_micro_batches: float | Seconds) -> Seconds:
    """Return T = T_f + (M − 1) T_i, s: the first micro-batch takes T_f, each of the others T_i more."""
    return fill_time + (n_micro_batches - 1) * interval


def unit_seconds(profile: Profile, network: EdgeNetwork) -> tuple[np.ndarray, np.ndarray]:
    """Return (L+1, V) ρ_j/s_v and ϖ_j/s_v: seconds per sample of units 1..j on node v, forward and backward.

    A node with a measured profile of its own takes that profile's seconds; a node that only relays has zeros.
    """
    speed = np.where(network.speed > 0, network.speed, np.inf)
    forward, backward = profile.fwd_cost[:, None] / speed, profile.bwd_cost[:, None] / speed
    for n, own in enumerate(network.profiles):
        if own is not None:
            forward[:, n], backward[:, n] = own.fwd_cost, own.bwd_cost
    return forward, backward


def first_step_seconds(profile: Profile, network: EdgeNetwork) -> np.ndarray:
    """Return (L+1,) σ_j/s of the source, s: the optimizer step of a first stage of units 1..j.

    The other stages step while those before them still go backward [R]; `psl.simulate` knows when that is too long.
    """
    n = network.index[network.source]
    own = network.profiles[n]
    return profile.steps / network.speed[n] if own is None else own.steps


def stage_seconds(overhead: np.ndarray, samples: int, per_sample: np.ndarray) -> np.ndarray:
    """Return what a stage takes for a micro-batch, s.

    o_v + m (ρ_j − ρ_i)/s_v forward, o_v + m (ϖ_j − ϖ_i)/s_v backward. With 2 o_v and the seconds per sample of both
    passes it is their sum: the stage's linear cost and its occupancy.

    Args:
        overhead: o_v, s; twice that for both passes.
        samples: m.
        per_sample: seconds per sample of the stage's units on the node, from `unit_seconds`.
    """
    return overhead + samples * per_sample


def sending_seconds(samples: int, bits: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Return m ψ_j/r_e, or m χ_j/r_e′ back: what a link takes to send a micro-batch, s."""
    return samples * bits / rate


def hop_seconds(propagation: np.ndarray, sending: np.ndarray) -> np.ndarray:
    """Return what a hop takes for a micro-batch, s.

    ℓ_e + m ψ_j/r_e forward, ℓ_e′ + m χ_j/r_e′ backward over its reverse e′. With ℓ_e + ℓ_e′ and both sending times it
    is the hop's linear cost.
    """
    return propagation + sending


def occupancy(forward: np.ndarray, backward: np.ndarray, full_duplex: bool) -> np.ndarray:
    """Return how long a micro-batch keeps a link busy, s, from the sending times of its two directions.

    The larger of m ψ_j/r_e and m χ_j/r_e′ on a full-duplex link, their sum on a half-duplex one.
    """
    return np.maximum(forward, backward) if full_duplex else forward + backward


def link_loads(
    edge: Direction, reverse: Direction, forward: float, backward: float, full_duplex: bool
) -> dict[Direction, float]:
    """Return what a hop adds to its link, s: to each direction in full duplex, to both together in half duplex.

    Several hops over one link add up; the largest load is then the link's occupancy. In half duplex the lower of the
    two numbers stands for the link.
    """
    return {edge: forward, reverse: backward} if full_duplex else {min(edge, reverse): forward + backward}


@dataclass(frozen=True, repr=False, eq=False)
class RoundLatency(Record):
    """Seconds of one mini-batch through the pipeline, resource by resource: T = T_f + (M − 1) T_i.

    Args:
        names: what each of the R resources is, in the order of the path: ``"node: i-j"`` or ``"u -> v at cut j"``;
            nodes are written as `EdgeNetwork.labels` has them.
        kinds: "stage" or "hop" of each.
        forward, backward: (R,) s per micro-batch of each pass, overhead and propagation included.
        occupancy: (R,) s that a micro-batch keeps the resource busy; with links="shared" a hop shows its link's load.
        memory: (R,) bytes; 0 for hops.
        n_micro_batches: M.
        optimizer: s, the optimizer step of the first stage, which ends last; 0 for a profile without `step_cost`.

    Attributes:
        linear: (R,) forward + backward.
        fill_time: T_f, the sum of `linear` and `optimizer`, s.
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
    optimizer: float = 0.0
    fill_time: float = field(init=False)
    interval: float = field(init=False)
    total: float = field(init=False)

    def __post_init__(self) -> None:
        fill, interval = float(self.linear.sum()) + self.optimizer, float(self.occupancy.max())
        self._set(fill_time=fill, interval=interval, total=round_time(fill, interval, self.n_micro_batches))

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
                "is_bottleneck": self.occupancy >= self.interval * (1 - ROUNDING),
            },
            index=pd.Index(self.names, name="resource"),
        )

    def __repr__(self) -> str:
        return (
            f"RoundLatency({self.total:.6g} s = {self.fill_time:.4g} s + {self.n_micro_batches - 1} × "
            f"{self.interval:.4g} s; bottleneck {self.names[int(np.argmax(self.occupancy))]})"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: how long a micro-batch takes at each stage and hop, and keeps it busy."""
        chosen = html.some(len(self.names), [int(np.argmax(self.occupancy))], _SHOWN)
        rows = []
        for k in chosen:
            bar = html.Bar([html.share(self.occupancy[k], self.interval)])
            rows.append([self.kinds[k], self.names[k], self.forward[k], self.backward[k], self.occupancy[k], bar])
        header = ["kind", "resource", "forward, s", "backward, s", "busy per micro-batch, s", ""]
        fill, interval = html.number(self.fill_time, "s"), html.number(self.interval, "s")
        title = f"One mini-batch: {html.number(self.total, 's')} = {fill} + {self.n_micro_batches - 1} × {interval}"
        return html.table(title, header, rows, note=html.left_out(len(self.names), len(chosen), "stages and hops"))


def latency(
    profile: Profile,
    network: EdgeNetwork,
    *,
    stages: Iterable[Any],
    hops: Iterable[Any],
    micro_batch: int,
    batch_size: int,
    links: str = "once",
) -> RoundLatency:
    """Return the time of a mini-batch with given stages and hops: T_f + (⌈b/m⌉ − 1) T_i.

    A stage of units i+1..j on node v takes o_v + m (ρ_j − ρ_i)/s_v forward and o_v + m (ϖ_j − ϖ_i)/s_v
    backward, and is busy for their sum. A hop e at cut j takes ℓ_e + m ψ_j/r_e forward and ℓ_e′ + m χ_j/r_e′ backward
    over its reverse e′. It is busy for the larger of m ψ_j/r_e and m χ_j/r_e′ on a full-duplex link, for their sum on a
    half-duplex one. T_f ends with the optimizer step of the first stage, where the profile knows its cost.

    Args:
        profile: costs of the model's cuts.
        network: the network.
        stages: (node, i, j) in order: consecutive parts of the model, the first on the source.
        hops: (cut, u, v) in order: the links from each stage to the next.
        micro_batch: m, samples per micro-batch.
        batch_size: b, samples per mini-batch.
        links: "once": refuse a plan that uses a link twice; "shared": the hops over a link add up, per direction in
            full duplex; "separate": every hop counts by itself, as published.

    Raises:
        ScenarioError: stages or hops do not form a path, a node hosts two stages or one beyond its memory, or an
            argument is out of range.

    Source: pipelined split learning (arXiv 2505.04368); reconstruction [R], `links` [B].
    """
    check_choice("links", links, LINKS)
    check_profile(profile, network)
    b = check_batch_size(batch_size)
    m = check_micro_batch(micro_batch, b)
    path = check_path(profile, network, stages, hops, b, links)
    return round_latency(profile, network, path, m, b, links)


def round_latency(
    profile: Profile, network: EdgeNetwork, path: Path, micro_batch: int, batch_size: int, links: str
) -> RoundLatency:
    """Return the latency of a path that needs no check; a node that hosts two stages counts as two nodes."""
    m, full_duplex, labels = micro_batch, network.duplex == "full", network.labels
    n, i, j = np.array(path.stages).T  # (stages,)
    work_forward, work_backward = unit_seconds(profile, network)
    forward = stage_seconds(network.overhead[n], m, work_forward[j, n] - work_forward[i, n])
    backward = stage_seconds(network.overhead[n], m, work_backward[j, n] - work_backward[i, n])
    memory = profile.training_memory(batch_size)

    cut, e = np.array(path.hops, dtype=int).reshape(-1, 2).T  # (hops,)
    reverse = network.reverse[e]
    up = sending_seconds(m, profile.act_bits[cut], network.rate[e])
    down = sending_seconds(m, profile.grad_bits[cut], network.rate[reverse])
    busy = occupancy(up, down, full_duplex)
    if links == "shared":
        hops = [
            link_loads(int(edge), int(back), there, home, full_duplex)
            for edge, back, there, home in zip(e, reverse, up, down, strict=True)
        ]
        load: Counter = Counter()
        for added in hops:
            load.update(added)
        busy = np.array([max(load[direction] for direction in added) for added in hops])

    order = np.argsort(np.concatenate([j, cut]), kind="stable")  # behind each stage the hops at its end
    names = [f"{labels[network.nodes[host]]}: {first}-{last}" for host, first, last in path.stages]
    for at, edge in path.hops:
        u, v = network.edges[edge]
        names.append(f"{labels[u]} -> {labels[v]} at cut {at}")
    return RoundLatency(
        names=tuple(names[k] for k in order),
        kinds=tuple("stage" if k < len(path.stages) else "hop" for k in order),
        forward=np.concatenate([forward, hop_seconds(network.latency[e], up)])[order],
        backward=np.concatenate([backward, hop_seconds(network.latency[reverse], down)])[order],
        occupancy=np.concatenate([forward + backward, busy])[order],
        memory=np.concatenate([memory[j] - memory[i], np.zeros(len(cut))])[order],
        n_micro_batches=ceil_div(batch_size, m),
        optimizer=float(first_step_seconds(profile, network)[path.stages[0][2]]),
    )
