"""The closed form of the pipeline: by hand, against the independent oracle, and the plans that are refused."""

import dataclasses
import json

import networkx as nx
import numpy as np
import pytest

from pipeline_oracles import evaluate
from pipeline_scenarios import random_network, random_profile
from psl.errors import InfeasibleError, ScenarioError
from psl.networks import EdgeNetwork
from psl.profiles import Profile
from psl.schedulers import pipeline


def toy(duplex="full", **source):
    """Three units of 1, 2, 3 FLOP forward, twice that backward; clients - relay - server, 8 bits at cut 1."""
    profile = Profile(
        ["in", "a", "b", "out"], [0, 1, 3, 6], [0, 2, 6, 12], [8, 8, 16, 4], [8, 4, 8, 4], [0, 8, 16, 24], [0, 1, 2, 3]
    )
    graph = nx.DiGraph()
    graph.add_node("clients", speed=1.0, overhead=0.5, **source)
    graph.add_node("relay")
    graph.add_node("server", speed=2.0, memory=1e3)
    graph.add_edge("clients", "relay", rate=4.0, latency=0.25)
    graph.add_edge("relay", "clients", rate=1.0, latency=0.5)
    graph.add_edge("relay", "server", rate=8.0)
    graph.add_edge("server", "relay", rate=8.0)
    return profile, EdgeNetwork(graph, "clients", duplex)


STAGES = [("clients", 0, 1), ("server", 1, 3)]
HOPS = [(1, "clients", "relay"), (1, "relay", "server")]


def toy_latency(duplex="full", **changes):
    profile, network = toy(duplex)
    options = {"stages": STAGES, "hops": HOPS, "micro_batch": 2, "batch_size": 7} | changes
    return pipeline.latency(profile, network, **options)


def test_by_hand():
    full, half = toy_latency(), toy_latency("half")
    # stage on clients: 0.5 + 2·1 and 0.5 + 2·2; on server: 2·5/2 and 2·10/2; first hop 0.25 + 2·8/4 and 0.5 + 2·4/1.
    np.testing.assert_allclose(full.forward, [2.5, 4.25, 2.0, 5.0])
    np.testing.assert_allclose(full.backward, [4.5, 8.5, 1.0, 10.0])
    np.testing.assert_allclose(full.occupancy, [7.0, 8.0, 2.0, 15.0])
    np.testing.assert_allclose(half.occupancy, [7.0, 12.0, 3.0, 15.0])
    np.testing.assert_allclose(full.memory, [3 * 1 + 7 * 1, 0, 0, 3 * 2 + 7 * 2])
    assert full.n_micro_batches == 4
    assert full.fill_time == pytest.approx(37.75) and full.interval == 15.0
    assert full.total == pytest.approx(37.75 + 3 * 15.0)
    frame = full.to_frame()
    assert list(frame.index) == ["clients: 0-1", "clients -> relay at cut 1", "relay -> server at cut 1", "server: 1-3"]
    assert list(frame["is_bottleneck"]) == [False, False, False, True]
    np.testing.assert_allclose(frame["linear_s"].sum(), full.fill_time)
    assert "bottleneck server: 1-3" in repr(full)


def test_one_micro_batch_is_no_pipeline():
    assert toy_latency(micro_batch=7).total == toy_latency(micro_batch=7).fill_time


def test_measured_nodes_take_their_own_seconds():
    profile, network = toy()
    graph = nx.DiGraph(network.graph)
    own = Profile.measured(profile.names, profile.fwd_cost / 2, profile.bwd_cost / 2, profile.act_bits)
    graph.add_node("server", speed=1e9, profile=own)
    measured = EdgeNetwork(graph, "clients")
    options = {"stages": STAGES, "hops": HOPS, "micro_batch": 2, "batch_size": 7}
    expected = pipeline.latency(profile, network, **options)
    assert pipeline.latency(profile, measured, **options) == expected
    in_seconds = dataclasses.replace(profile, unit="s")
    assert pipeline.latency(in_seconds, network, **options) == expected
    graph.nodes["server"].pop("profile")
    with pytest.raises(ScenarioError, match="expected speeds relative to the reference device"):
        pipeline.latency(in_seconds, EdgeNetwork(graph, "clients"), **options)
    other = Profile.measured(["x", "y"], [0, 1], [0, 1], [1, 1])
    graph.nodes["server"]["profile"] = other
    with pytest.raises(ScenarioError, match="node 'server': profile: expected the 4 cuts of the profile"):
        pipeline.latency(profile, EdgeNetwork(graph, "clients"), **options)


