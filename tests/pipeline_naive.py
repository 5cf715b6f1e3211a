"""A search for pipeline placements on a graph built once: one Dijkstra per distinct threshold, and no pruning.

The same state graph as `psl.schedulers.pipeline.shortest_path`, edge by edge from the equations; a path may come
back to a node or a link.
"""

import heapq
import itertools

import networkx as nx

from pipeline_oracles import hop_cost, stage_cost, together


def state_edges(profile, network, batch_size, b):
    """Yield (tail, head, linear cost, occupancy); vertices are (cut, node, arrived?), the end is "end"."""
    n_units = len(profile.names) - 1
    for n in network.graph:
        for i in range(n_units) if n == network.source else range(1, n_units):
            for j in range(i + 1, n_units + 1):
                if (cost := stage_cost(profile, network.graph.nodes[n], i, j, batch_size, b)) is not None:
                    yield (i, n, True), ("end" if j == n_units else (j, n, False)), cost, cost
    for cut in range(1, n_units):
        for u, v in network.graph.edges:
            linear, forward, backward = hop_cost(profile, network.graph, cut, u, v, b)
            for arrived in (True, False):
                yield (cut, u, arrived), (cut, v, True), linear, together((forward, backward), network.duplex)


def state_graph(profile, network, batch_size, b) -> nx.DiGraph:
    """Return the state graph with edge attributes weight and occupancy; vertices are numbers: 0 start, 1 end."""
    numbers = {(0, network.source, True): 0, "end": 1}
    graph = nx.DiGraph()
    graph.add_nodes_from(numbers.values())
    for tail, head, linear, occupancy in state_edges(profile, network, batch_size, b):
        u, v = (numbers.setdefault(vertex, len(numbers)) for vertex in (tail, head))
        graph.add_edge(u, v, weight=linear, occupancy=occupancy)
    return graph


def thresholds_of(graph) -> list[float]:
    """Return the distinct occupancies, falling."""
    return sorted({occupancy for *_, occupancy in graph.edges(data="occupancy")}, reverse=True)


def networkx_search(graph, thresholds, more):
    """Return the least S + more × threshold, by one `networkx` Dijkstra per threshold; they fall, edges go with them.

    Args:
        graph: the state graph; edges above the last threshold are gone afterwards.
        thresholds: falling.
        more: M − 1.
    """
    edges = sorted(graph.edges(data="occupancy"), key=lambda edge: edge[2])
    best = float("inf")
    for threshold in thresholds:
        while edges and edges[-1][2] > threshold:
            graph.remove_edge(*edges.pop()[:2])
        try:
            best = min(best, nx.dijkstra_path_length(graph, 0, 1) + more * threshold)
        except nx.NetworkXNoPath:
            break
    return best


def adjacency(graph) -> list[list[tuple[float, float, int]]]:
    """Return (occupancy, cost, head) of the edges out of each vertex, by rising occupancy."""
    out = [[] for _ in graph]
    for u, v, values in graph.edges(data=True):
        out[u].append((values["occupancy"], values["weight"], v))
    return [sorted(edges) for edges in out]


def heap_search(out, thresholds, more):
    """Return the same by a Dijkstra of our own on lists: a heap, and edges above the threshold not looked at."""
    best = float("inf")
    for threshold in thresholds:
        distance, heap, done = {0: 0.0}, [(0.0, 0)], set()
        while heap:
            near, u = heapq.heappop(heap)
            if u == 1:
                best = min(best, near + more * threshold)
                break
            if u in done:
                continue
            done.add(u)
            for occupancy, cost, v in out[u]:
                if occupancy > threshold:
                    break
                if v not in done and near + cost < distance.get(v, float("inf")):
                    distance[v] = near + cost
                    heapq.heappush(heap, (near + cost, v))
        else:
            break
    return best


def efficient_pairs(graph) -> list[tuple[float, float]]:
    """Return all efficient (fill time, interval) pairs, by one Dijkstra per threshold; fill times rise."""
    edges = sorted(graph.edges(data="occupancy"), key=lambda edge: edge[2])
    pairs = []
    for threshold in thresholds_of(graph):
        while edges and edges[-1][2] > threshold:
            graph.remove_edge(*edges.pop()[:2])
        try:
            pairs.append((nx.dijkstra_path_length(graph, 0, 1), threshold))
        except nx.NetworkXNoPath:
            break
    # With the same fill time, the smallest threshold is the interval.
    return [
        (s, t)
        for (s, t), after in itertools.zip_longest(pairs, pairs[1:])
        if after is None or after[0] > s * (1 + 1e-12)
    ]
