"""Who is linked to whom: random lines, trees, meshes and geometric graphs of servers behind a source."""

from collections.abc import Callable
from itertools import pairwise

import networkx as nx
import numpy as np

from psl.errors import check_array, check_choice, check_count, check_number, expected

Links = list[tuple[int, int]]


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
    """Return nodes uniform in a square: the shortest links that connect all, then the next until `degree` is met."""
    positions = rng.random((n_nodes, 2))
    distance = np.hypot(*(positions[:, None] - positions).transpose(2, 0, 1))
    full = nx.Graph()
    full.add_nodes_from(range(n_nodes))
    full.add_weighted_edges_from((u, v, distance[u, v]) for v in range(n_nodes) for u in range(v))
    links = [tuple(sorted(edge)) for edge in nx.minimum_spanning_edges(full, data=False)]
    near = sorted({(u, v) for u, v in full.edges} - set(links), key=lambda link: distance[link])
    return links + near[: max(round(degree * n_nodes / 2) - len(links), 0)], positions


TOPOLOGIES: dict[str, Callable] = {"mesh": mesh, "line": line, "tree": tree, "geometric": geometric}


def _layered(n_nodes: int, links: Links) -> np.ndarray:
    graph = nx.Graph(links)
    graph.add_node(0)
    positions = np.zeros((n_nodes, 2))
    layers = list(nx.bfs_layers(graph, [0]))
    for depth, layer in enumerate(layers):
        for place, node in enumerate(sorted(layer)):
            positions[node] = depth / max(len(layers) - 1, 1), (place + 0.5) / len(layer)
    return positions


def _check_range(name: str, value, unit: str, strict: bool = True) -> np.ndarray:
    fix = f"give (lowest, highest) in {unit}"
    bounds = check_array(name, value, shape=(2,), minimum=0, strict=strict, fix=fix)
    if bounds[0] > bounds[1]:
        raise expected(name, "the lowest value first", repr(tuple(value)), fix)
    return bounds


def sample(
    n_servers: int,
    seed: int,
    topology: str,
    source_speed: float,
    server_speed_range,
    rate_range,
    latency_range,
    memory_range,
    overhead: float,
    relays: int,
    degree: float,
) -> nx.DiGraph:
    """Return a random graph with the attributes of `EdgeNetwork`; its `sample` says what the arguments are."""
    n_servers = check_count("n_servers", n_servers, fix="give the number of nodes besides the source, at least 1")
    seed = check_count("seed", seed, minimum=0)
    check_choice("topology", topology, TOPOLOGIES)
    relays = check_count("relays", relays, minimum=0)
    if relays > n_servers:
        raise expected("relays", f"at most n_servers = {n_servers}", relays, "relays are counted among the servers")
    check_number("source_speed", source_speed, minimum=0, strict=True)
    check_number("overhead", overhead, minimum=0)
    check_number("degree", degree, minimum=0)
    speeds = np.log(_check_range("server_speed_range", server_speed_range, "FLOP/s"))
    rates = np.log(_check_range("rate_range", rate_range, "bit/s"))
    latencies = _check_range("latency_range", latency_range, "seconds", strict=False)
    memories = None if memory_range is None else np.log(_check_range("memory_range", memory_range, "bytes"))

    rng = np.random.default_rng(seed)
    links, positions = TOPOLOGIES[topology](n_servers + 1, rng, degree)
    speed = np.exp(rng.uniform(*speeds, n_servers))
    speed[rng.permutation(n_servers)[:relays]] = 0.0
    rate = np.exp(rng.uniform(*rates, len(links)))
    latency = rng.uniform(*latencies, len(links))
    memory = np.full(n_servers, np.inf) if memories is None else np.exp(rng.uniform(*memories, n_servers))

    graph = nx.DiGraph()
    graph.add_node(0, speed=source_speed, overhead=overhead, pos=tuple(positions[0]))
    for n in range(n_servers):
        extra = {"overhead": overhead, "memory": memory[n]} if speed[n] else {}
        graph.add_node(n + 1, speed=speed[n], pos=tuple(positions[n + 1]), **extra)
    for (u, v), r, delay in zip(links, rate, latency, strict=True):
        graph.add_edge(u, v, rate=r, latency=delay)
        graph.add_edge(v, u, rate=r, latency=delay)
    return graph