def test_shared_links_add_up():
    profile, network = toy()
    graph = nx.DiGraph(network.graph)
    graph.add_node("leaf", speed=2.0)
    for u, v in (("server", "leaf"), ("leaf", "server")):
        graph.add_edge(u, v, rate=8.0)
    stages = [("clients", 0, 1), ("leaf", 1, 2), ("server", 2, 3)]
    hops = [*HOPS, (1, "server", "leaf"), (2, "leaf", "server")]
    options = {"stages": stages, "hops": hops, "micro_batch": 1, "batch_size": 4}
    for duplex, separate, shared in (("full", [1, 2], [2.5, 2.5]), ("half", [1.5, 3], [4.5, 4.5])):
        network = EdgeNetwork(graph, "clients", duplex)
        with pytest.raises(ScenarioError, match="expected every link at most once, got several hops over 'leaf'"):
            pipeline.latency(profile, network, **options)
        apart = pipeline.latency(profile, network, **options, links="separate")
        together = pipeline.latency(profile, network, **options, links="shared")
        # towards the leaf 8 bits of cut 1 and 8 of gradients of cut 2, from it 16 and 4
        np.testing.assert_allclose(apart.occupancy[[3, 5]], separate)
        np.testing.assert_allclose(together.occupancy[[3, 5]], shared)
        assert apart.fill_time == together.fill_time


def test_against_the_oracle():
    found = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        profile = random_profile(rng, 5)
        network = random_network(rng, 5, profile, 12)
        links = ("once", "shared", "separate")[seed % 3]
        b = int(rng.integers(1, 13))
        try:
            best = pipeline.best_placement(pipeline.PipelineProblem(profile, network, 12), b, links=links)
        except InfeasibleError:
            continue
        found += 1
        plan = pipeline.PipelinePlan(profile, network, 12, b, best.stages, best.hops, links=links)
        want = evaluate(profile, network, best.stages, best.hops, 12, b, links)
        np.testing.assert_allclose(
            (plan.fill_time, plan.interval, plan.round_time), want, rtol=1e-12, err_msg=f"{seed}"
        )
        assert (best.fill_time, best.interval, best.total) == (plan.fill_time, plan.interval, plan.round_time)
    assert found > 150


def test_plan_record(tmp_path):
    profile, network = toy()
    plan = pipeline.PipelinePlan(profile, network, 7, 2, STAGES, HOPS, lower_bound=80.0, method="by hand")
    assert pipeline.PipelinePlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert pipeline.PipelinePlan.load(plan.save(tmp_path / "plan.json")) == plan
    assert plan.round_time == plan.round_time == plan.value == plan.framework_round_time("pipeline") == 82.75
    assert plan.gap == pytest.approx(82.75 / 80 - 1) and not plan.exact
    assert (plan.n_clients, plan.batch_size, plan.n_micro_batches) == (1, 7, 4)
    assert plan.cuts == (1,) and plan.cut_names == ("a",) and plan.scheduler == "pipeline"
    assert len(plan.to_frame()) == 4
    assert "clients:0-1 → server:1-3, m=2" in repr(plan)
    by_interval = dataclasses.replace(plan, objective="interval", lower_bound=15.0, proven_for="")
    assert by_interval.value == 15.0 and by_interval.gap == 0.0 and "optimal" in repr(by_interval)
    with pytest.raises(ScenarioError, match="framework: expected 'pipeline', .*, got 'epsl'"):
        plan.framework_round_time("epsl")


def twins():
    """Return a profile of 3 units, the nodes 0, 1 and "1" in a row, and a plan's stages and hops over all of them."""
    graph = nx.path_graph([0, 1, "1"]).to_directed()
    nx.set_node_attributes(graph, 1.0, "speed")
    nx.set_edge_attributes(graph, 8.0, "rate")
    return toy()[0], EdgeNetwork(graph, 0), [(0, 0, 1), (1, 1, 2), ("1", 2, 3)], [(1, 0, 1), (2, 1, "1")]


