"""Pictures of networks, state graphs and timelines: what they must show, and that they can be drawn."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import pytest
from matplotlib.collections import PathCollection

from psl import plotting
from psl.networks import EdgeNetwork
from psl.profiles import Profile
from psl.simulation import simulate
from simulation_scenarios import chain, random_walk_plan


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def triangle(**source):
    graph = nx.DiGraph()
    graph.add_node(0, speed=1e10, **source)
    graph.add_node("relay")
    graph.add_node(2, speed=5e12)
    for u, v, rate in ((0, "relay", 1e8), ("relay", 2, 1e9), (0, 2, 2e7)):
        graph.add_edge(u, v, rate=rate)
        graph.add_edge(v, u, rate=rate * (2 if v == "relay" else 1))
    return EdgeNetwork(graph, 0)


PLAN = SimpleNamespace(stages=((0, 0, 1), (2, 1, 3)), hops=((1, 0, "relay"), (1, "relay", 2)))


def texts(ax):
    return {text.get_text() for text in ax.texts}


def test_network_with_its_plan():
    ax = plotting.plot_network(triangle(), PLAN)
    assert {"source, 10 GFLOP/s\nunit 1", "relay", "5 TFLOP/s\nunits 2–3"} <= texts(ax)
    assert {"0→relay 100 Mbit/s\nrelay→0 200 Mbit/s", "1 Gbit/s", "20 Mbit/s"} <= texts(ax)
    arrows = [patch for patch in ax.patches if hasattr(patch, "get_arrowstyle")]
    assert len(arrows) == 2, "one per hop"


def test_network_without_a_plan_and_with_positions():
    graph = nx.DiGraph(triangle().graph)
    nx.set_node_attributes(graph, {0: (0, 0), "relay": (100, 0), 2: (50, 80)}, "pos")
    network = EdgeNetwork(graph, 0)
    _, ax = plt.subplots()
    assert plotting.plot_network(network, ax=ax) is ax
    drawn = np.concatenate([c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)])
    assert {(0, 0), (100, 0), (50, 80)} <= {tuple(xy) for xy in drawn.tolist()}


def test_a_dense_network_shows_the_rates_of_the_plan_s_links_only():
    network = EdgeNetwork.sample(8, 3, rate_range=(1e9, 10e9))
    assert len(network.edges) > 20
    plan = SimpleNamespace(stages=((0, 0, 1), (4, 1, 3)), hops=((1, 0, 4),))
    rates = [text for text in plotting.plot_network(network, plan).texts if text.get_text().endswith("bit/s")]
    assert len(rates) == 1
    assert not any("bit/s" in text for text in texts(plotting.plot_network(network)))


def test_rates_stand_clear_of_crossings_and_of_each_other():
    graph = nx.complete_graph(4).to_directed()
    nx.set_node_attributes(graph, {0: (0, 0), 1: (1, 0), 2: (1, 1), 3: (0, 1)}, "pos")
    nx.set_node_attributes(graph, 1e9, "speed")
    nx.set_edge_attributes(graph, 1e9, "rate")
    ax = plotting.plot_network(EdgeNetwork(graph, 0))
    rates = [text for text in ax.texts if text.get_text().endswith("bit/s")]
    assert len(rates) == 6
    renderer = ax.figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in rates]
    crossing = ax.transData.transform((0.5, 0.5))
    assert not any(box.contains(*crossing) for box in boxes)
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])


def test_network_of_odd_values():
    graph = nx.DiGraph(triangle(profile=Profile.measured(["in", "out"], [0, 1], [0, 1], [1, 1])).graph)
    graph.edges[0, 2]["rate"] = float("inf")
    ax = plotting.plot_network(EdgeNetwork(graph, 0), PLAN)
    ax.figure.canvas.draw()
    assert "source, measured\nunit 1" in texts(ax)
    assert any("∞" in text for text in texts(ax))


def test_state_graph_holds_exactly_the_plans():
    network, n_units = triangle(), 3
    states = plotting.state_graph(network, n_units)
    start = (0, 0, "arrived")
    assert all(nx.has_path(states, start, v) for v in states)
    assert all(any(nx.has_path(states, v, end) for end in states if end[0] == n_units) for v in states)
    assert (1, "relay", "arrived") in states
    assert (1, "relay", "computed") not in states
    assert (0, 2, "arrived") not in states, "raw data stay at the source"
    for (j, n, _), (k, m, state), hop in states.edges(data="hop"):
        assert (j == k and network.graph.has_edge(n, m) and state == "arrived") if hop else (n == m and j < k)


def test_state_graph_highlights_the_plan():
    ax = plotting.plot_state_graph(triangle(), 3, PLAN)
    thick = [patch for patch in ax.patches if patch.get_linewidth() > 2]
    assert len(thick) == len(PLAN.stages) + len(PLAN.hops)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("cut j", "node")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "relay", "2"]
    assert plotting.plot_state_graph(triangle(), 2).get_legend() is not None


def test_a_stage_of_the_state_graph_meets_no_vertex_on_its_way():
    network, n_units = triangle(), 4
    for stages in [((0, 0, n),) for n in range(1, 5)] + [((2, 1, 2),), ((2, 1, 3),), ((2, 1, 4),)]:
        ax = plotting.plot_state_graph(network, n_units, SimpleNamespace(stages=stages, hops=()))
        (arrow,) = [patch for patch in ax.patches if patch.get_linewidth() > 2]
        way = arrow.get_path().interpolated(50).vertices[:-60]
        way = arrow.get_transform().transform(way) if arrow.get_transform() else way
        dots = [c for c in ax.collections if isinstance(c, PathCollection)]
        points = ax.transData.transform(np.concatenate([c.get_offsets() for c in dots]))
        near = np.hypot(*(points[:, None] - way).transpose(2, 0, 1)).min(axis=1)
        radius = 110**0.5 / 2 * ax.figure.dpi / 72
        assert (near < radius).sum() <= 2, stages  # its own two ends at most
        plt.close(ax.figure)


def test_gantt_has_a_bar_per_event_and_labels():
    timeline = simulate(chain([4, 1], [3, 2], [1], [1], batch_size=4))
    ax = timeline.plot()
    bars = sum(len(c.get_paths()) for c in ax.collections)
    assert bars == len(timeline.start)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(timeline.resources)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (s)", "resource")
    assert {"0", "3"} <= texts(ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "forward",
        "backward",
        "activation",
        "gradient",
    ]
    looks = [(look["facecolor"], look["hatch"]) for look in plotting.GANTT_LOOKS.values()]
    assert len(set(looks)) == len(looks)


def test_gantt_of_anything():
    plans = [chain([1], [0]), chain([0, 0], [0, 0], [0], [0]), random_walk_plan(np.random.default_rng(3))]
    plans.append(chain([1] * 8, [2] * 8, [1] * 7, [1] * 7, batch_size=64))
    for plan in plans:
        _, ax = plt.subplots()
        timeline = simulate(plan)
        assert timeline.plot(ax) is ax
        ax.figure.canvas.draw()
    assert not plt.subplots()[1].texts
    plain = timeline.to_frame().astype({"resource": str, "kind": str})
    assert len(plotting.plot_gantt(plain).get_yticklabels()) == len(timeline.resources)


def test_a_row_of_nodes_is_drawn_wide_with_notes_that_take_turns():
    graph = nx.DiGraph(chain([1] * 5, [1] * 5, [1] * 4, [1] * 4).network.graph)
    nx.set_node_attributes(graph, {n: (n, 0.0) for n in range(5)}, "pos")
    network = EdgeNetwork(graph, 0)
    ax = plotting.plot_network(network)
    assert ax.figure.get_size_inches()[0] == pytest.approx(1.8 + 5 * 1.25)
    notes = [text for text in ax.texts if "FLOP/s" in text.get_text()]
    assert [note.get_va() for note in notes] == ["top", "bottom", "top", "bottom", "top"]


def test_the_picture_of_split_learning_shows_every_device_and_both_directions():
    for n_devices in (1, 3):
        axes = plotting.plot_split_learning(n_devices)
        texts = " ".join(text.get_text() for text in axes.texts)
        assert f"device {n_devices}" in texts and f"device {n_devices + 1}" not in texts
        assert "activations" in texts and "gradients" in texts and "server" in texts
