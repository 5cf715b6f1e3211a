"""The best stages and hops for one micro-batch size: the shortest path, or a search where it repeats a node or link."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from psl.errors import InfeasibleError, check_choice, check_count, expected
from psl.schedulers.pipeline.checks import LINKS, OBJECTIVES, ROUNDING
from psl.schedulers.pipeline.label_setting import MAX_LABELS, PlacementSearch
from psl.schedulers.pipeline.micro_batch import MicroBatchCurve
from psl.schedulers.pipeline.pareto import Point, least_fill_time, walk
from psl.schedulers.pipeline.path import Hops, Path, Stages, describe
from psl.schedulers.pipeline.problem import PipelineProblem, Tables
from psl.schedulers.pipeline.shortest_path import least_bottleneck

#: Is told of every step of a search by a dict: "block", which says whether "placement" or "micro-batch" was chosen;
#: "micro_batch", m; "round_time", s. Where the interval is minimised, "round_time" is the interval.
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Placement:
    """A path with a micro-batch size and its times, and what is known about better ones: the result of all searches."""

    problem: PipelineProblem = field(compare=False)
    path: Path  # by places; `stages` and `hops` have the nodes' names
    micro_batch: int  # m
    objective: str  # "time" or "interval"
    fill_time: float  # T_f, s
    interval: float  # T_i, s
    total: float  # T, s
    lower_bound: float = 0.0  # s, of the objective: nothing that was searched has less
    exact: bool = False  # whether this one is proven best
    steps: tuple[dict[str, float], ...] = ()  # one dict per shortest path: limit, fill_time, interval, total
    labels: int = 0  # labels of the search; 0 where the shortest path repeats nothing
    solved: int = 1  # placement problems that were solved

    @classmethod
    def timed(cls, problem: PipelineProblem, path: Path, micro_batch: int, objective: str, links: str) -> "Placement":
        """Return a path with its times by the closed form."""
        terms = problem.latency(path, micro_batch, links)
        return cls(problem, path, micro_batch, objective, terms.fill_time, terms.interval, terms.total)

    def proven(self, lower_bound: float, exact: bool, **others: Any) -> "Placement":
        """Return the placement with its bound: its own value if it is proven best, never above that."""
        # The bound and the value are sums in different orders: the last bit must not put the bound above the value.
        bound = self.value if exact else min(lower_bound, self.value)
        return dataclasses.replace(self, lower_bound=bound, exact=exact, **others)

    def resized(self, curve: MicroBatchCurve, micro_batch: int) -> "Placement":
        """Return the same path at another micro-batch size, timed by its curve; nothing is known about better ones."""
        return Placement(
            self.problem,
            self.path,
            micro_batch,
            self.objective,
            float(curve.fill_time(micro_batch)),
            float(curve.interval(micro_batch)),
            float(curve.total(micro_batch)),
        )

    @property
    def value(self) -> float:
        """What was minimised: `total`, or `interval`; s."""
        return self.total if self.objective == "time" else self.interval

    @property
    def stages(self) -> Stages:
        """(node, i, j) in the order of the path: the node runs units i+1..j."""
        return self.path.named(self.problem.network)[0]

    @property
    def hops(self) -> Hops:
        """(cut, u, v) in the order of the path."""
        return self.path.named(self.problem.network)[1]

    @property
    def repeated_nodes(self) -> tuple[int | str, ...]:
        """Nodes that host more than one stage."""
        return tuple(self.problem.network.nodes[n] for n in self.problem.repeated(self.path)[0])

    @property
    def repeated_links(self) -> tuple[tuple[int | str, int | str], ...]:
        """Undirected links (u, v) that serve more than one hop."""
        ends = (self.problem.network.edges[e] for e in self.problem.repeated(self.path)[1])
        return tuple((u, v) if str(u) <= str(v) else (v, u) for u, v in ends)

    @property
    def repeats(self) -> bool:
        """Whether a node hosts more than one stage or a link serves more than one hop."""
        return any(self.problem.repeated(self.path))

    def __repr__(self) -> str:
        path, proof = describe(self.problem.network, self.stages), "best" if self.exact else "not proven best"
        times = f"T={self.total:.6g} s, fill time {self.fill_time:.4g} s, interval {self.interval:.4g} s"
        return f"Placement({path}, m={self.micro_batch}, {times}, {proof})"


def relax(problem: PipelineProblem, micro_batch: int, objective: str = "time") -> Placement:
    """Return the plain shortest path, which may come back to a node or a link.

    Its times count a node that hosts two stages as two nodes, and every hop by itself.

    Args:
        problem: the problem.
        micro_batch: m, samples per micro-batch.
        objective: "time", T, or "interval", T_i (ties: the shorter fill time).

    Raises:
        ScenarioError: an argument is out of range.
        InfeasibleError: no path leads through the model.

    Source: pipelined split learning (arXiv 2505.04368): bottleneck-aware shortest path [P]; the faster search [B].
    """
    check_choice("objective", objective, OBJECTIVES)
    found = _relaxed(problem, problem.tables(micro_batch), objective, np.inf)
    if found is None:
        raise problem.infeasible()
    return found


def _relaxed(problem: PipelineProblem, tables: Tables, objective: str, cutoff: float) -> Placement | None:
    """Return the plain shortest path, or None if nothing is below the cutoff; exact.

    One minimax pass gives θ_min, the least interval. The path of least fill time over all edges and the one over edges
    of occupancy up to θ_min are the first candidates. Then come paths of least fill time over edges of occupancy below
    min(θ_k, (best − S_k)/(M − 1)). Here θ_k and S_k are interval and fill time of the path before. As S_k never falls
    again, no path with a larger occupancy can win.
    """
    least = float(least_bottleneck(problem, tables).arrived[0, problem.source])
    if not np.isfinite(least):
        raise problem.infeasible()
    steps: list[dict[str, float]] = []

    def step(limit: float) -> Point | None:
        point = least_fill_time(problem, tables, limit)
        if point is not None:
            fill, interval, total, _ = point
            steps.append({"limit": float(limit), "fill_time": fill, "interval": interval, "total": total})
        return point

    if objective == "interval":
        best = step(least) if least < cutoff else None
    else:
        best = walk(step, least, tables.n_micro_batches - 1, cutoff)
    if best is None:
        return None
    placement = Placement.timed(problem, best.path, tables.micro_batch, objective, "separate")
    return placement.proven(placement.value, True, steps=tuple(steps))


def best_placement(
    problem: PipelineProblem,
    micro_batch: int,
    *,
    links: str = "once",
    objective: str = "time",
    max_labels: int = MAX_LABELS,
) -> Placement:
    """Return the best placement with one stage per node at most, at one micro-batch size.

    The plain shortest path is optimal where it repeats no node and no link. Elsewhere label setting finds the best
    path that does not.

    Args:
        problem: the problem.
        micro_batch: m, samples per micro-batch.
        links: "once": an undirected link serves one hop at most; "shared": the hops over a link add up in its
            occupancy, per direction in full duplex; "separate": every hop counts by itself, as published.
        objective: "time", T, or "interval", T_i (ties: the shorter fill time, as far as found).
        max_labels: give up proving beyond so many labels: the result then has `exact=False`.

    Raises:
        ScenarioError: an argument is out of range.
        InfeasibleError: there is no placement.

    Source: pipelined split learning (arXiv 2505.04368): splitting and placement by a shortest path [P]; the search for
        paths without repetition [B].
    """
    found = placement_below(problem, micro_batch, np.inf, links=links, objective=objective, max_labels=max_labels)
    if found is None:
        raise problem.infeasible(links)
    return found


def placement_below(
    problem: PipelineProblem,
    micro_batch: int,
    cutoff: float,
    *,
    links: str = "once",
    objective: str = "time",
    max_labels: int = MAX_LABELS,
) -> Placement | None:
    """Return the best placement if it is below a cutoff, or None if it is proven that nothing is; stops early.

    Args:
        problem, micro_batch, links, objective: as for `best_placement`.
        cutoff: of the objective, s.
        max_labels: give up proving beyond so many labels: the result then has `exact=False` and may be at or above the
            cutoff.

    Raises:
        ScenarioError: an argument is out of range.
        InfeasibleError: the model fits nowhere, or nothing was found within `max_labels`.

    Source: ours [B].
    """
    check_choice("links", links, LINKS)
    check_choice("objective", objective, OBJECTIVES)
    max_labels = check_count("max_labels", max_labels)
    tables = problem.tables(micro_batch)
    relaxed = _relaxed(problem, tables, objective, cutoff)
    if relaxed is None:
        return None
    nodes, used = problem.repeated(relaxed.path)
    if not nodes and not used:
        return relaxed
    if not nodes and links != "once":
        same = relaxed
        if links == "shared":
            same = Placement.timed(problem, relaxed.path, tables.micro_batch, objective, links)
        if same.value <= relaxed.value * (1 + ROUNDING):
            return same.proven(relaxed.value, True, steps=relaxed.steps)
    if short := problem.shortage():
        raise short
    search = PlacementSearch(problem, tables, links, max_labels)
    path, bound, exact = search.run(objective, cutoff, relaxed.path, relaxed.value)
    if path is None and exact:
        return None
    if path is None:
        got = f"none within max_labels = {max_labels}, though nothing rules one out"
        raise expected("network", "a placement with one stage per node", got, "raise max_labels", InfeasibleError)
    placement = Placement.timed(problem, path, tables.micro_batch, objective, links)
    return placement.proven(max(bound, relaxed.value), exact, steps=relaxed.steps, labels=search.made)
