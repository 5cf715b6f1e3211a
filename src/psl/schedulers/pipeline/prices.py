"""Prices on nodes and links: the Lagrangian dual of "one stage per node, one hop per link".

A path pays π_v for every stage on node v and λ_l for every hop over link l, and gets all prices back once. A path that
obeys pays each price at most once, so it gains nothing by that: the shortest path with prices is a lower bound of all
paths that obey, whatever the prices. Subgradient steps raise the prices of what is used twice and lower the others.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from psl.schedulers.pipeline.pareto import least_total
from psl.schedulers.pipeline.path import Path
from psl.schedulers.pipeline.problem import PipelineProblem, Tables
from psl.schedulers.pipeline.shortest_path import least_bottleneck

_PATIENCE = 4  # steps without a higher bound before steps are halved
_AIM = 1.05  # where no path that obeys is known, steps aim at so many times the bound


@dataclass(frozen=True)
class Prices:
    """What stages and hops pay, s."""

    nodes: np.ndarray  # (V,) π
    links: np.ndarray  # (E,) λ, by the number of the undirected link

    @classmethod
    def none(cls, problem: PipelineProblem) -> Self:
        """Return prices of 0."""
        return cls(np.zeros(problem.n_nodes), np.zeros(problem.n_edges))

    @property
    def total(self) -> float:
        """What a path gets back, s."""
        return float(self.nodes.sum() + self.links.sum())

    def charged(self, problem: PipelineProblem, tables: Tables) -> Tables:
        """Return the tables with prices in the linear costs; occupancies stay."""
        hop = tables.hop_linear + self.links[problem.link]
        return dataclasses.replace(tables, stage_linear=tables.stage_linear + self.nodes, hop_linear=hop)


class Priced(NamedTuple):
    """The result of some steps."""

    prices: Prices
    bound: float  # s, no path that obeys has a shorter T
    path: Path | None  # the best path that obeys among those met


def raised(problem: PipelineProblem, tables: Tables, start: Prices, known: float, once: bool, steps: int) -> Priced:
    """Return the best prices of some subgradient steps for T = S + (M − 1) θ, with Polyak's step lengths.

    Args:
        problem: the problem.
        tables: at one micro-batch size; stages that no path may have cost infinity.
        start: prices to begin with.
        known: T of a path that obeys, s; infinite if none is known.
        once: whether links have prices: each may serve one hop only.
        steps: how many.

    Source: ours [B]; Lagrangian bounds and Polyak's steps are standard.
    """
    nodes, links, best, scale, waiting = start.nodes, start.links, -np.inf, 1.0, 0
    kept, obeying = start, None
    least = float(least_bottleneck(problem, tables).arrived[0, problem.source])
    for _ in range(steps):
        prices = Prices(nodes, links)
        point = least_total(problem, prices.charged(problem, tables), least)
        if point is None:
            break
        value = point.total - prices.total
        hosts = np.bincount([n for n, _, _ in point.path.stages], minlength=problem.n_nodes)
        hops = np.bincount([problem.link[e] for _, e in point.path.hops], minlength=problem.n_edges)
        if hosts.max() <= 1 and (hops.max(initial=0) <= 1 or not once):
            total = point.total - float(nodes @ hosts + links @ hops)
            if total < known:
                known, obeying = total, point.path
        waiting += 1
        if value > best:
            best, kept, waiting = value, prices, 0
        elif waiting >= _PATIENCE:
            scale, waiting = scale / 2, 0
        over = hosts - 1.0, (hops - 1.0) * once
        over = [np.where((price > 0) | (more > 0), more, 0.0) for price, more in zip((nodes, links), over, strict=True)]
        length = float(sum((more**2).sum() for more in over))
        aim = known if np.isfinite(known) else _AIM * best
        if length == 0 or value >= known:
            break
        step = scale * max(aim - value, 1e-6 * abs(aim)) / length
        nodes, links = (np.maximum(p + step * more, 0.0) for p, more in zip((nodes, links), over, strict=True))
    return Priced(kept, best, obeying)
