"""Label setting: the shortest path on which every node hosts one stage at most, and every link serves one hop.

A label is a path from the source to a vertex of the state graph, with its fill time S, its interval θ, and the hosts
and links it has used. A label is dominated by another one at the same vertex that is no worse in any of these. Labels
are taken in the order of a lower bound (A*).

Labels remember critical hosts and links only: at first those that the plain shortest path repeats. If the best path
found repeats others, these become critical as well, and the search starts again. Each best value is a lower bound. In
operations research this is known as decremental state-space relaxation. A search that goes on for long puts `Prices` on
nodes and links: then bounds know what it costs to avoid repetitions, also of what no label remembers yet.
"""

import dataclasses
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from psl.schedulers.pipeline.checks import ROUNDING
from psl.schedulers.pipeline.completion_bounds import CompletionBounds, Goal
from psl.schedulers.pipeline.labels import Critical, Label
from psl.schedulers.pipeline.latency import link_loads
from psl.schedulers.pipeline.path import Path
from psl.schedulers.pipeline.prices import Prices, raised
from psl.schedulers.pipeline.problem import PipelineProblem, Tables

#: Labels per placement problem before the search gives up proving. With 50 nodes and 50 units, prices included, they
#: take about 15 seconds; benchmarks/pipeline_unproven.py has what is left unproven then.
MAX_LABELS = 200_000

# Classes of the interval in the bounds. In the same trials 48 classes needed half as many labels as 12 and three times
# the time, but proved one plan more: so a search begins with 12.
_CLASSES = (12, 24, 48)
_PATIENCE = 4000  # labels before finer classes are tried; with 1000 the trials took a fifth longer, 16,000 proved less
_WIDTHS = (1, 4, 16, 64)  # labels per vertex when any plan will do: from greedy to thorough, until one is found
_STEPS = 60  # of the prices, whenever labels ran out
_SLACK = 1 + ROUNDING


