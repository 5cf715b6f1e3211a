"""A multi-hop edge network: nodes that compute or only relay, and the links between them."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import networkx as nx
import numpy as np
import pandas as pd

from psl.errors import check_choice, check_count, check_number, expected
from psl.networks.graphs import ScenarioGraph, as_scenario, simple
from psl.networks.topologies import TOPOLOGIES
from psl.networks.validation import check_edge, check_node, check_range, own_name
from psl.profiles import Profile
from psl.records import Record


@dataclass(frozen=True, repr=False, eq=False)
class EdgeNetwork(Record):
    """Nodes joined by links over which activations travel forth and gradients back; one node holds the data.

    The source stands for the group of clients that holds the data: N clients that split each micro-batch evenly
    compute as fast as N times the slowest of them, ``speed = N * min(client_speed)``.

    Args:
        graph: a `networkx.DiGraph`; the record keeps a copy that cannot be changed, attributes included. Of an
            undirected graph every link carries both directions. Parallel links of a multigraph become one: their rates
            add up. Nodes are named by whole numbers or strings.

            ========  ==========================================================================================
            node      ``speed``: speed s_v, FLOP/s (0 or absent: the node only relays); for a model whose profile is
                      measured, relative to its reference device. ``overhead``: o_v, s per micro-batch and pass
                      (0). ``memory``: bytes (unlimited). ``profile``: a measured profile (unit "s") of the
                      model that is planned, in place of a speed. ``pos``: (x, y) for drawings.
            edge      ``rate``: r_e, bit/s. ``latency``: ℓ_e, s of propagation (0). Every edge needs its reverse:
                      gradients travel back.
            ========  ==========================================================================================

        source: the node that holds the data; it computes at least the first unit.
        duplex: "full": a link carries both directions at once; "half": one at a time.

    Raises:
        ScenarioError: no graph, an empty one, parallel links that differ in more than their rate, an unknown attribute,
            a number given as text, a rate that is not positive, a negative latency, overhead, memory or speed, a
            self-loop, an edge without its reverse, a source that is missing or does not compute, or nodes that the
            source cannot reach.

    Source: Pipelining Split Learning in Multi-hop Edge Networks (arXiv 2505.04368): multi-hop network [P]; relays,
        overheads and duplex modes [R]; measured profiles per node [B].
    """

    graph: nx.DiGraph
    source: int | str
    duplex: str = "full"

    def __post_init__(self) -> None:
        check_choice("EdgeNetwork.duplex", self.duplex, ("full", "half"))
        if not isinstance(self.graph, nx.Graph):  # the base of all networkx graphs
            fix = "make a nx.DiGraph with an edge for each direction"
            raise expected("EdgeNetwork.graph", "a networkx.DiGraph", type(self.graph).__name__, fix)
        if not len(self.graph):
            raise expected("EdgeNetwork.graph", "a source at least", "an empty graph", "add nodes and links")
        graph = ScenarioGraph()
        for node, values in self.graph.nodes(data=True):
            name = own_name(node)
            if name is None:
                want = "nodes named by whole numbers or strings"
                raise expected("EdgeNetwork.graph", want, repr(node), "rename the node")
            graph.add_node(name, **check_node(node, values))
        given = simple(self.graph)
        for u, v, values in given.edges(data=True):
            graph.add_edge(own_name(u), own_name(v), **check_edge(given, u, v, values))
        source = own_name(self.source)
        if source not in graph:
            names = ", ".join([*map(repr, list(graph)[:5]), *["..."] * (len(graph) > 5)])
            fix = "name the node that holds the data"
            raise expected("EdgeNetwork.source", f"one of the nodes {names}", repr(self.source), fix)
        graph.close()
        self._set(graph=graph, source=source)
        if not self.computes[self.index[self.source]]:
            fix = "give it speed > 0 (or a measured profile): it runs at least the first unit"
            raise expected("EdgeNetwork.source", "a node that computes", f"{self.source!r} with speed=0", fix)
        reached = nx.descendants(graph, self.source) | {self.source}
        if lost := [node for node in self.nodes if node not in reached]:
            want = f"every node connected to the source {self.source!r}"
            got = f"no path to {len(lost)} of {len(graph)}: {', '.join(map(repr, lost[:5]))}"
            raise expected("EdgeNetwork.graph", want, got, "add links or remove these nodes")

    def _values(self) -> dict[str, Any]:
        nodes = [(node, dict(values)) for node, values in self.graph.nodes(data=True)]
        edges = [(u, v, dict(values)) for u, v, values in self.graph.edges(data=True)]
        return super()._values() | {"graph": {"nodes": nodes, "edges": edges}}

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> Self:
        graph = nx.DiGraph()
        graph.add_nodes_from(values["graph"]["nodes"])
        graph.add_edges_from(values["graph"]["edges"])
        return super()._from_values({**values, "graph": graph})

    @cached_property
    def nodes(self) -> tuple[int | str, ...]:
        """The V nodes in the graph's order, which all arrays follow."""
        return tuple(self.graph.nodes)

    @cached_property
    def index(self) -> dict[int | str, int]:
        """Place of each node in `nodes`."""
        return {node: n for n, node in enumerate(self.nodes)}

    @cached_property
    def labels(self) -> dict[int | str, str]:
        """Name of each node as people read it, in quotes where 1 and "1" are two nodes."""
        count = Counter(map(str, self.nodes))
        return {node: repr(node) if count[str(node)] > 1 else str(node) for node in self.nodes}

    @property
    def n_nodes(self) -> int:
        """V, the number of nodes, relays and the source included."""
        return len(self.nodes)

    @cached_property
    def edges(self) -> tuple[tuple[int | str, int | str], ...]:
        """The E directed edges (u, v), sorted by the places of u and v; arrays per edge follow this order."""
        at = self.index
        return tuple(sorted(self.graph.edges, key=lambda edge: (at[edge[0]], at[edge[1]])))

    @cached_property
    def edge_index(self) -> dict[tuple[int | str, int | str], int]:
        """Place of each directed edge in `edges`."""
        return {edge: e for e, edge in enumerate(self.edges)}

    @cached_property
    def reverse(self) -> np.ndarray:
        """(E,) place of each edge's reverse."""
        return np.array([self.edge_index[v, u] for u, v in self.edges], dtype=int)

    @cached_property
    def speed(self) -> np.ndarray:
        """(V,) speeds s_v, FLOP/s; 0 for relays."""
        return self._of_nodes("speed")

    @cached_property
    def overhead(self) -> np.ndarray:
        """(V,) overheads o_v, s per micro-batch and pass."""
        return self._of_nodes("overhead")

    @cached_property
    def memory(self) -> np.ndarray:
        """(V,) memories, bytes."""
        return self._of_nodes("memory")

    @cached_property
    def profiles(self) -> tuple[Profile | None, ...]:
        """The measured profile of each node, or None."""
        return tuple(self.graph.nodes[node].get("profile") for node in self.nodes)

    @cached_property
    def computes(self) -> np.ndarray:
        """(V,) whether the node computes; the others only relay."""
        return np.array([self.speed[n] > 0 or own is not None for n, own in enumerate(self.profiles)])

    @cached_property
    def rate(self) -> np.ndarray:
        """(E,) rates r_e, bit/s."""
        return np.array([self.graph.edges[edge]["rate"] for edge in self.edges], dtype=float)

    @cached_property
    def latency(self) -> np.ndarray:
        """(E,) propagation latencies ℓ_e, s."""
        return np.array([self.graph.edges[edge]["latency"] for edge in self.edges], dtype=float)

    @property
    def positions(self) -> dict[int | str, tuple[float, float]] | None:
        """(x, y) of each node for drawings, or None unless every node has one."""
        found = nx.get_node_attributes(self.graph, "pos")
        return found if len(found) == self.n_nodes else None

    def _of_nodes(self, name: str) -> np.ndarray:
        return np.array([self.graph.nodes[node][name] for node in self.nodes], dtype=float)

    @classmethod
    def sample(
        cls,
        n_servers: int = 8,
        seed: int = 0,
        topology: str = "mesh",
        *,
        source_speed: float = 0.5e12,
        server_speed_range: tuple[float, float] = (0.5e12, 10e12),
        rate_range: tuple[float, float] = (50e6, 1e9),
        latency_range: tuple[float, float] = (0.1e-3, 1e-3),
        memory_range: tuple[float, float] | None = None,
        overhead: float = 1e-3,
        relays: int = 0,
        degree: float = 4.0,
        duplex: str = "full",
    ) -> "EdgeNetwork":
        """Draw the default scenario: a group of clients, node 0, and servers 1..n_servers behind several hops.

        Args:
            n_servers: number of nodes besides the source.
            seed: the same seed gives the same network.
            topology: "line": one after the other; "tree": each node joined to a random earlier one; "mesh": a random
                tree with further random links; "geometric": random places, near nodes linked.
            source_speed: speed of the group of clients, FLOP/s: N times the slowest client; the default stands for
                twenty clients of 25 GFLOP/s.
            server_speed_range: speeds of servers, FLOP/s, log-uniform.
            rate_range: rates of links, bit/s, log-uniform, equal in both directions.
            latency_range: propagation latencies of links, s, uniform.
            memory_range: memories of servers, bytes, log-uniform; None: unlimited.
            overhead: of every computing node, s per micro-batch and pass.
            relays: how many of the servers only relay; drawn at random.
            degree: mean number of links of a node in "mesh" and "geometric" (more where connecting all takes more).
            duplex: "full" or "half".

        Raises:
            ScenarioError: an argument is out of range.

        Source: pipelined split learning (arXiv 2505.04368); default scenario [R].
        """
        n_servers = check_count("n_servers", n_servers, fix="give the number of nodes besides the source, at least 1")
        rng = np.random.default_rng(check_count("seed", seed, minimum=0))
        check_choice("topology", topology, TOPOLOGIES)
        relays = check_count("relays", relays, minimum=0)
        if relays > n_servers:
            raise expected("relays", f"at most n_servers = {n_servers}", relays, "relays are counted among the servers")
        check_number("source_speed", source_speed, minimum=0, strict=True)
        check_number("overhead", overhead, minimum=0)
        check_number("degree", degree, minimum=0)
        slowest, fastest = np.log(check_range("server_speed_range", server_speed_range, "FLOP/s"))
        least_rate, most_rate = np.log(check_range("rate_range", rate_range, "bit/s"))
        shortest, longest = check_range("latency_range", latency_range, "seconds", strict=False)

        links, positions = TOPOLOGIES[topology](n_servers + 1, rng, degree)
        speed = np.exp(rng.uniform(slowest, fastest, n_servers))
        speed[rng.permutation(n_servers)[:relays]] = 0.0
        rate = np.exp(rng.uniform(least_rate, most_rate, len(links)))
        latency = rng.uniform(shortest, longest, len(links))
        memory = np.full(n_servers, np.inf)
        if memory_range is not None:
            least, most = np.log(check_range("memory_range", memory_range, "bytes"))
            memory = np.exp(rng.uniform(least, most, n_servers))

        graph = nx.DiGraph()
        graph.add_node(0, speed=source_speed, overhead=overhead, pos=tuple(positions[0]))
        for n in range(n_servers):
            extra = {"overhead": overhead, "memory": memory[n]} if speed[n] else {}
            graph.add_node(n + 1, speed=speed[n], pos=tuple(positions[n + 1]), **extra)
        for (u, v), r, delay in zip(links, rate, latency, strict=True):
            graph.add_edge(u, v, rate=r, latency=delay)
            graph.add_edge(v, u, rate=r, latency=delay)
        return cls(graph, 0, duplex)

    @classmethod
    def from_graph(
        cls,
        graph: nx.Graph | str | os.PathLike[str],
        source: int | str,
        *,
        speed: float | Mapping[int | str, float],
        rate: float | None = None,
        latency: float | None = None,
        memory: float | Mapping[int | str, float] = np.inf,
        overhead: float = 0.0,
        duplex: str = "full",
    ) -> Self:
        """Make a network of a graph as topology collections give it, such as Internet Topology Zoo and SNDlib.

        Nodes are named by their ``label`` where every label is unique, else by their id. Longitude and Latitude, or x
        and y, are kept for drawings. A link's rate is ``rate`` or ``LinkSpeedRaw`` (bit/s), ``capacity`` or
        ``preinstalledCapacity`` (Mbit/s). Other attributes, loops, and what the source cannot reach are left out.

        Args:
            graph: a networkx graph, or the path of a GraphML or GML file.
            source: the node that holds the data.
            speed: FLOP/s of every node; or by name, the others then only relay.
            rate: bit/s of links that have none of their own.
            latency: s, of links that have none of their own; None for the time that light takes in fibre along the
                great circle, and 0 without places.
            memory: bytes of every computing node, or by name; default no limit.
            overhead: of every computing node, s per micro-batch and pass.
            duplex: "full" or "half".

        Raises:
            ScenarioError: the file cannot be read, a link has no rate, a name is no node's, or as `EdgeNetwork`.

        Source: ours [B]; the attributes are those of Internet Topology Zoo and SNDlib.
        """
        return cls(as_scenario(graph, source, speed, rate, latency, memory, overhead), source, duplex)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per node: role, speed, overhead, memory, number of links and their fastest rate out."""
        role = np.where(self.computes, "server", "relay")
        role[self.index[self.source]] = "source"
        out = [[self.graph.edges[node, v]["rate"] for v in self.graph.successors(node)] for node in self.nodes]
        return pd.DataFrame(
            {
                "role": role,
                "speed": self.speed,
                "overhead_s": self.overhead,
                "memory_bytes": self.memory,
                "measured": [own is not None for own in self.profiles],
                "links": [len(rates) for rates in out],
                "fastest_bit_s": [max(rates, default=0.0) for rates in out],
            },
            index=pd.Index(self.nodes, name="node"),
        )

    def __repr__(self) -> str:
        relays = int((~self.computes).sum())
        rates = f", {self.rate.min() / 1e6:.4g}-{self.rate.max() / 1e6:.4g} Mbit/s" if self.edges else ""
        return (
            f"EdgeNetwork({self.n_nodes} nodes{f', {relays} of them relays' if relays else ''}, "
            f"source {self.source!r}, {len(self.edges) // 2} {self.duplex}-duplex links{rates})"
        )
