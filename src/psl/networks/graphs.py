"""Graphs of other origin: parallel links made one, files of topology collections, and dicts that nobody can change."""

import math
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import networkx as nx

from psl.errors import check_array, expected
from psl.networks.validation import own_name

_EARTH_RADIUS = 6371e3  # m, mean
_SPEED_IN_FIBRE = 2e8  # m/s, two thirds of the speed of light
_READERS = {".graphml": nx.read_graphml, ".gml": lambda path: nx.read_gml(path, label="id")}

#: Attributes that hold a link's rate, with what makes it bit/s: Topology Zoo gives bit/s, SNDlib Mbit/s.
_RATES = {"rate": 1.0, "LinkSpeedRaw": 1.0, "capacity": 1e6, "preinstalledCapacity": 1e6}


def _unless_closed(name: str) -> Any:
    """Return the method of `dict` of a name, refused on attributes that are closed."""

    def method(self: "Attributes", *args: Any, **kwargs: Any) -> Any:
        if self.closed:
            want = "no change: plans and cached arrays rely on the numbers of a network"
            fix = "change a copy, graph = nx.DiGraph(network.graph), and make a new EdgeNetwork from it"
            raise expected("EdgeNetwork.graph", want, "one", fix)
        return getattr(dict, name)(self, *args, **kwargs)

    return method


class Attributes(dict[str, Any]):
    """Attributes of a node or link, which refuse changes once they are closed; ``copy()`` is a plain dict.

    Attributes:
        closed: whether changes are refused.
    """

    closed = False

    __setitem__, __delitem__, __ior__, update, pop, popitem, clear, setdefault = map(
        _unless_closed, ("__setitem__", "__delitem__", "__ior__", "update", "pop", "popitem", "clear", "setdefault")
    )

    def __reduce__(self) -> tuple[Any, ...]:
        return Attributes, (dict(self),), {"closed": self.closed}


class ScenarioGraph(nx.DiGraph):
    """A directed graph that can be closed: then neither nodes, links, nor their attributes can be changed."""

    node_attr_dict_factory = Attributes
    edge_attr_dict_factory = Attributes

    def close(self) -> None:
        """Refuse changes from now on."""
        for values in (*self.nodes.values(), *self.edges.values()):
            values.closed = True  # pyright: ignore[reportAttributeAccessIssue]  # networkx types them as dicts
        nx.freeze(self)


def simple(graph: nx.Graph) -> nx.DiGraph:
    """Return a directed graph with one link per direction; an undirected link becomes one in each.

    Parallel links become one: their rates add up.

    Raises:
        ScenarioError: parallel links differ in latency or in another attribute.
    """
    directed = nx.DiGraph()
    directed.add_nodes_from(graph.nodes(data=True))
    parallel: dict[tuple[Any, Any], list[dict[str, Any]]] = defaultdict(list)
    for u, v, values in graph.edges(data=True):
        parallel[u, v].append(values)
        if not graph.is_directed() and u != v:
            parallel[v, u].append(values)
    for (u, v), links in parallel.items():
        directed.add_edge(u, v, **_one_link(u, v, links))
    return directed


