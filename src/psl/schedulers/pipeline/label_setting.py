"""Shortest paths that book every node, and every link, at most once: labels set best first, and only as many
bookings remembered as turn out to matter.

A label is a way from the source to a vertex of the state graph with its fill time S, its interval θ, and the hosts
and links it has used. It is dominated by one at the same vertex that is no worse in any of these. What remains to the
end is bounded by shortest paths at a dozen limits of the occupancy, which know which hosts are taken, so that labels
are taken in the order of a lower bound (A*).

Only critical hosts and links are remembered: at first those that the plain shortest path books twice. If the best way
books others twice, these become critical too, and the search starts again; each best value is a lower bound.
"""

import heapq
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

from psl.schedulers.pipeline.problem import PipelineProblem, Tables, link_loads
from psl.schedulers.pipeline.shortest_path import Path, completions_by_hosts

MAX_LABELS = 200_000  # per placement problem, before the search gives up proving

_LIMITS = (12, 24, 48)  # classes of the interval: more make better bounds and cost more
_PATIENCE = 4000  # labels after which finer classes are worth their cost
_TABLE = 1e7  # entries that a table of completions may take to compute
_SLACK = 1 + 1e-12  # sums in another order


@dataclass(frozen=True)
class Goal:
    """What is minimised: S where `fill` is 1, plus a weight times θ, with no occupancy above the limit."""

    fill: int
    weight: float
    limit: float = np.inf


@dataclass(frozen=True)
class Critical:
    """The hosts and links that labels remember: bit k of a label's mask stands for the k-th critical host."""

    hosts: tuple[int, ...]
    links: frozenset[int]


@dataclass(frozen=True)
class Bounds:
    """For every vertex and set of booked hosts, what remains at least, per class of the completion's interval."""

    fill: np.ndarray  # (2, K, L+1, N, sets) S (0 if it does not matter) with interval at most limit k; kinds as below
    interval: np.ndarray  # (2, K, L+1, N, sets) θ of completions in class k, at least; 0 computed, 1 arrived
    sets: int  # as many first bits of a label's mask as the tables know, as a mask


@dataclass(slots=True)
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


