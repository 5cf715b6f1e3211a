"""Label setting: the shortest path on which every node hosts one stage at most, and every link serves one hop.

A label is a path from the source to a vertex of the state graph, with its fill time S, its interval θ, and the hosts
and links it has used. A label is dominated by another one at the same vertex that is no worse in any of these. Labels
are taken in the order of a lower bound (A*): shortest paths bound what remains to the end, at a dozen limits of the
occupancy and for every set of hosts already used.

Labels remember critical hosts and links only: at first those that the plain shortest path repeats. If the best path
found repeats others, these become critical as well, and the search starts again. Each best value is a lower bound.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from psl.schedulers.pipeline.checks import ROUNDING
from psl.schedulers.pipeline.latency import link_loads
from psl.schedulers.pipeline.path import Path
from psl.schedulers.pipeline.problem import PipelineProblem, Tables
from psl.schedulers.pipeline.shortest_path import completions_by_hosts

MAX_LABELS = 200_000  # per placement problem, before the search gives up proving

_CLASSES = (12, 24, 48)  # classes of the interval: more make better bounds and cost more
_PATIENCE = 4000  # labels after which finer classes are worth their cost
_TABLE = 1e7  # entries that a table of completions may take to compute
_ABOVE = 1.25
_WIDTHS = (1, 4, 16, 64)
_SLACK = 1 + ROUNDING


@dataclass(frozen=True)
class Goal:
    """What is minimised: S where `fill` is 1, plus a weight times θ, with no occupancy above the limit."""

    fill: int
    weight: float
    limit: float = np.inf


class Critical(NamedTuple):
    """The hosts and links that labels remember."""

    hosts: tuple[int, ...]  # bit k of `Label.hosts` stands for the k-th of them
    edges: frozenset[int]  # numbers of undirected links, as in `PipelineProblem.link`


@dataclass(frozen=True)
class Bounds:
    """For every vertex and set of used hosts, what remains at least, per class of the completion's interval."""

    fill: np.ndarray  # (2, K, L+1, N, sets) S (0 if it does not matter) with interval at most limit k
    interval: np.ndarray  # (2, K, L+1, N, sets) θ of completions in class k, at least; first axis: computed, arrived
    known: int  # mask of the critical hosts that the sets are made of; labels may remember more


@dataclass(slots=True)
class Label:
    """One path to a vertex. With links="once" it remembers links, with "shared" their loads, else neither."""

    fill: float  # S, s
    interval: float  # θ, s
    cut: int
    node: int
    arrived: int  # 1: by a hop, 0: computed on the node
    hosts: int  # bit mask of the critical hosts that have a stage
    crossed: int = 0  # bit mask of the critical links that have a hop
    loads: dict[int, float] = field(default_factory=dict)  # s on each direction of the critical links
    parent: "Label | None" = None
    edge: int = -1  # of the last hop; -1 after a stage

    def dominates(self, other: "Label") -> bool:
        """Whether the other label, at the same vertex, is no better in anything."""
        if self.fill > other.fill or self.interval > other.interval or self.hosts & ~other.hosts:
            return False
        if self.crossed & ~other.crossed:
            return False
        return not self.loads or all(load <= other.loads.get(r, 0.0) for r, load in self.loads.items())

    def path(self) -> Path:
        """Return the stages and hops from the source to here."""
        stages, hops, label = [], [], self
        while label.parent is not None:
            if label.edge < 0:
                stages.append((label.node, label.parent.cut, label.cut))
            else:
                hops.append((label.cut, label.edge))
            label = label.parent
        return Path(tuple(stages[::-1]), tuple(hops[::-1]))


class Found(NamedTuple):
    """The result of a search: a path, or None; a value below which there is no path."""

    path: Path | None
    bound: float
    exact: bool  # whether the path is proven best; without one, whether it is proven that none is below the cutoff


class Outcome(NamedTuple):
    """The result of one best-first search: a path with its value, or None with a bound; whether labels ran out."""

    path: Path | None
    bound: float
    capped: bool