def _one_link(u: Any, v: Any, links: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the attributes of parallel links as those of one."""
    if len(links) == 1:
        return links[0]
    what = f"links {u!r} -> {v!r}"
    for name in sorted({name for link in links for name in link} - {"rate"}):
        default = 0.0 if name == "latency" else None
        found = [link.get(name, default) for link in links]
        if any(value != found[0] for value in found):
            got = " and ".join(map(repr, sorted(set(map(str, found)))))
            fix = f"give them one {name}, or keep one of the links"
            raise expected(f"{what}: {name}", "the same value on parallel links, which become one", got, fix)
    if missing := sum("rate" not in link for link in links):
        raise expected(what, "a rate", f"none on {missing} of {len(links)} parallel links", "give rate= in bit/s")
    rates = [float(check_array(f"{what}: rate", link["rate"], shape=(), allow_inf=True)) for link in links]
    return {**links[0], "rate": sum(rates)}


def read_graph(path: str | os.PathLike[str]) -> nx.Graph:
    """Return the graph of a GraphML or GML file.

    Raises:
        ScenarioError: the file cannot be read.
    """
    fix = "pass the path of a .graphml or .gml file, or a networkx graph"
    reader = _READERS.get(Path(path).suffix.lower())
    if reader is None:
        raise expected("graph", "a file that ends in .graphml or .gml", repr(str(path)), fix)
    try:
        return reader(path)
    except Exception as cause:  # the readers raise whatever their parsers do
        raise expected("graph", "a readable file", f"{path} ({type(cause).__name__}: {cause})", fix) from cause


def labelled(graph: nx.Graph) -> nx.Graph:
    """Return a graph whose nodes are named by their attribute ``label`` where all have one of their own."""
    labels = {node: str(values["label"]) for node, values in graph.nodes(data=True) if "label" in values}
    repeated = [label for label, count in Counter(labels.values()).items() if count > 1]
    return graph if len(labels) < len(graph) or repeated else nx.relabel_nodes(graph, labels)


def as_scenario(
    graph: nx.Graph | str | os.PathLike[str],
    source: int | str,
    speed: float | Mapping[Any, float],
    rate: float | None,
    latency: float | None,
    memory: float | Mapping[Any, float],
    overhead: float,
) -> nx.DiGraph:
    """Return a graph with the attributes that `EdgeNetwork` reads and no others; see `EdgeNetwork.from_graph`.

    Raises:
        ScenarioError: the file cannot be read, a link has no rate, or a mapping names a node that is not there.
    """
    graph = labelled(graph if isinstance(graph, nx.Graph) else read_graph(graph))
    for what, values in (("speed", speed), ("memory", memory)):
        unknown = [node for node in values if node not in graph] if isinstance(values, Mapping) else []
        if unknown:
            names = ", ".join(map(repr, list(graph)[:5]))
            raise expected(what, f"names of nodes, such as {names}", repr(unknown[0]), "correct the name")
    places = {node: found for node, values in graph.nodes(data=True) if (found := _place(values)) is not None}
    made = nx.MultiDiGraph() if graph.is_directed() else nx.MultiGraph()
    for node in graph:
        name = own_name(node)
        own: dict[str, Any] = {"speed": speed.get(node, 0.0) if isinstance(speed, Mapping) else speed}
        if own["speed"]:
            own["overhead"] = overhead
            own["memory"] = memory.get(node, math.inf) if isinstance(memory, Mapping) else memory
        if node in places:
            own["pos"] = places[node]
        made.add_node(node if name is None else name, **own)
    for u, v, values in graph.edges(data=True):
        if u != v:  # a node reaches itself at once
            seconds = _seconds(places, u, v) if latency is None else latency
            made.add_edge(u, v, rate=_rate(u, v, values, rate), latency=values.get("latency", seconds))
    reached = {source, *nx.descendants(made, source)} if source in made else set(made)
    return simple(made.subgraph([node for node in made if node in reached]))


def _rate(u: Any, v: Any, values: dict[str, Any], default: float | None) -> float:
    for name, factor in _RATES.items():
        if name in values:
            return factor * float(check_array(f"link {u!r} -> {v!r}: {name}", values[name], shape=(), allow_inf=True))
    if default is None:
        want = f"a rate for every link, as one of {', '.join(_RATES)}"
        raise expected(f"link {u!r} -> {v!r}", want, "none", "pass rate= in bit/s for links without one")
    return default


def _place(values: dict[str, Any]) -> tuple[float, float] | None:
    """Return (longitude, latitude) or (x, y) of a node, if it has one."""
    for x, y in (("Longitude", "Latitude"), ("longitude", "latitude"), ("x", "y")):
        if x in values and y in values:
            return float(values[x]), float(values[y])
    return values.get("pos")


def _seconds(places: dict[Any, tuple[float, float]], u: Any, v: Any) -> float:
    """Return how long light takes in fibre along the great circle between two nodes; 0 without places in degrees."""
    if u not in places or v not in places:
        return 0.0
    (a, b), (c, d) = (map(math.radians, places[node]) for node in (u, v))
    if max(abs(a), abs(c)) > math.pi or max(abs(b), abs(d)) > math.pi / 2:
        return 0.0  # in other units
    half = math.sin((d - b) / 2) ** 2 + math.cos(b) * math.cos(d) * math.sin((c - a) / 2) ** 2
    return 2 * _EARTH_RADIUS * math.asin(min(1.0, math.sqrt(half))) / _SPEED_IN_FIBRE
