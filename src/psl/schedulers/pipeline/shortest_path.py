"""Shortest paths through the state graph: one vectorised dynamic programme over the cuts, from the output back.

Vertices are (j, n, arrived) and (j, n, computed): the activation of cut j lies on node n, brought by a hop or computed
there. A stage leads from (i, n, arrived) to (j, n, computed), a hop from (j, n, either) to (j, m, arrived). A path may
come back to a node or a link.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psl.schedulers.pipeline.path import Path
from psl.schedulers.pipeline.problem import PipelineProblem, Tables


@dataclass(frozen=True)
class Completions:
    """The least cost from every vertex to the end of the model, and the costs of edges it was computed with."""

    arrived: np.ndarray  # (L+1, V); of row 0 only the source's entry means anything
    computed: np.ndarray  # (L+1, V)
    stage: np.ndarray  # (L+1, L+1, V)
    hop: np.ndarray  # (L+1, E)


def completions(problem: PipelineProblem, stage: np.ndarray, hop: np.ndarray, extend: np.ufunc = np.add) -> Completions:
    """Return the least cost from every vertex to the end.

    Args:
        problem: says which edges leave which node.
        stage: (L+1, L+1, V) cost of a stage; inf where there is none.
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
            here, computed[j] = _over_hops(problem, hop[j], here, extend)
        arrived[j] = here
    return Completions(arrived, computed, stage, hop)


def completions_by_hosts(
    problem: PipelineProblem, stage: np.ndarray, hop: np.ndarray, hosts: Sequence[int], extend: np.ufunc = np.add
) -> np.ndarray:
    """Return (2, L+1, V, 2^t) least costs to the end, computed and arrived, for each set of hosts that have a stage.

    Args:
        problem, stage, hop, extend: as for `completions`.
        hosts: t nodes; in set s the k-th of them has a stage if bit k of s is 1. Each of them hosts one stage at most,
            before and after the vertex together; the other nodes any number.
    """
    last, nodes, sets = problem.n_units, np.arange(problem.n_nodes)[:, None], np.arange(1 << len(hosts))
    bit = np.zeros((problem.n_nodes, 1), dtype=int)
    bit[list(hosts), 0] = 1 << np.arange(len(hosts))
    with_node = sets | bit  # (V, 2^t)
    free = (sets & bit) == 0
    costs = np.full((2, last + 1, problem.n_nodes, len(sets)), np.inf)
    costs[0, last] = 0.0
    after = np.full(costs.shape[1:], np.inf)  # what follows a stage, if the node may host it
    after[last] = np.where(free, 0.0, np.inf)
    for j in range(last - 1, -1, -1):
        here = extend(stage[j, j + 1 :, :, None], after[j + 1 :]).min(axis=0)
        if j and problem.n_edges:
            here, computed = _over_hops(problem, hop[j, :, None], here, extend)
            costs[0, j] = computed
            after[j] = np.where(free, computed[nodes, with_node], np.inf)
        costs[1, j] = here
    return costs


def _over_hops(
    problem: PipelineProblem, hop: np.ndarray, arrived: np.ndarray, extend: np.ufunc
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least costs from (j, n, arrived) and (j, n, computed) when any number of hops may come first.

    Bellman-Ford over all edges at once, until nothing changes.

    Args:
        problem: says which edges leave which node.
        hop: (E, ...) cost of a hop at cut j.
        arrived: (V, ...) least cost from (j, n, arrived) without a hop.
        extend: as for `completions`.
    """
    while True:
        computed = np.minimum.reduceat(extend(hop, arrived[problem.head]), problem.tail_starts)
        nearer = np.minimum(arrived, computed)
        if (nearer == arrived).all():
            return arrived, computed
        arrived = nearer


def least_sum(problem: PipelineProblem, tables: Tables, limit: float = np.inf) -> Completions:
    """Return the least linear cost to the end, over stages and hops whose occupancy is at most `limit`."""
    if limit == np.inf:
        return completions(problem, tables.stage_linear, tables.hop_linear)
    stage = np.where(tables.stage <= limit, tables.stage_linear, np.inf)
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
            return Path(tuple(stages), tuple(hops))
        edges = _relays(problem, found, j, n)
        hops += [(j, e) for e in edges]
        i, n = j, int(problem.head[edges[-1]])


def _relays(problem: PipelineProblem, found: Completions, j: int, n: int) -> list[int]:
    """Return the edges of a shortest path from (j, n, computed) to a node where the next stage begins.

    Depth-first over the edges that meet the known least cost: free hops could otherwise lead in a circle.
    """
    # n itself is not among the nodes seen: the path may come back to it, as (j, n, arrived) is another vertex.
    seen, edges = set(), []
    starts = [*problem.tail_starts.tolist(), problem.n_edges]

    def descend(node: int) -> bool:
        for e in range(starts[node], starts[node + 1]):
            m = int(problem.head[e])
            if found.hop[j, e] + found.arrived[j, m] > found.computed[j, node] or m in seen:
                continue
            edges.append(e)
            seen.add(m)
            if (found.stage[j, j + 1 :, m] + found.computed[j + 1 :, m]).min() <= found.arrived[j, m] or descend(m):
                return True
            edges.pop()
        return False

    descend(n)
    return edges
