"""Edge networks: what they hold, what they refuse, and the random ones."""

import json

import networkx as nx
import numpy as np
import pytest

from pipeline_scenarios import random_network, random_profile
from psl.errors import ScenarioError
from psl.networks import EdgeNetwork
from psl.networks.topologies import TOPOLOGIES
from psl.profiles import Profile


def graph_of(nodes=None, edges=None):
    graph = nx.DiGraph()
    for node, values in (nodes or {"clients": {"speed": 1e9}, 1: {"speed": 2e9}, 2: {}}).items():
        graph.add_node(node, **values)
    for u, v, values in edges or [("clients", 1, {"rate": 1e6}), (1, 2, {"rate": 2e6, "latency": 0.5})]:
        graph.add_edge(u, v, **values)
        graph.add_edge(v, u, **values)
    return graph


def test_defaults_and_order():
    network = EdgeNetwork(graph_of(), "clients", "half")
    assert network.nodes == ("clients", 1, 2)
    assert network.edges == (("clients", 1), (1, "clients"), (1, 2), (2, 1))
    np.testing.assert_array_equal(network.reverse, [1, 0, 3, 2])
    np.testing.assert_array_equal(network.speed, [1e9, 2e9, 0])
    np.testing.assert_array_equal(network.overhead, [0, 0, 0])
    np.testing.assert_array_equal(network.memory, [np.inf] * 3)
    np.testing.assert_array_equal(network.rate, [1e6, 1e6, 2e6, 2e6])
    np.testing.assert_array_equal(network.latency, [0, 0, 0.5, 0.5])
    np.testing.assert_array_equal(network.computes, [True, True, False])
    assert network.positions is None
    assert list(network.to_frame()["role"]) == ["source", "server", "relay"]
    assert repr(network) == (
        "EdgeNetwork(3 nodes, 1 of them relays, source 'clients', 2 half-duplex links, 1-2 Mbit/s)"
    )


def test_the_graph_is_a_frozen_copy():
    graph = graph_of()
    network = EdgeNetwork(graph, "clients")
    graph.nodes[1]["speed"] = 5.0
    graph.remove_node(2)
    assert network.n_nodes == 3 and network.speed[1] == 2e9
    with pytest.raises(nx.NetworkXError, match="Frozen"):
        network.graph.remove_node(2)


def test_round_trip_keeps_names_profiles_and_infinity(tmp_path):
    measured = Profile.measured(["in", "out"], [0, 1.0], [0, 2.0], [8, 8])
    graph = graph_of({"clients": {"speed": 1e9, "pos": (0, 1)}, 1: {"profile": measured}, 2: {"memory": 5}})
    network = EdgeNetwork(graph, "clients", "half")
    again = EdgeNetwork.from_dict(json.loads(json.dumps(network.to_dict())))
    assert again == network
    assert again.nodes == ("clients", 1, 2)  # 1 stays a number
    assert again.profiles[1] == measured and again.graph.nodes["clients"]["pos"] == (0, 1)
    assert EdgeNetwork.load(network.save(tmp_path / "network.json")) == network
    assert network != EdgeNetwork(graph, "clients", "full")
    faster = graph.copy()
    faster.edges["clients", 1]["rate"] = 3e6
    assert network != EdgeNetwork(faster, "clients", "half")
    for seed in range(20):
        rng = np.random.default_rng(seed)
        network = random_network(rng, 5, random_profile(rng))
        assert EdgeNetwork.from_dict(json.loads(json.dumps(network.to_dict()))) == network, seed


def changed(change, nodes=None, edges=None):
    graph = graph_of(nodes, edges)
    change(graph)
    return graph


