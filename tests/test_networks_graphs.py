"""Graphs of other origin: undirected, with parallel links, from topology collections, and networks that stay."""

import copy
import dataclasses
import pickle

import networkx as nx
import numpy as np
import pytest

import psl
from psl.errors import ScenarioError
from psl.networks import EdgeNetwork
from psl.schedulers import pipeline

PROFILE = psl.profile(psl.models.cnn(), (1, 8, 8))

#: As the Internet Topology Zoo writes GraphML: ids that are text, places, rates of some links, two links between Oslo
#: and Bergen, a node without a place, and one that nobody reaches.
ZOO = """<?xml version="1.0" encoding="utf-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
  <key attr.name="label" attr.type="string" for="node" id="d33" />
  <key attr.name="Longitude" attr.type="double" for="node" id="d32" />
  <key attr.name="Latitude" attr.type="double" for="node" id="d29" />
  <key attr.name="Internal" attr.type="int" for="node" id="d31" />
  <key attr.name="LinkSpeedRaw" attr.type="double" for="edge" id="d38" />
  <key attr.name="LinkLabel" attr.type="string" for="edge" id="d34" />
  <key attr.name="Network" attr.type="string" for="graph" id="d0" />
  <graph edgedefault="undirected">
    <data key="d0">Example</data>
    <node id="0"><data key="d33">Oslo</data><data key="d32">10.74609</data><data key="d29">59.91273</data></node>
    <node id="1"><data key="d33">Bergen</data><data key="d32">5.32415</data><data key="d29">60.39299</data></node>
    <node id="2"><data key="d33">Somewhere</data><data key="d31">0</data></node>
    <node id="3"><data key="d33">Island</data></node>
    <edge source="0" target="1"><data key="d38">1000000000.0</data><data key="d34">1 Gbps</data></edge>
    <edge source="0" target="1"><data key="d38">2500000000.0</data></edge>
    <edge source="1" target="2"><data key="d34">DWDM</data></edge>
  </graph>
</graphml>
"""

#: SNDlib networks as GML: capacities in Mbit/s, places in degrees under other names.
SNDLIB = """graph [
  directed 0
  node [ id 0 label "Aachen" x 6.04 y 50.76 ]
  node [ id 1 label "Berlin" x 13.48 y 52.52 ]
  edge [ source 0 target 1 id "L1" preinstalledCapacity 155.0 ]
]
"""


def test_parallel_links_become_one_whose_rate_is_their_sum():
    graph = nx.MultiDiGraph()
    graph.add_nodes_from([(0, {"speed": 1e9}), (1, {"speed": 1e9})])
    for rate in (1e6, 2e6):
        graph.add_edge(0, 1, rate=rate, latency=1e-3)
    graph.add_edge(1, 0, rate=4e6)
    network = EdgeNetwork(graph, 0)
    assert network.graph.edges[0, 1] == {"rate": 3e6, "latency": 1e-3}
    assert network.graph.edges[1, 0] == {"rate": 4e6, "latency": 0.0}
    graph[0][1][0]["latency"] = 2e-3
    with pytest.raises(ScenarioError, match=r"links 0 -> 1: latency: expected the same value on parallel links"):
        EdgeNetwork(graph, 0)


def test_a_link_of_an_undirected_graph_carries_both_directions():
    for kind in (nx.Graph, nx.MultiGraph):
        graph = kind()
        graph.add_nodes_from([(0, {"speed": 1e9}), ("b", {"speed": 1e9})])
        graph.add_edge(0, "b", rate=1e6)
        network = EdgeNetwork(graph, 0)
        assert network.edges == ((0, "b"), ("b", 0))
        assert (network.rate == 1e6).all()


def test_a_graph_of_the_internet_topology_zoo(tmp_path):
    path = tmp_path / "Example.graphml"
    path.write_text(ZOO)
    network = EdgeNetwork.from_graph(path, "Oslo", speed={"Oslo": 1e9, "Somewhere": 2e9}, rate=1e8, latency=None)
    assert network.nodes == ("Oslo", "Bergen", "Somewhere")
    assert network.computes.tolist() == [True, False, True]
    assert network.graph.edges["Oslo", "Bergen"]["rate"] == 3.5e9
    assert network.graph.edges["Bergen", "Somewhere"]["rate"] == 1e8
    # Oslo and Bergen are 305 km apart: light in fibre takes 1.5 ms.
    assert network.graph.edges["Oslo", "Bergen"]["latency"] == pytest.approx(305e3 / 2e8, rel=0.01)
    assert network.graph.edges["Bergen", "Somewhere"]["latency"] == 0
    plan = pipeline.solve(PROFILE, network, batch_size=64)
    assert plan.exact
    assert EdgeNetwork.from_dict(network.to_dict()) == network
    with pytest.raises(ScenarioError, match=r"speed: expected names of nodes.*'Oslo'.*got 'Olso'"):
        EdgeNetwork.from_graph(path, "Oslo", speed={"Olso": 1e9}, rate=1e8)
    with pytest.raises(ScenarioError, match=r"'Bergen' -> 'Somewhere': expected a rate .*pass rate="):
        EdgeNetwork.from_graph(path, "Oslo", speed=1e9)


