"""The published search for pipeline placements with its pruning, reconstructed [R].

What is known of it (arXiv 2505.04368, second-hand): edges are sorted by cost, each threshold gives a subgraph and one
Dijkstra with a heap, and the search is pruned by a lower bound from a reformulation-linearisation. Which products are
linearised is not said. Here: min Σ c_e x_e + (M − 1) θ over paths x, θ ≥ o_e x_e. Every unit of the model is computed
by exactly one stage, so Σ_{e computes unit k} x_e = 1. Multiplied by θ, with w_e = θ x_e linearised, that is
θ = Σ_e w_e, and θ ≥ o_e times x_e gives w_e ≥ o_e x_e. From a threshold a on, w_e ≥ a x_e as well. With weights
μ_k ≥ 0 of the units, Σ μ_k = 1, adding up gives for every path

    S + (M − 1) θ ≥ Σ_e [c_e + (M − 1) Σ_{k computed by e} μ_k max(a, o_e)] x_e,

so that a shortest path is a lower bound for all thresholds from a on, for any μ; μ is improved by multiplicative steps.
Thresholds rise from the least with a path; the search ends where the bound reaches the best plan so far. The bound
never falls with a, so a value at an earlier threshold holds as well.
"""

import heapq

import numpy as np

from psl.schedulers.pipeline.problem import PipelineProblem, Tables
from psl.schedulers.pipeline.shortest_path import completions, least_bottleneck, least_sum, shortest_path

STEPS = 12  # shortest paths that improve the weights
EVERY = 32  # thresholds between two bounds


class LowerBound:
    """The bound above, for one problem at one micro-batch size."""

    def __init__(self, problem: PipelineProblem, tables: Tables) -> None:
        self.problem, self.tables, self.more = problem, tables, tables.n_micro_batches - 1
        self.weights = np.full(problem.n_units, 1 / problem.n_units)

    def at(self, threshold: float) -> float:
        """Return a lower bound of S + (M − 1) θ over all θ ≥ threshold."""
        return self._path(threshold)[0]

    def improve(self, threshold: float) -> float:
        """Return the best bound of some steps, and keep its weights."""
        best, kept = -np.inf, self.weights
        for step in range(STEPS):
            value, covering = self._path(threshold)
            if value > best:
                best, kept = value, self.weights
            pull = covering / covering.max()  # the gradient: occupancy of the stage that computes each unit
            self.weights = self.weights * np.exp(3.0 / (1 + step) * pull)
            self.weights = self.weights / self.weights.sum()
        self.weights = kept
        return best

    def _path(self, threshold: float) -> tuple[float, np.ndarray]:
        problem, tables = self.problem, self.tables
        summed = np.concatenate([[0.0], np.cumsum(self.weights)])
        share = (summed - summed[:, None])[:, :, None]  # (L+1, L+1, 1) of units i+1..j
        with np.errstate(invalid="ignore"):
            stage = tables.stage_linear + self.more * share * np.maximum(threshold, tables.stage)
        found = completions(problem, np.where(np.isfinite(tables.stage), stage, np.inf), tables.hop_linear)
        covering = np.empty(problem.n_units)
        for n, i, j in shortest_path(problem, found).stages:
            covering[i:j] = max(threshold, tables.stage[i, j, n])
        return float(found.arrived[0, problem.source]), covering


def adjacency(problem: PipelineProblem, tables: Tables) -> list[list[tuple[float, float, int]]]:
    """Return (occupancy, cost, head) of the edges out of each vertex by rising occupancy; 0 is the start, 1 the end."""
    out: list[list] = []
    number: dict[tuple[int, int, int], int] = {}

    def at(j: int, n: int, arrived: int) -> int:
        key = (j, n, arrived)
        if key not in number:
            number[key] = len(out)
            out.append([])
        return number[key]

    at(0, problem.source, 1)
    end = at(problem.n_units, 0, 0)
    for i, j, n in np.argwhere(np.isfinite(tables.stage)).tolist():
        if i == 0 and n != problem.source:
            continue
        busy, cost = float(tables.stage[i, j, n]), float(tables.stage_linear[i, j, n])
        out[at(i, n, 1)].append((busy, cost, end if j == problem.n_units else at(j, n, 0)))
    for j in range(1, problem.n_units):
        for e in range(problem.n_edges):
            busy, cost = float(tables.hop_occupancy[j, e]), float(tables.hop_linear[j, e])
            to = at(j, int(problem.head[e]), 1)
            for arrived in (0, 1):
                out[at(j, int(problem.tail[e]), arrived)].append((busy, cost, to))
    return [sorted(edges) for edges in out]


def dijkstra(out: list[list[tuple[float, float, int]]], threshold: float) -> float:
    """Return the least cost from vertex 0 to 1 over edges of occupancy up to a threshold; inf if there is no path."""
    distance, heap, done = {0: 0.0}, [(0.0, 0)], set()
    while heap:
        near, u = heapq.heappop(heap)
        if u == 1:
            return near
        if u in done:
            continue
        done.add(u)
        for busy, cost, v in out[u]:
            if busy > threshold:
                break
            if v not in done and near + cost < distance.get(v, np.inf):
                distance[v] = near + cost
                heapq.heappush(heap, (near + cost, v))
    return np.inf


def search(problem: PipelineProblem, tables: Tables, shortest) -> tuple[float, int, int]:
    """Return (least T, shortest paths run, thresholds there are).

    Args:
        problem, tables: the problem at one micro-batch size.
        shortest: returns the least S over edges up to a threshold.
    """
    more = tables.n_micro_batches - 1
    least = float(least_bottleneck(problem, tables).arrived[0, problem.source])
    stages = tables.stage[np.isfinite(tables.stage)]
    thresholds = np.unique(np.concatenate([stages, tables.hop_occupancy[1:-1].ravel()]))
    rising = thresholds[thresholds >= least]
    bound = LowerBound(problem, tables)
    floor, runs = bound.improve(least), STEPS + 2
    unlimited = shortest(np.inf)
    best = np.inf
    for k, threshold in enumerate(rising.tolist()):
        if k % EVERY == 0:
            floor, runs = max(floor, bound.at(threshold)), runs + 1
        if max(floor, unlimited + more * threshold) >= best * (1 - 1e-12):
            break
        best, runs = min(best, shortest(threshold) + more * threshold), runs + 1
    return best, runs, len(thresholds)


def with_heap(problem: PipelineProblem, micro_batch: int) -> tuple[float, int, int]:
    """Search with Dijkstra on a heap, as published; the graph is built once."""
    tables = problem.tables(micro_batch)
    out = adjacency(problem, tables)
    return search(problem, tables, lambda threshold: dijkstra(out, threshold))


def with_arrays(problem: PipelineProblem, micro_batch: int) -> tuple[float, int, int]:
    """Search with the shortest paths of `psl`, so that only the searches differ."""
    tables = problem.tables(micro_batch)

    def shortest(threshold: float) -> float:
        return float(least_sum(problem, tables, threshold).arrived[0, problem.source])

    return search(problem, tables, shortest)
