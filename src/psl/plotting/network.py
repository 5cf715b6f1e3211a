"""Pictures of a multi-hop network with a plan on it, and of the state graph that planning searches."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
from matplotlib.axes import Axes

from psl.networks import EdgeNetwork
from psl.plotting.style import INK, PAGE

Node = int | str

_PLAN = "#d55e00"  # what the plan uses; differs from the rest in width and arrows too
_NODE, _FACE = "#0173b2", "#cfe3f1"
_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5}  # behind text on lines
_LABELS = 10  # links whose rates can be read next to each other
_ALONG = (0.5, 0.45, 0.55, 0.4, 0.6, 0.35, 0.65)  # of a link: where its label may stand
_CLEAR = 0.06  # of the drawing's height, above and below a label
_LONG = 3  # times as wide as high: a label with its surroundings


class Route(Protocol):
    """What is drawn of a plan of `pipeline.solve`: its stages and hops.

    Attributes:
        stages: (node, i, j) for each stage: the node computes units i+1..j.
        hops: (cut, u, v) for each hop: the activation of a cut travels from node u to node v.
    """

    @property
    def stages(self) -> Sequence[tuple[Node, int, int]]: ...

    @property
    def hops(self) -> Sequence[tuple[int, Node, Node]]: ...


def plot_network(network: EdgeNetwork, plan: Route | None = None, ax: Axes | None = None) -> Axes:
    """Draw a network: nodes by speed, relays hollow, links by rate; with a plan, who computes which units.

    The faster a link, the wider its line. Rates are written at all links of a small network, in a larger one only at
    those that the plan uses.

    Args:
        network: positions come from the nodes' attribute `pos` if all have one, otherwise from networkx's
            Kamada-Kawai layout.
        plan: whose stages and hops are shown; or None.
        ax: axes to draw on; a new figure if None.

    Returns:
        The axes.
    """
    graph = network.graph
    place = network.positions or nx.kamada_kawai_layout(graph.to_undirected(as_view=True), weight=None)
    towards, flat = _outward(place)
    if ax is None:
        _, ax = plt.subplots(figsize=(1.8 + 1.25 * len(graph), 2.4) if flat else (PAGE, 4.6))
    speed = {n: _speed(graph.nodes[n]) for n in graph}
    fastest = max((s for s in speed.values() if np.isfinite(s)), default=0.0) or 1.0
    size = {n: 300 + 700 * min(speed[n] / fastest, 1.0) ** 0.5 if speed[n] > 0 else 260 for n in graph}
    used = {node for node, _, _ in plan.stages} if plan is not None else set()

    links = list(nx.Graph(graph.to_undirected(as_view=True)).edges)
    rates = np.array([graph.edges[link]["rate"] for link in links])
    wide = [_width(rate, rates) for rate in rates]
    nx.draw_networkx_edges(graph, place, edgelist=links, width=wide, edge_color="#cccccc", arrows=False, ax=ax)
    for shown, face in (
        ([n for n in graph if speed[n] > 0], _FACE),
        ([n for n in graph if not speed[n] > 0], "white"),
    ):
        nx.draw_networkx_nodes(
            graph, place, nodelist=shown, node_size=[size[n] for n in shown], node_color=face, ax=ax,
            edgecolors=[_PLAN if n in used else _NODE for n in shown],
            linewidths=[2.5 if n in used else 1.0 for n in shown],
            node_shape="o",
        ).set_zorder(2)  # fmt: skip
    if plan is not None and plan.hops:
        nx.draw_networkx_edges(
            graph, place, edgelist=[(u, v) for _, u, v in plan.hops], width=2.2, edge_color=_PLAN, arrowsize=16,
            node_size=[size[n] for n in graph], ax=ax,
        )  # fmt: skip
    nx.draw_networkx_labels(graph, place, network.labels, font_size=8, ax=ax)
    hops = {frozenset((u, v)) for _, u, v in plan.hops} if plan is not None else set()
    shown = [link for link in links if len(links) <= _LABELS or frozenset(link) in hops]
    for (u, v), (x, y) in _label_places(place, shown).items():
        ax.text(x, y, _rates(network, u, v), fontsize=7, ha="center", va="center", bbox=_BOX)
    for node, text in _notes(network, plan).items():
        (x, y), away = towards[node], 5 + size[node] ** 0.5 / 2
        style: dict[str, Any] = {
            "ha": "left" if x > 0.4 else "right" if x < -0.4 else "center",
            "va": "bottom" if y > 0.4 else "top" if y < -0.4 else "center",
            "bbox": _BOX,
        }
        offset = (away * x, away * y)
        at = (float(place[node][0]), float(place[node][1]))
        ax.annotate(text, at, xytext=offset, textcoords="offset points", fontsize=7.5, **style)
    ax.margins(0.06 if flat else 0.2, 0.5 if flat else 0.14)
    ax.set_axis_off()
    return ax


def plot_state_graph(network: EdgeNetwork, n_units: int, plan: Route | None = None, ax: Axes | None = None) -> Axes:
    """Draw the graph whose shortest paths are plans: vertices (cut, node, arrived or computed), for a tiny case.

    Units are computed along solid edges (i, v, arrived) → (j, v, computed), activations hop along dashed ones
    (j, u, ·) → (j, v, arrived). Only what lies on some way from the source's raw input to the output is drawn.

    Args:
        network: of a few nodes.
        n_units: L, the number of units of the model; 2 to 4 stay readable.
        plan: whose path is highlighted; or None.
        ax: axes to draw on; a new figure if None.

    Returns:
        The axes.

    Source: pipelined split learning (arXiv 2505.04368): bottleneck-aware shortest path [P]; this graph [R].
    """
    states = state_graph(network, n_units)
    nodes = list(network.graph)
    if ax is None:
        _, ax = plt.subplots(figsize=(2.4 + 1.7 * n_units, 1.4 + 1.1 * len(nodes) + 0.22 * (n_units - 1)))
    place = {
        (j, n, state): (j + (0.25 if state == "computed" else -0.25), -nodes.index(n) - 0.16 * (state == "arrived"))
        for j, n, state in states
    }
    path = _walk(plan) if plan is not None else []
    on_path = set(zip(path, path[1:], strict=False))
    size = 110
    for u, v, hop in states.edges(data="hop"):
        chosen = (u, v) in on_path
        # One unit: straight, between the vertices on the way; longer computations pass below these and each other.
        bend = 0.16 if hop else 0.12 * (v[0] - u[0]) * (v[0] - u[0] > 1)
        nx.draw_networkx_edges(
            states, place, edgelist=[(u, v)], ax=ax, node_size=size, style="dashed" if hop else "solid",
            width=2.6 if chosen else 0.7, edge_color=_PLAN if chosen else "#737373", arrowsize=13 if chosen else 8,
            connectionstyle=f"arc3,rad={bend}",
        )  # fmt: skip
    for state, shape, face in (("arrived", "o", "white"), ("computed", "s", _NODE)):
        shown = [v for v in states if v[2] == state]
        nx.draw_networkx_nodes(
            states, place, nodelist=shown, node_size=size, node_shape=shape, ax=ax, node_color=face,
            edgecolors=[_PLAN if v in path else INK for v in shown],
            linewidths=[2.5 if v in path else 0.8 for v in shown],
        ).set_zorder(3)  # fmt: skip
        label = f"cut j {state} at the node"
        ax.plot([], [], shape, color=INK, markerfacecolor=face, markersize=6, label=label)
    ax.plot([], [], "-", color="#737373", linewidth=1, label="compute")
    ax.plot([], [], "--", color="#737373", linewidth=1, label="hop")
    if plan is not None:
        ax.plot([], [], "-", color=_PLAN, linewidth=2.6, label="plan")
    lowest = -len(nodes) + 0.35 - 0.2 * (n_units - 1)  # room for the longest computation of the last row
    ax.set(xlabel="cut j", ylabel="node", xlim=(-0.6, n_units + 0.6), ylim=(lowest, 0.6))
    ax.set_xticks(range(n_units + 1))
    ax.set_yticks([-k for k in range(len(nodes))], [network.labels[n] for n in nodes])
    ax.tick_params(left=True, bottom=True, labelleft=True, labelbottom=True)
    for cut in range(n_units):
        ax.axvline(cut + 0.5, color="#d9d9d9", linewidth=0.8, zorder=0)
    ax.grid(False)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, columnspacing=1.2)
    return ax


def state_graph(network: EdgeNetwork, n_units: int) -> nx.DiGraph:
    """Return the part of the state graph that lies on some way from (0, source, arrived) to (L, any, computed).

    Vertices are (cut, node, "arrived" | "computed"); edge attribute `hop` is True for a hop, False for a computation.
    The raw input does not leave the source: it computes at least unit 1.
    """
    graph, states = network.graph, nx.DiGraph()
    for n in graph:
        if _speed(graph.nodes[n]) > 0:
            for i in range(n_units):
                for j in range(i + 1, n_units + 1):
                    states.add_edge((i, n, "arrived"), (j, n, "computed"), hop=False)
        for j in range(1, n_units):
            for v in graph.successors(n):
                for state in ("arrived", "computed"):
                    states.add_edge((j, n, state), (j, v, "arrived"), hop=True)
    begin = (0, network.source, "arrived")
    ends = [v for v in states if v[0] == n_units]
    reached = nx.descendants(states, begin) | {begin} if begin in states else set()
    useful = set(ends).union(*(nx.ancestors(states, v) for v in ends))
    return states.subgraph([v for v in states if v in reached & useful])


def _walk(plan: Route) -> list[tuple[int, Node, str]]:
    """Return the vertices of a plan's path through the state graph."""
    path: list[tuple[int, Node, str]] = []
    hops = list(plan.hops)
    for node, i, j in plan.stages:
        path += [] if path and path[-1] == (i, node, "arrived") else [(i, node, "arrived")]
        path.append((j, node, "computed"))
        while hops and hops[0][0] == j:
            cut, _, v = hops.pop(0)
            path.append((cut, v, "arrived"))
    return path


