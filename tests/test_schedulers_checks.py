"""What every scheduler says to the wrong kinds of arguments, and to speeds in the wrong unit."""

import networkx as nx
import numpy as np
import pytest

from epsl_scenarios import random_profile
from psl.errors import ScenarioError
from psl.networks import EdgeCluster, EdgeNetwork, WirelessCell
from psl.profiles import Profile
from psl.schedulers import edgesplit, epsl, pipeline

PROFILE = random_profile(np.random.default_rng(0))
SCENARIOS = {
    epsl: ("cell", WirelessCell.sample(2, 4)),
    edgesplit: ("cluster", EdgeCluster.sample(2)),
    pipeline: ("network", EdgeNetwork.sample(2)),
}
EACH = pytest.mark.parametrize("scheduler", SCENARIOS, ids=lambda module: module.__name__.split(".")[-1])


@EACH
def test_arguments_of_another_kind_are_refused(scheduler):
    what, scenario = SCENARIOS[scheduler]
    kind = type(scenario).__name__
    others = [other for _, other in SCENARIOS.values() if other is not scenario] + [nx.DiGraph([(0, 1)]), None]
    for other in others:
        want = f"{what}: expected an? {kind}, got {type(other).__name__}. Fix: .*{kind}"
        with pytest.raises(ScenarioError, match=want):
            scheduler.solve(PROFILE, other)
    with pytest.raises(ScenarioError, match=f"profile, {what}: expected a Profile and an? {kind}, .*Fix: swap"):
        scheduler.solve(scenario, PROFILE)
    for other in (None, nx.DiGraph(), [1.0]):
        with pytest.raises(ScenarioError, match=f"profile: expected a Profile, got {type(other).__name__}. Fix: make"):
            scheduler.solve(other, scenario)


def test_a_digraph_is_to_be_wrapped():
    with pytest.raises(ScenarioError, match=r"got DiGraph. Fix: wrap a networkx.DiGraph: EdgeNetwork\(graph, source\)"):
        pipeline.solve(PROFILE, nx.DiGraph([(0, 1)]))
    stages = [(0, 0, PROFILE.n_units)]
    for call in (
        pipeline.PipelinePlan,
        lambda *a: pipeline.latency(*a[:2], stages=[], hops=[], micro_batch=1, batch_size=1),
    ):
        with pytest.raises(ScenarioError, match="network: expected an EdgeNetwork, got DiGraph"):
            call(PROFILE, nx.DiGraph([(0, 1)]), 1, 1, stages, [])


def line(speed) -> EdgeNetwork:
    graph = nx.path_graph(2).to_directed()
    nx.set_node_attributes(graph, speed, "speed")
    nx.set_edge_attributes(graph, 1e6, "rate")
    return EdgeNetwork(graph, 0)


def test_speeds_in_the_other_unit_are_refused():
    with pytest.raises(
        ScenarioError, match="network: expected speeds in FLOP/s, .*got 100 for the fastest.*Fix: give FLOP/s"
    ):
        pipeline.solve(PROFILE, line(100.0))
    measured = Profile.measured(["in", "out"], [0, 1.0], [0, 2.0], [8, 8])
    with pytest.raises(ScenarioError, match="network: expected speeds relative to the reference device.*got 1e.09"):
        pipeline.solve(measured, line(1e9))
    assert pipeline.solve(measured, line(100.0), batch_size=2).round_time > 0
    assert pipeline.solve(PROFILE, line(1e9), batch_size=2).round_time > 0