@dataclass(frozen=True)
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

    def __post_init__(self):
        # The source hosts the first stage, so no other.
        self.stage = self.tables.stage.copy()
        self.stage[1:, :, self.problem.source] = np.inf

    def run(self, objective: str, cutoff: float, relaxed: Path, bound: float) -> tuple[Path | None, float, bool]:
        """Return (best path or None, lower bound, whether that is proven).

        Args:
            objective: "time" or "interval".
            cutoff: only paths below it are wanted; without one, None means that none exists.
            relaxed: the plain shortest path, and
            bound: its value.
        """
        if objective == "time":
            return self._settle(Goal(1, float(self.tables.n_micro_batches - 1)), cutoff, relaxed, bound)
        goal = Goal(0, 1.0)
        path, below, exact = self._settle(goal, cutoff, relaxed, bound)
        if path is None or not exact:
            return path, below, exact
        ties = Goal(1, 0.0, self.value(path, goal) * _SLACK)
        known = self.value(path, ties)
        shorter, _, _ = self._settle(ties, known, path, 0.0)
        return (path if shorter is None or self.value(shorter, ties) > known else shorter), below, True

    def _bounds(self, goal: Goal, hosts: tuple[int, ...], bound: float, classes: int) -> Bounds:
        problem, tables = self.problem, self.tables
        hosts = list(hosts[: max(int(np.log2(_TABLE / self.stage.size)), 0)])

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
            fill = [least_sum(np.inf)]
            low = float(least[1, 0, problem.source, 0])
            # Intervals above `high` cost a quarter more than the bound: seldom needed to tell ways apart.
            high = (1.25 * bound - float(fill[0][1, 0, problem.source, 0])) / goal.weight
            floors = [0.0]
            if np.isfinite(low):
                limits = np.linspace(low, max(high, low), classes - 1).tolist()
                fill, floors = [*(least_sum(limit * _SLACK) for limit in limits), *fill], [0.0, *limits]
        floors = np.array(floors)[:, None, None, None]
        return Bounds(np.stack(fill, axis=1), np.maximum(least[:, None], floors), (1 << len(hosts)) - 1)

    def _settle(self, goal: Goal, cutoff: float, relaxed: Path, bound: float) -> tuple[Path | None, float, bool]:
        best, incumbent, fine, known = cutoff, None, 0, None
        critical = self._add(Critical((), frozenset()), relaxed)
        while True:
            if known != (known := (critical.hosts, fine)):
                bounds = self._bounds(goal, critical.hosts, bound, _LIMITS[fine])
            finest = fine == len(_LIMITS) - 1 or not goal.fill or not goal.weight
            budget = self.max_labels if finest else min(self.max_labels, self.made + _PATIENCE * 2**fine)
            found = self._best_first(goal, bounds, best, critical, budget)
            bound = max(bound, found.bound)
            if found.capped:
                if budget == self.max_labels:
                    break
                fine += 1
                continue
            if found.path is None:
                return incumbent, best, True
            if self._allowed(found.path):
                value = self.value(found.path, goal)
                if value <= found.bound * _SLACK:
                    return found.path, value, True
                if value < best:
                    best, incumbent = value, found.path
            critical = self._add(critical, found.path)
        if incumbent is None:
            others = [n for n in range(self.problem.n_nodes) if n not in critical.hosts]
            everything = Critical((*critical.hosts, *others), frozenset(self.problem.link.tolist()))
            for width in (1, 4, 16, 64):
                again = self._best_first(goal, bounds, np.inf, everything, np.inf, width)
                if again.path is not None:
                    return again.path, bound, self.value(again.path, goal) <= bound * _SLACK
        return incumbent, bound, False

    def value(self, path: Path, goal: Goal) -> float:
        """Return what is minimised, loads of shared links added up, for a path that books no node twice.

        It is infinite above the limit.
        """
        stages, hops = path
        tables = self.tables
        spans, ways = [tables.stage[i, j, n] for n, i, j in stages], [tables.hop_linear[h] for h in hops]
        busy = [tables.hop_occupancy[h] for h in hops]
        if self.links == "shared":
            loads: Counter = Counter()
            for cut, e in hops:
                loads.update(self._loads(cut, e))
            busy = list(loads.values())
        interval = float(max(spans + busy))
        if interval > goal.limit * _SLACK:
            return np.inf
        return goal.fill * float(sum(spans) + sum(ways)) + goal.weight * interval

    def _twice(self, path: Path) -> tuple[list[int], list[int]]:
        hosts = Counter(n for n, _, _ in path[0])
        links = Counter(int(self.problem.link[e]) for _, e in path[1]) if self.links != "separate" else {}
        return [n for n, count in hosts.items() if count > 1], [k for k, count in links.items() if count > 1]

    def _allowed(self, path: Path) -> bool:
        hosts, links = self._twice(path)
        return not hosts and not (links and self.links == "once")

    def _add(self, critical: Critical, path: Path) -> Critical:
        hosts, links = self._twice(path)
        new = [n for n in hosts if n not in critical.hosts and n != self.problem.source]
        return Critical((*critical.hosts, *new), critical.links | set(links))

    def _loads(self, cut: int, e: int) -> dict[int, float]:
        problem, b = self.problem, self.tables.micro_batch
        up, down = float(b * problem.forward[cut, e]), float(b * problem.backward[cut, e])
        return link_loads(problem.full_duplex, int(e), int(problem.reverse[e]), up, down)

    def _best_first(
        self, goal: Goal, bounds: Bounds, best: float, critical: Critical, budget: float, width: int | None = None
    ) -> Outcome:
        """Return the best way to the end that books no critical host or link twice, if it is below `best`.

        With a `width`, only so many labels are followed per vertex: fast, and not exact.
        """
        problem = self.problem
        bits = {n: 1 << k for k, n in enumerate(critical.hosts)}
        start = Label(0.0, 0.0, 0, problem.source, 1, 0, {} if self.links == "shared" else 0)
        heap: list = [(0.0, 0, 0, start)]
        settled: dict = defaultdict(list)
        while heap:
            low, _, _, label = heapq.heappop(heap)
            if low >= best:
                break
            if label.cut == problem.n_units:
                return Outcome(_trace(label), low, False)
            vertex = settled[label.cut, label.node, label.arrived]
            if len(vertex) == width or any(_dominates(other, label) for other in vertex):
                continue
            vertex.append(label)
            if self.made >= budget:
                return Outcome(None, low, True)
            for value, child in self._children(label, goal, bounds, best, bits, critical.links):
                self.made += 1
                heapq.heappush(heap, (value, -child.cut, self.made, child))
        return Outcome(None, best, False)

    def _children(self, label: Label, goal: Goal, bounds: Bounds, best: float, bits: dict, links: frozenset):
        problem, tables, j, n = self.problem, self.tables, label.cut, label.node
        bit = bits.get(n, 0)
        if label.arrived and not label.hosts & bit:
            to, booked = slice(j + 1, None), label.hosts | bit
            span = self.stage[j, to, n]
            fill, interval = _plus(goal, label, span), np.maximum(label.interval, span)
            values = _values(goal, bounds, 0, to, n, booked, fill, interval)
            for k in np.flatnonzero((values < best) & (interval <= goal.limit)).tolist():
                child = Label(float(fill[k]), float(interval[k]), j + 1 + k, n, 0, booked, label.used, label)
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
            e, value, theta, taken = first + k, float(values[k]), float(interval[k]), label.used
            link = int(problem.link[e])
            if link in links and self.links == "once":
                if taken >> link & 1:
                    continue
                taken |= 1 << link
            elif link in links and self.links == "shared":
                added = {r: taken.get(r, 0.0) + load for r, load in self._loads(j, e).items()}
                taken = {**taken, **added}
                if (loaded := max(added.values())) > theta:
                    theta = loaded
                    value = float(_values(goal, bounds, 1, j, heads[k], label.hosts, fill[k], theta))
                    if value >= best or theta > goal.limit:
                        continue
            yield value, Label(float(fill[k]), theta, j, int(heads[k]), 1, label.hosts, taken, label, e)


def _plus(goal: Goal, label: Label, costs: np.ndarray) -> np.ndarray:
    return label.fill + (costs if goal.fill else np.where(np.isfinite(costs), 0.0, np.inf))


def _values(goal: Goal, bounds: Bounds, kind: int, cut, node, hosts: int, fill, interval):
    known = hosts & bounds.sets
    remaining = bounds.fill[kind][:, cut, node, known]  # (K, children)
    if not goal.weight:
        return fill + remaining.min(axis=0)
    worst = np.maximum(interval, bounds.interval[kind][:, cut, node, known])
    return fill + (remaining + goal.weight * worst).min(axis=0)


def _dominates(a: Label, b: Label) -> bool:
    if a.fill > b.fill or a.interval > b.interval or a.hosts & ~b.hosts:
        return False
    if isinstance(a.used, dict):
        return all(load <= b.used.get(r, 0.0) for r, load in a.used.items())
    return not a.used & ~b.used


def _trace(label: Label) -> Path:
    stages, hops = [], []
    while label.parent is not None:
        if label.edge < 0:
            stages.append((label.node, label.parent.cut, label.cut))
        else:
            hops.append((label.cut, label.edge))
        label = label.parent
    return stages[::-1], hops[::-1]