def test_nodes_that_look_alike_are_told_apart():
    profile, network, stages, hops = twins()
    plan = pipeline.PipelinePlan(profile, network, 4, 2, stages, hops)
    assert "0:0-1 → 1:1-2 → '1':2-3, m=2" in repr(plan)
    assert list(plan.to_frame().index) == ["0: 0-1", "0 -> 1 at cut 1", "1: 1-2", "1 -> '1' at cut 2", "'1': 2-3"]


def test_plans_keep_the_network_s_own_names():
    profile, network, stages, hops = twins()
    arrays = (
        [tuple(map(np.int64, stage)) for stage in stages[:2]] + stages[2:],
        [tuple(map(np.int64, hops[0])), hops[1]],
    )
    plan = pipeline.PipelinePlan(profile, network, 4, 2, *arrays)
    assert plan == pipeline.PipelinePlan(profile, network, 4, 2, stages, hops)
    assert {type(value) for step in plan.stages + plan.hops for value in step} == {int, str}
    with pytest.raises(ScenarioError, match="stages: expected nodes that compute, got False"):
        pipeline.PipelinePlan(profile, network, 4, 2, [(False, 0, 1), *stages[1:]], hops)
    with pytest.raises(ScenarioError, match="hops: expected nodes of the network, got True"):
        pipeline.PipelinePlan(profile, network, 4, 2, stages, [(1, 0, True), hops[1]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch": 8}, "micro_batch: expected at most batch_size = 7, got 8"),
        ({"micro_batch": 0}, "micro_batch: expected at least 1"),
        ({"links": "twice"}, "links: expected one of 'once', 'shared', 'separate'"),
        ({"stages": []}, "stages: expected consecutive parts of units 0-3, got none"),
        ({"stages": [("clients", 0, 1), ("server", 2, 3)]}, "expected consecutive parts of units 0-3, got 0-1, 2-3"),
        ({"stages": [("server", 0, 3)]}, "stages: expected the first on the source 'clients', got 'server'"),
        ({"stages": [("clients", 0, 1), ("relay", 1, 3)]}, "stages: expected nodes that compute, got 'relay'"),
        ({"stages": [("clients", 0, 1), ("clients", 1, 3)]}, "expected at most one stage per node, got several"),
        ({"stages": [("clients", 0, 1), ("server", 1, 5)]}, "stages: expected 0 <= i < j <= 3"),
        ({"stages": [("clients", 0)]}, "stages, hops: expected triples"),
        (
            {"stages": [("clients", 0, 1.9), ("server", 1.9, 3)]},
            "expected triples with whole numbers for cuts, got 'float'",
        ),
        ({"stages": [("clients", False, 1), ("server", 1, 3)]}, "with whole numbers for cuts, got False for a cut"),
        ({"hops": [(1.0, u, v) for _, u, v in HOPS]}, "with whole numbers for cuts, got 'float'"),
        ({"stages": [("clients", 0, 1), ([0], 1, 3)]}, r"stages: expected nodes that compute, got \[0\]"),
        ({"hops": [(1, "clients", ["relay"])]}, r"hops: expected nodes of the network, got \['relay'\]"),
        (
            {"hops": HOPS[:1]},
            "hops: expected links from 'clients' to 'server' at cut 1, got a path that ends at 'relay'",
        ),
        ({"hops": [(1, "clients", "server")]}, "got a path that ends at 'clients'"),
        ({"hops": [(2, u, v) for _, u, v in HOPS]}, "got a path that ends at 'clients'"),
        ({"hops": [*HOPS, (3, "server", "relay")]}, r"expected no hop beside the path of the stages, got \(3"),
        ({"batch_size": 7.5}, "batch_size: expected a whole number, got 7.5"),
        ({"batch_size": 700}, "stage 1-3 on node 'server': expected at most 1000 bytes of memory, got 1406"),
    ],
)
def test_bad_plans_are_refused(changes, message):
    with pytest.raises(ScenarioError, match=message):
        toy_latency(**changes)