class Found(NamedTuple):
    """The result of a search: a path, or None; a value below which there is no path that obeys."""

    path: Path | None
    bound: float
    exact: bool  # whether the path is proven best; without one, whether it is proven that none is below the cutoff


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
        self.stage, self.linear = self.tables.stage.copy(), self.tables.stage_linear.copy()
        for costs in (self.stage, self.linear):
            costs[1:, :, self.problem.source] = np.inf
        self.prices = Prices.none(self.problem)

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
        self.prices = Prices.none(self.problem)
        critical = self._extended(Critical((), frozenset()), relaxed)
        bounds = self._bounds(goal, critical, bound, fine)
        while True:
            finest = fine == len(_CLASSES) - 1 or not goal.fill or not goal.weight
            budget = self.max_labels if finest else min(self.max_labels, self.made + _PATIENCE * 2**fine)
            found = self._best_first(bounds, best, critical, budget)
            bound = max(bound, found.bound)
            before = critical.hosts
            if found.path is not None and self._allowed(found.path):
                value = self.value(found.path, goal)
                if value <= bound * _SLACK:
                    return Found(found.path, value, True)
                if value < best:
                    best, incumbent = value, found.path
            if found.exact:
                if found.path is None:
                    return Found(incumbent, best, True)
                critical = self._extended(critical, found.path)
            elif not fine and not finest and budget < self.max_labels:
                fine += 1  # finer classes alone are cheap, and often enough
            else:
                path = self._greedy(bounds, critical, goal, best) if incumbent is None else None
                if path is not None:
                    best, incumbent = self.value(path, goal), path
                if goal.fill and goal.weight:
                    critical, path, bound = self._priced(critical, best, bound)
                    if path is not None and self.value(path, goal) < best:
                        best, incumbent = self.value(path, goal), path
                if bound * _SLACK >= best:
                    return Found(incumbent, best, True)
                if budget == self.max_labels:
                    break
                fine += 1
            if not found.exact or critical.hosts != before:
                bounds = self._bounds(goal, critical, bound, fine)
        for width in _WIDTHS[1:3]:  # now with prices
            path = self._greedy(bounds, critical, goal, best, (width,))
            if path is not None:
                best, incumbent = self.value(path, goal), path
        if incumbent is None and np.isfinite(cutoff):  # a plan above the cutoff is better than none
            incumbent = self._greedy(bounds, critical, goal, np.inf)
        return Found(incumbent, bound, incumbent is not None and self.value(incumbent, goal) <= bound * _SLACK)

    def _greedy(
        self, bounds: CompletionBounds, critical: Critical, goal: Goal, best: float, widths: tuple[int, ...] = _WIDTHS
    ) -> Path | None:
        """Return a path below `best` that obeys, with few labels per vertex, or None if none is found."""
        others = [n for n in range(self.problem.n_nodes) if n not in critical.hosts]
        everything = Critical((*critical.hosts, *others), frozenset(self.problem.link.tolist()))
        made, found = self.made, None
        for width in widths:
            path = self._best_first(bounds, best, everything, np.inf, width).path
            if path is not None and self.value(path, goal) < best:
                found = path
                break
        self.made = made  # they prove nothing, and do not count
        return found

    def _priced(self, critical: Critical, best: float, bound: float) -> tuple[Critical, Path | None, float]:
        """Raise the prices; return what is critical now, a path that obeys or None, and the bound."""
        charged = dataclasses.replace(self.tables, stage=self.stage, stage_linear=self.linear)
        steps = max(min(_STEPS, self.max_labels // 1000), 1)
        priced = raised(self.problem, charged, self.prices, best, self.links == "once", steps)
        self.prices = priced.prices
        new = [n for n in np.flatnonzero(self.prices.nodes > 0).tolist() if n not in critical.hosts]
        edges = critical.edges | set(np.flatnonzero(self.prices.links > 0).tolist())
        return Critical((*critical.hosts, *new), edges), priced.path, max(bound, priced.bound)

    def value(self, path: Path, goal: Goal) -> float:
        """Return what is minimised, for a path on which no node hosts two stages; infinite above the limit.

        With links="shared" the loads of hops over one link add up.
        """
        tables = self.tables
        stages = [tables.stage[i, j, n] for n, i, j in path.stages]
        linear = [tables.stage_linear[i, j, n] for n, i, j in path.stages]
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
        return goal.fill * float(sum(linear) + sum(hops)) + goal.weight * interval

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
        problem, m = self.problem, self.tables.micro_batch
        forward, backward = float(m * problem.forward[cut, e]), float(m * problem.backward[cut, e])
        return link_loads(e, int(problem.reverse[e]), forward, backward, problem.full_duplex)

    def _bounds(self, goal: Goal, critical: Critical, bound: float, fine: int) -> CompletionBounds:
        problem, tables, prices = self.problem, self.tables, self.prices
        costs = self.stage, self.linear + prices.nodes, tables.hop_linear + prices.links[problem.link]
        return CompletionBounds.of(problem, tables, *costs, goal, critical.hosts, bound + prices.total, _CLASSES[fine])

    def _best_first(
        self, bounds: CompletionBounds, best: float, critical: Critical, budget: float, width: int | None = None
    ) -> Found:
        """Return the best path to the end that repeats no critical host or link, if it is below `best`.

        With prices, the bounds are below the values of paths: paths that obey are kept until nothing is below them.
        With a `width`, only so many labels are followed per vertex, to the first path: fast, and not exact.
        """
        problem, kept = self.problem, None
        bits = {n: 1 << k for k, n in enumerate(critical.hosts)}
        start = Label(0.0, 0.0, 0, problem.source, 1, 0)
        heap: list[tuple[float, int, int, Label]] = [(0.0, 0, 0, start)]
        settled: defaultdict[tuple[int, int, int], list[Label]] = defaultdict(list)
        while heap:
            low, _, _, label = heapq.heappop(heap)
            if low >= best:
                break
            if label.cut == problem.n_units:
                path = label.path()
                if width is not None or self._extended(critical, path) != critical:
                    return Found(path, low, True)
                value = self.value(path, bounds.goal)
                if value <= low * _SLACK:
                    return Found(path, low, True)
                if value < best:
                    best, kept = value, path
                continue
            vertex = settled[label.cut, label.node, label.arrived]
            if len(vertex) == width or any(other.dominates(label) for other in vertex):
                continue
            vertex.append(label)
            if self.made >= budget:
                return Found(kept, low, False)
            for value, child in self._children(label, bounds, best, bits, critical.edges):
                self.made += 1
                heapq.heappush(heap, (value, -child.cut, self.made, child))
        return Found(kept, best, True)

    def _children(
        self, label: Label, bounds: CompletionBounds, best: float, bits: dict[int, int], edges: frozenset[int]
    ) -> Iterator[tuple[float, Label]]:
        """Yield the labels one stage or hop further, with lower bounds of what they lead to."""
        problem, tables, goal, j, n = self.problem, self.tables, bounds.goal, label.cut, label.node
        bit, prices = bits.get(n, 0), self.prices
        back = prices.total - label.paid  # what it gets back and has not paid
        if label.arrived and not label.hosts & bit:
            to, hosts = slice(j + 1, None), label.hosts | bit
            stage = self.stage[j, to, n]
            fill, interval = _plus(goal, label, self.linear[j, to, n]), np.maximum(label.interval, stage)
            paid = label.paid + float(prices.nodes[n])
            values = bounds.values(0, to, n, hosts, fill - (prices.total - paid), interval)
            for k in np.flatnonzero((values < best) & (interval <= goal.limit)).tolist():
                times = float(fill[k]), float(interval[k])
                child = Label(*times, j + 1 + k, n, 0, hosts, label.crossed, label.loads, paid, label)
                yield float(values[k]), child
        if j == 0:
            return
        first = int(problem.tail_starts[n])
        after = int(problem.tail_starts[n + 1]) if n + 1 < problem.n_nodes else problem.n_edges
        heads = problem.head[first:after]
        fill = _plus(goal, label, tables.hop_linear[j, first:after])
        interval = np.maximum(label.interval, tables.hop_occupancy[j, first:after])
        pay = prices.links[problem.link[first:after]]
        values = bounds.values(1, j, heads, label.hosts, fill - (back - pay), interval)
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
                    value = float(bounds.values(1, j, heads[k], label.hosts, fill[k] - (back - pay[k]), theta))
                    if value >= best or theta > goal.limit:
                        continue
            paid = label.paid + float(pay[k])
            yield value, Label(float(fill[k]), theta, j, int(heads[k]), 1, label.hosts, crossed, loads, paid, label, e)


def _plus(goal: Goal, label: Label, costs: np.ndarray) -> np.ndarray:
    return label.fill + (costs if goal.fill else np.where(np.isfinite(costs), 0.0, np.inf))
