"""Shortest paths that book every node, and every link, at most once: labels set best first, and only as many
bookings remembered as turn out to matter.

A label is a way from the source to a vertex of the state graph with its fill time S, its interval θ, and the hosts
and links it has used. It is dominated by one at the same vertex that is no worse in any of these. What remains to the
end is bounded by shortest paths of the plain state graph at a dozen limits of the occupancy, so that labels are taken
in the order of a lower bound (A*).

Only critical hosts and links are remembered: at first those that the plain shortest path books twice. If the best way
books others twice, these become critical too, and the search starts again; each best value is a lower bound.
"""

import heapq
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

from psl.schedulers.pipeline.problem import PipelineProblem, Tables
from psl.schedulers.pipeline.shortest_path import Path, least_bottleneck, least_sum

_LIMITS = 12
_ALL = -1  # as a bit mask: every host or link is critical
_SLACK = 1 + 1e-12  # sums in another order


@dataclass(frozen=True)
class Bounds:
    """What counts, and for every vertex what remains at least, per class of the completion's interval."""

    fill_weight: int  # 1, or 0: the fill time does not matter
    interval_weight: float
    limit: float  # no occupancy may be above it
    fill: (
        np.ndarray
    )  # (2, K, L+1, N) S (0 if it does not matter) of completions with interval at most limit k; 0 computed, 1 arrived
    interval: np.ndarray  # (2, K, L+1, N) θ of completions in class k, at least


@dataclass
class Label:
    """One way to a vertex; `used` holds a bit mask of links ("once") or the loads of links ("shared")."""

    fill: float
    interval: float
    cut: int
    node: int
    arrived: int
    hosts: int
    used: int | dict
    parent: "Label | None" = None
    edge: int = -1


@dataclass
class Outcome:
    """What one search found: a path, or none; a value below which there is none; whether it ran out of labels."""

    path: Path | None
    bound: float
    capped: bool