BAD = {
    "expected a networkx.DiGraph, got dict. Fix: make a nx.DiGraph": {0: [1]},
    "edge 'clients' -> 1: rate: expected values above 0, got 0": changed(
        lambda g: g.edges["clients", 1].update(rate=0)
    ),
    "edge 'clients' -> 1: rate: expected values above 0, got -5": changed(
        lambda g: g.edges["clients", 1].update(rate=-5)
    ),
    "edge 1 -> 2: rate: expected finite numbers, got nan": changed(lambda g: g.edges[1, 2].update(rate=np.nan)),
    "edge 1 -> 2: expected a rate, got none": changed(lambda g: g.edges[1, 2].pop("rate")),
    "edge 1 -> 2: latency: expected values of at least 0, got -1": changed(lambda g: g.edges[1, 2].update(latency=-1)),
    "edge 1 -> 2: expected attributes among rate, latency, got 'delay'. Fix: did you mean 'latency'": changed(
        lambda g: g.edges[1, 2].update(delay=1)
    ),
    "edge 1 -> 1: expected two different nodes, got a self-loop": changed(lambda g: g.add_edge(1, 1, rate=1)),
    "edge 1 -> 2: expected its reverse 2 -> 1, as gradients travel back, got none": changed(
        lambda g: g.remove_edge(2, 1)
    ),
    "no path to 2 of 5: 'a', 'b'. Fix: add links": changed(
        lambda g: g.add_edges_from([("a", "b", {"rate": 1}), ("b", "a", {"rate": 1})])
    ),
    "expected one of the nodes 1, 2, got 'clients'": changed(lambda g: g.remove_node("clients")),
    "EdgeNetwork.source: expected a node that computes, got 'clients' with speed=0": changed(
        lambda g: g.nodes["clients"].pop("speed")
    ),
    "node 1: speed: expected values of at least 0, got -1": changed(lambda g: g.nodes[1].update(speed=-1)),
    "node 1: memory: expected values of at least 0, got -1": changed(lambda g: g.nodes[1].update(memory=-1)),
    "node 1: overhead: expected finite numbers, got nan": changed(lambda g: g.nodes[1].update(overhead=np.nan)),
    "node 1: expected attributes among .*, got 'flops'. Fix: did you mean 'speed'": changed(
        lambda g: g.nodes[1].update(flops=1)
    ),
    "got 'memroy'. Fix: did you mean 'memory'": changed(lambda g: g.nodes[1].update(memroy=1)),
    "got 'colour'. Fix: remove it": changed(lambda g: g.nodes[1].update(colour="red")),
    r"node 1: pos: expected shape \(2\)": changed(lambda g: g.nodes[1].update(pos=(1, 2, 3))),
    "node 1: profile: expected a profile measured in seconds, or None, got a profile in FLOP": changed(
        lambda g: g.nodes[1].update(profile=random_profile(np.random.default_rng(0)))
    ),
    "EdgeNetwork.graph: expected a source at least, got an empty graph. Fix: add nodes": nx.DiGraph(),
    "edge 1 -> 2: rate: expected no text, got '1e6'. Fix: give the number without quotes": changed(
        lambda g: g.edges[1, 2].update(rate="1e6")
    ),
    "node 1: speed: expected no text, got '1e9'": changed(lambda g: g.nodes[1].update(speed="1e9")),
    "expected nodes named by whole numbers or strings, got False": changed(lambda g: g.add_node(False)),
    r"expected nodes named by whole numbers or strings, got \(0, 1\)": changed(lambda g: g.add_node((0, 1))),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_networks_are_refused(message):
    with pytest.raises(ScenarioError, match=message):
        EdgeNetwork(BAD[message], "clients")


def test_names_are_python_s_own_and_true_is_not_1(tmp_path):
    graph = nx.path_graph(7).to_directed()
    graph = nx.relabel_nodes(graph, {n: np.int64(n) for n in graph})
    nx.set_node_attributes(graph, 1e9, "speed")
    nx.set_edge_attributes(graph, 1e6, "rate")
    network = EdgeNetwork(graph, np.int64(0))
    assert network.source == 0 and {type(node) for node in (*network.nodes, network.source)} == {int}
    assert EdgeNetwork.load(network.save(tmp_path / "network.json")) == network
    for source in (False, np.False_, 0.0, [0], None, 9):
        with pytest.raises(ScenarioError, match="expected one of the nodes 0, 1, 2, 3, 4, ..., got"):
            EdgeNetwork(graph, source)


def test_labels_are_quoted_where_numbers_and_strings_look_alike():
    graph = graph_of(
        {1: {"speed": 1e9}, "1": {"speed": 1e9}, "2": {}}, [(1, "1", {"rate": 1}), ("1", "2", {"rate": 1})]
    )
    assert EdgeNetwork(graph, 1).labels == {1: "1", "1": "'1'", "2": "2"}


def test_bad_duplex_is_refused():
    with pytest.raises(ScenarioError, match="EdgeNetwork.duplex: expected one of 'full', 'half', got 'simplex'"):
        EdgeNetwork(graph_of(), "clients", "simplex")


def test_an_infinite_rate_is_a_link_that_costs_nothing_but_latency():
    graph = changed(lambda g: g.edges[1, 2].update(rate=np.inf))
    assert EdgeNetwork(graph, "clients").rate[2] == np.inf


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("n_servers", [1, 2, 9])
def test_sampled_networks(topology, n_servers):
    for seed in range(5):
        network = EdgeNetwork.sample(
            n_servers, seed, topology, relays=n_servers // 3, memory_range=(1e9, 2e9), rate_range=(1e6, 5e6),
            server_speed_range=(2e9, 3e9), latency_range=(0, 0.1), overhead=0.5, source_speed=7.0, duplex="half",
        )  # fmt: skip
        assert network == EdgeNetwork.sample(
            n_servers, seed, topology, relays=n_servers // 3, memory_range=(1e9, 2e9), rate_range=(1e6, 5e6),
            server_speed_range=(2e9, 3e9), latency_range=(0, 0.1), overhead=0.5, source_speed=7.0, duplex="half",
        )  # fmt: skip
        assert network.nodes == tuple(range(n_servers + 1)) and network.source == 0
        assert network.speed[0] == 7.0 and network.duplex == "half"
        assert (~network.computes).sum() == n_servers // 3
        speed, memory = network.speed[1:][network.computes[1:]], network.memory[1:][network.computes[1:]]
        assert ((speed >= 2e9) & (speed <= 3e9)).all() and ((memory >= 1e9) & (memory <= 2e9)).all()
        assert ((network.rate >= 1e6) & (network.rate <= 5e6)).all()
        assert ((network.latency >= 0) & (network.latency <= 0.1)).all()
        np.testing.assert_array_equal(network.rate, network.rate[network.reverse])
        assert len(network.positions) == n_servers + 1
        n_links = len(network.edges) // 2
        assert n_links == n_servers if topology in ("line", "tree") else n_links >= n_servers


def test_degree_of_meshes():
    for topology in ("mesh", "geometric"):
        links = [len(EdgeNetwork.sample(19, 1, topology, degree=d).edges) // 2 for d in (0, 4, 100)]
        assert links == [19, 40, 190]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"topology": "ring"}, "topology: expected one of 'mesh', 'line', 'tree', 'geometric', got 'ring'"),
        ({"n_servers": 0}, "n_servers: expected at least 1, got 0"),
        ({"relays": 9}, "relays: expected at most n_servers = 8, got 9"),
        ({"rate_range": (2, 1)}, "rate_range: expected the lowest value first"),
        ({"rate_range": (0, 1)}, "rate_range: expected values above 0"),
        ({"source_speed": 0}, "source_speed: expected values above 0"),
        ({"degree": -1}, "degree: expected values of at least 0"),
    ],
)
def test_bad_samples_are_refused(arguments, message):
    with pytest.raises(ScenarioError, match=message):
        EdgeNetwork.sample(**arguments)
