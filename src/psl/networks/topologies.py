"""Random topologies of edge networks: which nodes are linked, as a line, a tree, a mesh or a geometric graph.

Node 0 is the source. Every topology takes the number of nodes, a random generator and the wanted mean number of links
per node, which only "mesh" and "geometric" use; it returns the undirected links and the (n, 2) positions for drawings.
"""

from collections.abc import Callable
from itertools import pairwise

import networkx as nx
import numpy as np

Links = list[tuple[int, int]]
Topology = Callable[[int, np.random.Generator, float], tuple[Links, np.ndarray]]


def line(n_nodes: int, rng: np.random.Generator, degree: float) -> tuple[Links, np.ndarray]:
    """Return the links of a chain 0, 1, 2, ... and (n, 2) positions; draws nothing."""
    positions = np.column_stack([np.linspace(0.0, 1.0, n_nodes), np.full(n_nodes, 0.5)])
    return list(pairwise(range(n_nodes))), positions


def tree(n_nodes: int, rng: np.random.Generator, degree: float) -> tuple[Links, np.ndarray]:
    """Return the links of a random recursive tree, each node joined to an earlier one, drawn by its depth."""
    links = [(int(rng.integers(n)), n) for n in range(1, n_nodes)]
    return links, _layered(n_nodes, links)


def mesh(n_nodes: int, rng: np.random.Generator, degree: float) -> tuple[Links, np.ndarray]:
    """Return a random tree with random further links until a node has `degree` links on average."""
    links = [(int(rng.integers(n)), n) for n in range(1, n_nodes)]
    others = sorted({(u, v) for v in range(n_nodes) for u in range(v)} - set(links))
    wanted = min(max(round(degree * n_nodes / 2) - len(links), 0), len(others))
    links += [others[k] for k in sorted(rng.choice(len(others), wanted, replace=False))] if wanted else []
    angle = 2 * np.pi * np.arange(n_nodes) / n_nodes + np.pi
    return links, np.column_stack([0.5 + 0.5 * np.cos(angle), 0.5 + 0.5 * np.sin(angle)])


def geometric(n_nodes: int, rng: np.random.Generator, degree: float) -> tuple[Links, np.ndarray]:
    """Return links of nodes placed uniformly in a square: the minimum spanning tree, then the shortest others."""
    positions = rng.random((n_nodes, 2))
    distance = np.hypot(*(positions[:, None] - positions).transpose(2, 0, 1))
    full = nx.Graph()
    full.add_nodes_from(range(n_nodes))
    full.add_weighted_edges_from((u, v, distance[u, v]) for v in range(n_nodes) for u in range(v))
    links = [(min(edge), max(edge)) for edge in nx.minimum_spanning_edges(full, data=False)]
    near = sorted({(u, v) for u, v in full.edges} - set(links), key=lambda link: distance[link])
    return links + near[: max(round(degree * n_nodes / 2) - len(links), 0)], positions


TOPOLOGIES: dict[str, Topology] = {"mesh": mesh, "line": line, "tree": tree, "geometric": geometric}


def _layered(n_nodes: int, links: Links) -> np.ndarray:
    """Return (n, 2) positions of a tree: x grows with the distance from node 0, nodes of a layer share the height."""
    graph = nx.Graph(links)
    graph.add_node(0)
    positions = np.zeros((n_nodes, 2))
    layers = list(nx.bfs_layers(graph, [0]))
    for depth, layer in enumerate(layers):
        for place, node in enumerate(sorted(layer)):
            positions[node] = depth / max(len(layers) - 1, 1), (place + 0.5) / len(layer)
    return positions