@dataclass
class PlacementSearch:
    """Search the placements of one problem at one micro-batch size.

    Args:
        problem, tables: the problem at one micro-batch size.
        links: how hops may use the links, see `best_placement`.
        max_labels: labels after which the search gives up proving.

    Attributes:
        made: number of labels so far.

    Source: ours [B].
    """

    problem: PipelineProblem
    tables: Tables
    links: str
    max_labels: int
    made: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        # The source hosts the first stage, so no other.
        self.stage = self.tables.stage.copy()
        self.stage[1:, :, self.problem.source] = np.inf

    def run(self, objective: str, cutoff: float, relaxed: Path, bound: float) -> Found:
        """Return the best path below the cutoff.

        Args:
            objective: "time" or "interval".
            cutoff: only paths below it are wanted; if it is infinite, None means that no path exists.
            relaxed: the plain shortest path.
            bound: its value.
        """
        if objective == "time":
            return self._settle(Goal(1, float(self.tables.n_micro_batches - 1)), cutoff, relaxed, bound)
        goal = Goal(0, 1.0)
        found = self._settle(goal, cutoff, relaxed, bound)
        if found.path is None or not found.exact:
            return found
        # Among paths of the least interval, one of less fill time.
        ties = Goal(1, 0.0, self.value(found.path, goal) * _SLACK)
        known = self.value(found.path, ties)
        shorter = self._settle(ties, known, found.path, 0.0).path
        if shorter is None or self.value(shorter, ties) > known:
            shorter = found.path
        return Found(shorter, found.bound, True)

    def _settle(self, goal: Goal, cutoff: float, relaxed: Path, bound: float) -> Found:
        """Return the best path for one goal, by best-first searches with more and more critical hosts and links."""
        best, incumbent, fine = cutoff, None, 0
        critical = self._extended(Critical((), frozenset()), relaxed)
        bounds = self._bounds(goal, critical.hosts, bound, _CLASSES[fine])
        while True:
            finest = fine == len(_CLASSES) - 1 or not goal.fill or not goal.weight
            budget = self.max_labels if finest else min(self.max_labels, self.made + _PATIENCE * 2**fine)
            found = self._best_first(goal, bounds, best, critical, budget)
            bound = max(bound, found.bound)
            before = critical.hosts
            if found.capped:
                if budget == self.max_labels:
                    break
                fine += 1
            elif found.path is None:
                return Found(incumbent, best, True)
            else:
                if self._allowed(found.path):
                    value = self.value(found.path, goal)
                    if value <= found.bound * _SLACK:
                        return Found(found.path, value, True)
                    if value < best:
                        best, incumbent = value, found.path
                critical = self._extended(critical, found.path)
            if found.capped or critical.hosts != before:
                bounds = self._bounds(goal, critical.hosts, bound, _CLASSES[fine])
        if incumbent is None:
            others = [n for n in range(self.problem.n_nodes) if n not in critical.hosts]
            everything = Critical((*critical.hosts, *others), frozenset(self.problem.link.tolist()))
            for width in _WIDTHS:
                again = self._best_first(goal, bounds, np.inf, everything, np.inf, width)
                if again.path is not None:
                    return Found(again.path, bound, self.value(again.path, goal) <= bound * _SLACK)
        return Found(incumbent, bound, False)

    def value(self, path: Path, goal: Goal) -> float:
        """Return what is minimised, for a path on which no node hosts two stages; infinite above the limit.

        With links="shared" the loads of hops over one link add up.
        """
        tables = self.tables
        stages = [tables.stage[i, j, n] for n, i, j in path.stages]
        hops = [tables.hop_linear[hop] for hop in path.hops]
        busy = [tables.hop_occupancy[hop] for hop in path.hops]
        if self.links == "shared":
            loads: Counter = Counter()
            for cut, e in path.hops:
                loads.update(self._loads(cut, e))
            busy = list(loads.values())
        interval = float(max(stages + busy))
        if interval > goal.limit * _SLACK:
            return np.inf
        return goal.fill * float(sum(stages) + sum(hops)) + goal.weight * interval

    def _repeated(self, path: Path) -> tuple[list[int], list[int]]:
        nodes, used = self.problem.repeated(path)
        return nodes, used if self.links != "separate" else []

    def _allowed(self, path: Path) -> bool:
        nodes, used = self._repeated(path)
        return not nodes and not (used and self.links == "once")

    def _extended(self, critical: Critical, path: Path) -> Critical:
        """Return the critical hosts and links with those that a path repeats."""
        nodes, used = self._repeated(path)
        new = [n for n in nodes if n not in critical.hosts and n != self.problem.source]
        return Critical((*critical.hosts, *new), critical.edges | set(used))

    def _loads(self, cut: int, e: int) -> dict[int, float]:
        problem, b = self.problem, self.tables.micro_batch
        forward, backward = float(b * problem.forward[cut, e]), float(b * problem.backward[cut, e])
        return link_loads(e, int(problem.reverse[e]), forward, backward, problem.full_duplex)

    def _bounds(self, goal: Goal, hosts: tuple[int, ...], bound: float, classes: int) -> Bounds:
        """Return what remains at least, by sets of as many of the hosts as tables may be large."""
        problem, tables = self.problem, self.tables
        hosts = hosts[: max(int(np.log2(_TABLE / self.stage.size)), 0)]

        def least_sum(limit: float) -> np.ndarray:
            stage = np.where(self.stage <= limit, self.stage, np.inf)
            hop = np.where(tables.hop_occupancy <= limit, tables.hop_linear, np.inf)
            return completions_by_hosts(problem, stage, hop, hosts)

        least = completions_by_hosts(problem, self.stage, tables.hop_occupancy, hosts, np.maximum)
        if not goal.fill:
            fill, floors = [np.where(np.isfinite(least), 0.0, np.inf)], [0.0]
        elif not goal.weight:
            fill, floors = [least_sum(goal.limit)], [0.0]
        else:
            fill, floors = [least_sum(np.inf)], [0.0]
            low = float(least[1, 0, problem.source, 0])
            high = (_ABOVE * bound - float(fill[0][1, 0, problem.source, 0])) / goal.weight
            if np.isfinite(low):
                limits = np.linspace(low, max(high, low), classes - 1).tolist()
                fill, floors = [*(least_sum(limit * _SLACK) for limit in limits), *fill], [0.0, *limits]
        floor = np.array(floors)[:, None, None, None]
        return Bounds(np.stack(fill, axis=1), np.maximum(least[:, None], floor), (1 << len(hosts)) - 1)

    def _best_first(
        self, goal: Goal, bounds: Bounds, best: float, critical: Critical, budget: float, width: int | None = None
    ) -> Outcome:
        """Return the best path to the end that repeats no critical host or link, if it is below `best`.

        With a `width`, only so many labels are followed per vertex: fast, and not exact.
        """
        problem = self.problem
        bits = {n: 1 << k for k, n in enumerate(critical.hosts)}
        start = Label(0.0, 0.0, 0, problem.source, 1, 0)
        heap: list[tuple[float, int, int, Label]] = [(0.0, 0, 0, start)]
        settled: defaultdict[tuple[int, int, int], list[Label]] = defaultdict(list)
        while heap:
            low, _, _, label = heapq.heappop(heap)
            if low >= best:
                break
            if label.cut == problem.n_units:
                return Outcome(label.path(), low, False)
            vertex = settled[label.cut, label.node, label.arrived]
            if len(vertex) == width or any(other.dominates(label) for other in vertex):
                continue
            vertex.append(label)
            if self.made >= budget:
                return Outcome(None, low, True)
            for value, child in self._children(label, goal, bounds, best, bits, critical.edges):
                self.made += 1
                heapq.heappush(heap, (value, -child.cut, self.made, child))
        return Outcome(None, best, False)

    def _children(
        self, label: Label, goal: Goal, bounds: Bounds, best: float, bits: dict[int, int], edges: frozenset[int]
    ) -> Iterator[tuple[float, Label]]:
        """Yield the labels one stage or hop further, with lower bounds of what they lead to."""
        problem, tables, j, n = self.problem, self.tables, label.cut, label.node
        bit = bits.get(n, 0)
        if label.arrived and not label.hosts & bit:
            to, hosts = slice(j + 1, None), label.hosts | bit
            stage = self.stage[j, to, n]
            fill, interval = _plus(goal, label, stage), np.maximum(label.interval, stage)
            values = _values(goal, bounds, 0, to, n, hosts, fill, interval)
            for k in np.flatnonzero((values < best) & (interval <= goal.limit)).tolist():
                child = Label(
                    float(fill[k]), float(interval[k]), j + 1 + k, n, 0, hosts, label.crossed, label.loads, label
                )
                yield float(values[k]), child
        if j == 0:
            return
        first = int(problem.tail_starts[n])
        after = int(problem.tail_starts[n + 1]) if n + 1 < problem.n_nodes else problem.n_edges
        heads = problem.head[first:after]
        fill = _plus(goal, label, tables.hop_linear[j, first:after])
        interval = np.maximum(label.interval, tables.hop_occupancy[j, first:after])
        values = _values(goal, bounds, 1, j, heads, label.hosts, fill, interval)
        for k in np.flatnonzero((values < best) & (interval <= goal.limit)).tolist():
            e, value, theta = first + k, float(values[k]), float(interval[k])
            crossed, loads, link = label.crossed, label.loads, int(problem.link[e])
            if link in edges and self.links == "once":
                if crossed >> link & 1:
                    continue
                crossed |= 1 << link
            elif link in edges and self.links == "shared":
                added = {r: loads.get(r, 0.0) + load for r, load in self._loads(j, e).items()}
                loads = {**loads, **added}
                if (loaded := max(added.values())) > theta:
                    theta = loaded
                    value = float(_values(goal, bounds, 1, j, heads[k], label.hosts, fill[k], theta))
                    if value >= best or theta > goal.limit:
                        continue
            yield value, Label(float(fill[k]), theta, j, int(heads[k]), 1, label.hosts, crossed, loads, label, e)


def _plus(goal: Goal, label: Label, costs: np.ndarray) -> np.ndarray:
    return label.fill + (costs if goal.fill else np.where(np.isfinite(costs), 0.0, np.inf))


def _values(
    goal: Goal,
    bounds: Bounds,
    kind: int,
    cut: int | slice,
    node: int | np.ndarray,
    hosts: int,
    fill: np.ndarray,
    interval: float | np.ndarray,
) -> np.ndarray:
    """Return lower bounds of the goal for labels that have arrived at vertices (kind 1) or were computed there (0)."""
    known = hosts & bounds.known
    remaining = bounds.fill[kind][:, cut, node, known]  # (K, children)
    if not goal.weight:
        return fill + remaining.min(axis=0)
    worst = np.maximum(interval, bounds.interval[kind][:, cut, node, known])
    return fill + (remaining + goal.weight * worst).min(axis=0)