def _label_places(place: Mapping[Node, Any], shown: list[tuple[Node, Node]]) -> dict[tuple[Node, Node], np.ndarray]:
    """Return (x, y) of the label of each of some links: off the other ones, the nodes and earlier labels."""
    span = np.ptp(np.array(list(place.values()), dtype=float), axis=0)
    unit = np.where(span > 0, span, 1.0) * (_LONG, 1)
    at = {n: np.array(xy, dtype=float) / unit for n, xy in place.items()}
    places: dict[tuple[Node, Node], np.ndarray] = {}
    for u, v in shown:
        others = [(at[a], at[b]) for a, b in shown if {a, b} != {u, v}]
        texts = [*at.values(), *places.values()]

        def clear(here, others=others, texts=texts) -> tuple[bool, float]:
            lines = [_distance(here, a, b) for a, b in others]
            spots = [_distance(here, xy, xy) for xy in texts]
            return min(spots) > _CLEAR, min(_CLEAR, *lines, *spots)  # to cover a line is bad, to cover text is worse

        places[u, v] = max(((1 - t) * at[u] + t * at[v] for t in _ALONG), key=clear)
    return {link: here * unit for link, here in places.items()}


def _distance(point: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Return the distance of a point from the line between two others."""
    along = b - a
    t = np.clip((point - a) @ along / max(along @ along, 1e-12), 0.0, 1.0)
    return float(np.hypot(*(point - a - t * along)))


def _outward(place: Mapping[Node, Any]) -> tuple[dict[Node, tuple[float, float]], bool]:
    """Return the direction in which each node's note stands, and whether all nodes stand in a row."""
    xy = np.array(list(place.values()), dtype=float)
    span = np.ptp(xy, axis=0)
    flat = len(xy) > 2 and bool(span[1] < 0.05 * span[0])
    if flat:  # notes above and below in turn, from left to right
        rank = np.argsort(np.argsort(xy[:, 0]))
        return {node: (0.0, 1.0 if r % 2 else -1.0) for node, r in zip(place, rank, strict=True)}, True
    from_centre = (xy - xy.mean(axis=0)) / np.where(span > 0, span, 1.0)
    length = np.hypot(*from_centre.T)[:, None]
    unit = np.where(length > 1e-9, from_centre / np.maximum(length, 1e-9), (0.0, -1.0))
    return dict(zip(place, unit.tolist(), strict=True)), False


def _speed(attributes: Mapping[str, Any]) -> float:
    """Return a node's speed; one known by a measured profile counts as the fastest, as it has no FLOP/s."""
    return float("inf") if attributes.get("profile") is not None else float(attributes.get("speed") or 0.0)


def _width(rate: float, rates: np.ndarray) -> float:
    finite = rates[np.isfinite(rates) & (rates > 0)]
    if not np.isfinite(rate) or not finite.size or finite.max() == finite.min():
        return 2.0
    return 0.8 + 2.7 * float(np.log(rate / finite.min()) / np.log(finite.max() / finite.min()))


def _rates(network: EdgeNetwork, u: Node, v: Node) -> str:
    there, back = (_unit(network.graph.edges[edge]["rate"], "bit/s") for edge in ((u, v), (v, u)))
    a, b = network.labels[u], network.labels[v]
    return there if there == back else f"{a}→{b} {there}\n{b}→{a} {back}"


def _unit(value: float, unit: str) -> str:
    if np.isinf(value):
        return f"∞ {unit}"
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def _notes(network: EdgeNetwork, plan: Route | None) -> dict[Node, str]:
    notes: dict[Node, str] = {}
    for n in network.graph:
        attributes = network.graph.nodes[n]
        speed = _speed(attributes)
        own = "measured" if np.isinf(speed) else _unit(speed, "FLOP/s") if speed > 0 else "relay"
        notes[n] = f"source, {own}" if n == network.source else own
    if plan is not None:
        ends = {node for node, _, _ in plan.stages}
        for node in dict.fromkeys(v for _, _, v in plan.hops if v not in ends):
            notes[node] += "\nonly passes on"
    for node, i, j in plan.stages if plan is not None else ():
        notes[node] += f"\nunits {i + 1}–{j}" if j > i + 1 else f"\nunit {j}"
    return notes