def test_a_graph_of_sndlib(tmp_path):
    path = tmp_path / "example.gml"
    path.write_text(SNDLIB)
    network = EdgeNetwork.from_graph(str(path), "Aachen", speed=1e9)
    assert network.rate.tolist() == [155e6, 155e6]
    assert network.positions == {"Aachen": (6.04, 50.76), "Berlin": (13.48, 52.52)}
    with pytest.raises(ScenarioError, match="a file that ends in .graphml or .gml"):
        EdgeNetwork.from_graph("network.xml", 0, speed=1)
    with pytest.raises(ScenarioError, match="a readable file"):
        EdgeNetwork.from_graph(tmp_path / "missing.gml", 0, speed=1)


def test_labels_that_repeat_leave_the_ids():
    graph = nx.path_graph(3)
    nx.set_node_attributes(graph, "same", "label")
    assert EdgeNetwork.from_graph(graph, 0, speed=1e9, rate=1e6).nodes == (0, 1, 2)


def test_a_network_s_numbers_do_not_change_under_a_plan():
    network = EdgeNetwork.sample(4, 0)
    plan = pipeline.solve(PROFILE, network, batch_size=64)
    before = plan.latency().total, psl.simulate(plan).makespan
    node, edge = network.graph.nodes[0], network.graph.edges[network.edges[0]]
    changes = [
        lambda: node.update(speed=1e15),
        lambda: node.__setitem__("speed", 1e15),
        lambda: node.pop("speed"),
        lambda: node.setdefault("more", 1),
        lambda: edge.clear(),
        lambda: network.graph.add_edge(0, 99),
        lambda: network.graph.remove_node(1),
    ]
    for change in changes:
        with pytest.raises((ScenarioError, nx.NetworkXError), match=r"no change|Frozen graph"):
            change()
    assert (plan.latency().total, psl.simulate(plan).makespan) == before
    for changed in (nx.DiGraph(network.graph), network.graph.copy(), network.graph.to_directed()):  # may be changed
        changed.nodes[0]["speed"] *= 2
        nx.set_edge_attributes(changed, 1e9, "rate")
        assert EdgeNetwork(changed, 0) != network
    assert (plan.latency().total, psl.simulate(plan).makespan) == before
    assert EdgeNetwork(network.graph, 0) == network
    for again in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert again == network
    assert dataclasses.replace(network, duplex="half").graph.nodes[0] == network.graph.nodes[0]


def test_a_subchannel_that_a_client_cannot_use_is_legitimate():
    from psl.schedulers import epsl

    cell = psl.WirelessCell.sample(3, 6, seed=1, channel="log-distance")
    gain = cell.uplink_gain.copy()
    gain[:, 2] = 0
    gain[0, 4] = 0
    none, least = (dataclasses.replace(cell, uplink_gain=np.where(gain > 0, gain, low)) for low in (0.0, 1e-60))
    for method in ("search", "bcd"):
        plan, nearly = (epsl.solve(PROFILE, which, method=method) for which in (none, least))
        assert plan.round_time == pytest.approx(nearly.round_time, rel=1e-9)
        assert plan.lower_bound == pytest.approx(nearly.lower_bound, rel=1e-9)
        assert plan.assignment[4] != 0
        assert plan.latency("sl").total == pytest.approx(nearly.latency("sl").total)
    blocked = dataclasses.replace(cell, uplink_gain=np.where(np.arange(3)[:, None] == 1, 0.0, cell.uplink_gain))
    with pytest.raises(psl.errors.InfeasibleError, match="a rate above 0"):
        epsl.solve(PROFILE, blocked)


def test_cells_outside_the_range_of_tr_38901_are_warned_of(recwarn):
    psl.WirelessCell.sample(3, 6, channel="log-distance")
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"TR 38.901 UMi: carrier_frequency=200 GHz \(valid: 0.5..100 GHz\)"):
        psl.WirelessCell.sample(3, 6, channel="log-distance", carrier_frequency=200e9)
    with pytest.warns(UserWarning, match=r"of 3 clients at .* m \(valid: 10..5000 m\)"):
        psl.WirelessCell.sample(3, 6, channel="log-distance", radius=20e3)
    with pytest.warns(UserWarning, match="valid: 10..5000 m"):
        psl.WirelessCell.sample(3, 6, channel="log-distance", radius=5.0)
