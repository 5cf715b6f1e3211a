"""Shortest paths through the state graph: one vectorised dynamic programme over the cuts, from the output back.

Vertices are (j, n, arrived) and (j, n, computed): the activation of cut j lies on node n, brought by a hop or computed
there. A stage leads from (i, n, arrived) to (j, n, computed), a hop from (j, n, either) to (j, m, arrived).
"""

from dataclasses import dataclass

import numpy as np

from psl.schedulers.pipeline.problem import PipelineProblem, Tables

Path = tuple[list[tuple[int, int, int]], list[tuple[int, int]]]  # stages (n, i, j) and hops (cut, edge), by places


@dataclass(frozen=True)
class Completions:
    """What it takes, at least, from every vertex to the end of the model, and the edges it was computed with."""

    arrived: np.ndarray  # (L+1, N); of row 0 only the source's entry means anything
    computed: np.ndarray  # (L+1, N)
    stage: np.ndarray  # (L+1, L+1, N)
    hop: np.ndarray  # (L+1, E)


def completions(problem: PipelineProblem, stage: np.ndarray, hop: np.ndarray, extend=np.add) -> Completions:
    """Return the least cost from every vertex to the end.

    Args:
        problem: says which edges leave which node.
        stage: (L+1, L+1, N) cost of a stage; inf where there is none.
        hop: (L+1, E) cost of a hop; inf where it is not allowed.
        extend: `numpy.add` for the least sum, `numpy.maximum` for the least bottleneck.
    """
    last = problem.n_units
    arrived = np.full((last + 1, problem.n_nodes), np.inf)
    computed = np.full((last + 1, problem.n_nodes), np.inf)
    computed[last] = 0.0
    for j in range(last - 1, -1, -1):
        here = extend(stage[j, j + 1 :], computed[j + 1 :]).min(axis=0)
        if j and problem.n_edges:
            # Relays within the layer: Bellman-Ford over all edges at once, until nothing changes.
            while True:
                onward = np.minimum.reduceat(extend(hop[j], here[problem.head]), problem.tail_starts)
                nearer = np.minimum(here, onward)
                if np.array_equal(nearer, here):
                    break
                here = nearer
            computed[j] = onward
        arrived[j] = here
    return Completions(arrived, computed, stage, hop)


def completions_by_hosts(problem: PipelineProblem, stage, hop, hosts: list[int], extend=np.add) -> np.ndarray:
    """Return (2, L+1, N, 2^t) least costs to the end, computed and arrived, for each set of hosts already booked.

    Args:
        problem, stage, hop, extend: as for `completions`.
        hosts: t nodes; set s holds the k-th of them if bit k of s is 1. These host at most one stage, in all; other
            nodes as many as they like.
    """
    last, nodes, sets = problem.n_units, np.arange(problem.n_nodes)[:, None], np.arange(1 << len(hosts))
    bit = np.zeros((problem.n_nodes, 1), dtype=int)
    bit[hosts, 0] = 1 << np.arange(len(hosts))
    booked = sets | bit  # (N, 2^t)
    free = (sets & bit) == 0
    costs = np.full((2, last + 1, problem.n_nodes, len(sets)), np.inf)
    costs[0, last] = 0.0
    after = np.full(costs.shape[1:], np.inf)  # what follows a stage, if the node may host it
    after[last] = np.where(free, 0.0, np.inf)
    for j in range(last - 1, -1, -1):
        here = extend(stage[j, j + 1 :, :, None], after[j + 1 :]).min(axis=0)
        if j and problem.n_edges:
            while True:
                onward = np.minimum.reduceat(extend(hop[j, :, None], here[problem.head]), problem.tail_starts)
                nearer = np.minimum(here, onward)
                if np.array_equal(nearer, here):
                    break
                here = nearer
            costs[0, j] = onward
            after[j] = np.where(free, onward[nodes, booked], np.inf)
        costs[1, j] = here
    return costs


def least_sum(problem: PipelineProblem, tables: Tables, limit: float = np.inf) -> Completions:
    """Return the least linear cost to the end, over stages and hops whose occupancy is at most `limit`."""
    if limit == np.inf:
        return completions(problem, tables.stage, tables.hop_linear)
    stage = np.where(tables.stage <= limit, tables.stage, np.inf)
    return completions(problem, stage, np.where(tables.hop_occupancy <= limit, tables.hop_linear, np.inf))


def least_bottleneck(problem: PipelineProblem, tables: Tables) -> Completions:
    """Return the least largest occupancy to the end."""
    return completions(problem, tables.stage, tables.hop_occupancy, np.maximum)


def shortest_path(problem: PipelineProblem, found: Completions) -> Path | None:
    """Return a path of least sum from the source through the whole model, or None if there is none."""
    if not np.isfinite(found.arrived[0, problem.source]):
        return None
    stages, hops, i, n = [], [], 0, problem.source
    while True:
        onward = found.stage[i, i + 1 :, n] + found.computed[i + 1 :, n]
        j = i + 1 + int(np.argmin(onward))
        stages.append((n, i, j))
        if j == problem.n_units:
            return stages, hops
        way = _relays(problem, found, j, n)
        hops += [(j, e) for e in way]
        i, n = j, int(problem.head[way[-1]])


def _relays(problem: PipelineProblem, found: Completions, j: int, n: int) -> list[int]:
    """Return the edges of a shortest way from (j, n, computed) to a node where the next stage begins.

    Depth-first over the edges that meet the known least cost: free hops could otherwise lead in a circle.
    """
    seen, way = set(), []  # n itself may be come back to: as arrived it is another vertex
    starts = [*problem.tail_starts.tolist(), problem.n_edges]

    def descend(node: int) -> bool:
        for e in range(starts[node], starts[node + 1]):
            m = int(problem.head[e])
            if found.hop[j, e] + found.arrived[j, m] > found.computed[j, node] or m in seen:
                continue
            way.append(e)
            seen.add(m)
            if (found.stage[j, j + 1 :, m] + found.computed[j + 1 :, m]).min() <= found.arrived[j, m] or descend(m):
                return True
            way.pop()
        return False

    descend(n)
    return way