@dataclass
class PlacementSearch:
    """Search the placements of one problem at one micro-batch size; `made` counts the labels."""

    problem: PipelineProblem
    tables: Tables
    links: str
    max_labels: int
    made: int = field(default=0, init=False)

    def run(self, objective: str, cutoff: float, relaxed: Path, bound: float) -> tuple[Path | None, float, bool]:
        """Return (best path or None, lower bound, whether that is proven).

        Args:
            objective: "time" or "interval".
            cutoff: only paths below it are wanted; without one, None means that none exists.
            relaxed: the plain shortest path, and
            bound: its value.
        """
        bottleneck = least_bottleneck(self.problem, self.tables)
        least = np.stack([bottleneck.computed, bottleneck.arrived])[:, None]  # (2, 1, L+1, N)
        if objective == "time":
            weight = self.tables.n_micro_batches - 1
            return self._settle(self._time_bounds(weight, least, bound), cutoff, relaxed, bound)
        reach = np.where(np.isfinite(least), 0.0, np.inf)
        path, below, exact = self._settle(Bounds(0, 1.0, np.inf, reach, least), cutoff, relaxed, bound)
        if path is None or not exact:
            return path, below, exact
        limit = self.value(path, Bounds(0, 1.0, np.inf, reach, least)) * _SLACK
        found = least_sum(self.problem, self.tables, limit)
        ties = Bounds(1, 0.0, limit, np.stack([found.computed, found.arrived])[:, None], least)
        known = self.value(path, ties)
        shorter, _, _ = self._settle(ties, known, path, 0.0)
        return (path if shorter is None or self.value(shorter, ties) > known else shorter), below, True

    def _time_bounds(self, weight: int, least: np.ndarray, bound: float) -> Bounds:
        cheapest = least_sum(self.problem, self.tables)
        low = float(least[1, 0, 0, self.problem.source])
        limits, tables = [np.inf], [cheapest]
        if weight:
            # Intervals above `high` cost a quarter more than the plain path: seldom needed to tell ways apart.
            high = (1.25 * bound - float(cheapest.arrived[0, self.problem.source])) / weight
            limits = [*np.linspace(low, max(high, low), _LIMITS)[:-1], np.inf]
            tables = [*(least_sum(self.problem, self.tables, limit * _SLACK) for limit in limits[:-1]), cheapest]
        fill = np.stack([[t.computed for t in tables], [t.arrived for t in tables]])
        floors = np.array([0.0, *limits[:-1]])[:, None, None]
        return Bounds(1, float(weight), np.inf, fill, np.maximum(least, floors))

    def _settle(self, bounds: Bounds, cutoff: float, relaxed: Path, bound: float) -> tuple[Path | None, float, bool]:
        best, incumbent = cutoff, None
        hosts, used = self._twice(relaxed)
        while True:
            found = self._best_first(bounds, best, hosts, used)
            if found.capped:
                bound = max(bound, found.bound)
                break
            if found.path is None:
                return incumbent, best, True
            bound = max(bound, found.bound)
            more_hosts, more_used = self._twice(found.path)
            if not more_hosts and not (more_used and self.links == "once"):
                value = self.value(found.path, bounds)
                if value <= found.bound * _SLACK:
                    return found.path, value, True
                if value < best:
                    best, incumbent = value, found.path
            hosts, used = hosts | more_hosts, used | more_used
        if incumbent is None:
            for width in (1, 4, 16, 64):
                again = self._best_first(bounds, np.inf, _ALL, _ALL, width)
                if again.path is not None:
                    return again.path, bound, self.value(again.path, bounds) <= bound * _SLACK
        return incumbent, bound, False

    def value(self, path: Path, bounds: Bounds) -> float:
        """Return the weighted time of a path that books no node twice, loads of shared links added up."""
        stages, hops = path
        tables = self.tables
        spans, ways = [tables.stage[i, j, n] for n, i, j in stages], [tables.hop_linear[h] for h in hops]
        busy = [tables.hop_occupancy[h] for h in hops]
        if self.links == "shared":
            loads: Counter = Counter()
            for cut, e in hops:
                loads.update(self._loads(cut, e))
            busy = list(loads.values())
        return bounds.fill_weight * float(sum(spans) + sum(ways)) + bounds.interval_weight * float(max(spans + busy))

    def _twice(self, path: Path) -> tuple[int, int]:
        hosts = Counter(n for n, _, _ in path[0])
        links = Counter(int(self.problem.link[e]) for _, e in path[1]) if self.links != "separate" else {}
        mask = lambda counts: sum(1 << k for k, count in counts.items() if count > 1)  # noqa: E731
        return mask(hosts), mask(links)

    def _loads(self, cut: int, e: int) -> dict[int, float]:
        problem, b = self.problem, self.tables.micro_batch
        up, down = float(b * problem.forward[cut, e]), float(b * problem.backward[cut, e])
        if problem.full_duplex:
            return {e: up, int(problem.reverse[e]): down}
        return {int(problem.link[e]): up + down}

    def _best_first(self, bounds: Bounds, best: float, hosts: int, used: int, width: int | None = None) -> Outcome:
        """Return the best way to the end that books no critical host or link twice, if it is below `best`.

        With a `width`, only so many labels are followed per vertex: fast, and not exact.
        """
        problem, last = self.problem, self.problem.n_units
        source = problem.source
        start = Label(0.0, 0.0, 0, source, 1, 0, {} if self.links == "shared" else 0)
        heap: list = [(0.0, 0, 0, start)]
        settled: dict = defaultdict(list)
        low, budget = 0.0, self.max_labels if width is None else np.inf
        while heap:
            low, _, _, label = heapq.heappop(heap)
            if low >= best:
                break
            if label.cut == last:
                return Outcome(_trace(problem, label), low, False)
            vertex = settled[label.cut, label.node, label.arrived]
            if len(vertex) == width or any(_dominates(other, label) for other in vertex):
                continue
            vertex.append(label)
            if self.made >= budget:
                return Outcome(None, low, True)
            for value, child in self._children(label, bounds, best, hosts, used):
                self.made += 1
                heapq.heappush(heap, (value, -child.cut, self.made, child))
        return Outcome(None, best, False)

    def _children(self, label: Label, bounds: Bounds, best: float, hosts: int, used: int):
        tables, j, n = self.tables, label.cut, label.node
        if label.arrived and not label.hosts >> n & 1:
            to = slice(j + 1, None)
            span = tables.stage[j, to, n]
            fill, interval = _add(bounds, label, span), np.maximum(label.interval, span)
            values = _values(bounds, 0, to, n, fill, interval)
            booked = label.hosts | (1 << n & hosts)
            for k in np.flatnonzero((values < best) & (interval <= bounds.limit)).tolist():
                yield (
                    float(values[k]),
                    Label(float(fill[k]), float(interval[k]), j + 1 + k, n, 0, booked, label.used, label),
                )
        if j == 0:
            return
        problem = self.problem
        first = int(problem.tail_starts[n])
        after = int(problem.tail_starts[n + 1]) if n + 1 < problem.n_nodes else problem.n_edges
        heads = problem.head[first:after]
        fill = _add(bounds, label, tables.hop_linear[j, first:after])
        interval = np.maximum(label.interval, tables.hop_occupancy[j, first:after])
        values = _values(bounds, 1, j, heads, fill, interval)
        for k in np.flatnonzero((values < best) & (interval <= bounds.limit)).tolist():
            e, value, theta, taken = first + k, float(values[k]), float(interval[k]), label.used
            link = int(problem.link[e])
            if used >> link & 1:
                if self.links == "once":
                    if taken >> link & 1:
                        continue
                    taken |= 1 << link
                else:
                    added = {r: taken.get(r, 0.0) + load for r, load in self._loads(j, e).items()}
                    taken = {**taken, **added}
                    if (loaded := max(added.values())) > theta:
                        theta = loaded
                        value = float(_values(bounds, 1, j, heads[k], fill[k], theta))
                        if value >= best or theta > bounds.limit:
                            continue
            yield value, Label(float(fill[k]), theta, j, int(heads[k]), 1, label.hosts, taken, label, e)


def _add(bounds: Bounds, label: Label, costs: np.ndarray) -> np.ndarray:
    return label.fill + (costs if bounds.fill_weight else np.where(np.isfinite(costs), 0.0, np.inf))


def _values(bounds: Bounds, kind: int, cut, node, fill, interval):
    remaining = bounds.fill[kind][:, cut, node]  # (K, children)
    worst = np.maximum(interval, bounds.interval[kind][:, cut, node])
    return fill + (remaining + bounds.interval_weight * worst if bounds.interval_weight else remaining).min(axis=0)


def _dominates(a: Label, b: Label) -> bool:
    if a.fill > b.fill or a.interval > b.interval or a.hosts & ~b.hosts:
        return False
    if isinstance(a.used, dict):
        return all(load <= b.used.get(r, 0.0) for r, load in a.used.items())
    return not a.used & ~b.used


def _trace(problem: PipelineProblem, label: Label) -> Path:
    stages, hops = [], []
    while label.parent is not None:
        if label.edge < 0:
            stages.append((label.node, label.parent.cut, label.cut))
        else:
            hops.append((label.cut, label.edge))
        label = label.parent
    return stages[::-1], hops[::-1]
