"""A floor on the cut: plans and certificates of the constrained problem against exhaustive search, and its price."""

import dataclasses
import itertools

import networkx as nx
import numpy as np
import pytest

import oracles
import psl
from edgesplit_oracles import bits as edgesplit_bits
from edgesplit_oracles import compute_seconds, cuts_that_fit, fixed_cuts
from epsl_scenarios import random_cell, random_profile
from psl.errors import InfeasibleError, ScenarioError
from psl.schedulers import edgesplit, epsl, pipeline


def allowed_from(profile, floor):
    """A copy of a profile whose cuts before the floor cost so much that no plan has them."""
    sent = profile.act_bits.copy()
    sent[:floor] = 1e18
    return dataclasses.replace(profile, act_bits=sent)


@pytest.mark.parametrize("seed", range(12))
def test_epsl_with_a_floor_is_optimal_and_bounded(seed):
    rng = np.random.default_rng(seed)
    profile, cell = random_profile(rng), random_cell(rng, 2, 5)
    for floor in (2, 3):
        optimum, cut, _ = oracles.exhaustive(allowed_from(profile, floor), cell, 16, 0.5)
        plan = epsl.solve(profile, cell, batch_size=16, phi=0.5, min_cut=floor)
        assert plan.cut >= floor and cut >= floor
        assert plan.lower_bound <= optimum * (1 + 1e-8)
        assert optimum * (1 - 1e-8) <= plan.round_time <= optimum * 1.01
        assert plan.price >= 1
        free = epsl.solve(profile, cell, batch_size=16, phi=0.5)
        assert plan.price == pytest.approx(plan.round_time / min(free.round_time, plan.round_time))
    assert np.isnan(free.price)


@pytest.mark.parametrize("method", epsl.METHODS)
def test_every_method_of_epsl_obeys_the_floor(method):
    rng = np.random.default_rng(5)
    profile, cell = random_profile(rng, n_units=6), random_cell(rng, 3, 8)
    plan = epsl.solve(profile, cell, batch_size=16, method=method, min_cut="unit4")
    assert plan.cut >= 4 and plan.min_cut == 4
    assert plan.price >= 1
    assert "without min_cut" in repr(plan)
    assert "over the free optimum" in plan._repr_html_()
    assert epsl.EPSLPlan.from_dict(plan.to_dict()) == plan
    changed = dataclasses.replace(plan, min_cut=1)
    assert np.isnan(changed.lower_bound) and np.isnan(changed.price), "another problem: no proof, no price"


def random_cluster(rng, n):
    return psl.EdgeCluster(
        device_speed=rng.lognormal(24, 1, n),
        device_memory=np.full(n, 1e15),
        spectral_efficiency=rng.uniform(0.5, 6, n),
        bandwidth=rng.lognormal(16, 1),
        server_speed=rng.lognormal(27, 1),
    )


@pytest.mark.parametrize("seed", range(15))
def test_edgesplit_with_a_floor_per_device_is_the_optimum(seed):
    rng = np.random.default_rng(seed)
    profile, cluster = random_profile(rng), random_cluster(rng, 3)
    floors = rng.integers(1, 5, 3)
    choices = [[j for j in cuts_that_fit(profile, cluster, i, 8) if j >= floors[i]] for i in range(3)]
    optimum = min(
        fixed_cuts(
            np.array([compute_seconds(profile, cluster, i, j, 8, 2) for i, j in enumerate(cuts)]),
            np.array([edgesplit_bits(profile, j, 8, 2) / cluster.spectral_efficiency[i] for i, j in enumerate(cuts)]),
            cluster.bandwidth,
        )
        for cuts in itertools.product(*choices)
    )
    for method in ("exact", "bisection", "alternating"):
        plan = edgesplit.solve(profile, cluster, batch_size=8, local_steps=2, min_cut=floors, method=method)
        assert (plan.cuts >= floors).all()
        assert plan.round_time == pytest.approx(optimum, rel=1e-7)
        assert plan.lower_bound == pytest.approx(optimum, rel=1e-7)
        if floors.max() > 1:
            assert plan.price >= 1 - 1e-9
            assert edgesplit.EdgeSplitPlan.from_dict(plan.to_dict()) == plan
    common = edgesplit.solve(profile, cluster, batch_size=8, local_steps=2, min_cut=floors, method="sfl")
    assert common.cut >= floors.max()


def test_large_clusters_obey_floors_per_device_too():
    rng = np.random.default_rng(1)
    profile, cluster = random_profile(rng, n_units=8), random_cluster(rng, 2000)
    floors = rng.integers(1, 9, 2000)
    plan = edgesplit.solve(profile, cluster, batch_size=8, min_cut=floors)
    assert (plan.cuts >= floors).all()
    small = psl.schedulers.edgesplit.enumeration.EnumeratedProblem(profile, cluster, 8, 1, floors)
    from psl.schedulers.edgesplit.policy_iteration import best_split

    assert plan.round_time == pytest.approx(best_split(small)[2], rel=1e-9)


def line(rng, n):
    graph = nx.DiGraph()
    for v in range(n):
        graph.add_node(v, speed=rng.lognormal(24, 1), overhead=1e-4, memory=np.inf)
    for v in range(n - 1):
        for u, w in ((v, v + 1), (v + 1, v)):
            graph.add_edge(u, w, rate=rng.lognormal(17, 1), latency=1e-4)
    return psl.EdgeNetwork(graph, 0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("objective", ["time", "interval"])
def test_a_pipeline_with_a_floor_is_the_optimum(seed, objective):
    rng = np.random.default_rng(seed)
    profile, network = random_profile(rng), line(rng, 3)
    for floor in (2, 3):
        plan = pipeline.solve(profile, network, batch_size=8, micro_batch=2, objective=objective, min_cut=floor)
        best = min(
            (
                pipeline.PipelinePlan(profile, network, 8, 2, stages, hops, objective=objective).value
                for stages, hops in all_plans(profile.n_units, 3)
                if stages[0][2] >= floor
            )
        )
        assert plan.stages[0][2] >= floor
        assert plan.value == pytest.approx(best, rel=1e-9)
        assert plan.exact and plan.price >= 1
        assert pipeline.PipelinePlan.from_dict(plan.to_dict()) == plan


def all_plans(n_units, n_nodes):
    """Yield stages and hops of every division of a model over a line of nodes from node 0; nodes may relay."""
    for n_stages in range(1, n_nodes + 1):
        for hosts in itertools.combinations(range(1, n_nodes), n_stages - 1):
            for inner in itertools.combinations(range(1, n_units), n_stages - 1):
                ends, nodes = [0, *inner, n_units], [0, *hosts]
                stages = [(v, i, j) for v, i, j in zip(nodes, ends, ends[1:], strict=False)]
                hops = [
                    (cut, v, v + 1) for cut, a, b in zip(inner, nodes, nodes[1:], strict=False) for v in range(a, b)
                ]
                yield stages, hops


@pytest.mark.parametrize("method", [m for m in pipeline.METHODS if m != "random-cuts"])
def test_every_method_of_the_pipeline_obeys_the_floor(method):
    rng = np.random.default_rng(3)
    profile, network = random_profile(rng, n_units=6), line(rng, 4)
    plan = pipeline.solve(profile, network, batch_size=8, method=method, min_cut=3)
    assert plan.stages[0][2] >= 3 and plan.price >= 1


def test_a_floor_that_cannot_be_kept_says_what_is_reachable():
    rng = np.random.default_rng(0)
    profile, cell = random_profile(rng), random_cell(rng, 2, 4)
    with pytest.raises(InfeasibleError, match=r"min_cut: expected at most 3 \('unit3'\), so that the last layer stays"):
        epsl.solve(profile, cell, min_cut=4)
    with pytest.raises(ScenarioError, match="cut: expected at least min_cut = 3, got 1"):
        epsl.solve(profile, cell, cut=1, min_cut=3)
    with pytest.raises(ScenarioError, match="min_cut: expected at least 1"):
        epsl.solve(profile, cell, min_cut=0)
    cluster = random_cluster(rng, 2)
    memory = profile.training_memory(8)
    tight = dataclasses.replace(cluster, device_memory=np.array([memory[2], memory[4]]))
    with pytest.raises(InfeasibleError, match=r"device 0.*cut 3 .*it holds cut 2 at most"):
        edgesplit.solve(profile, tight, batch_size=8, min_cut=[3, 1])
    with pytest.raises(ScenarioError, match="min_cut: expected 2 floors, one per device"):
        edgesplit.solve(profile, cluster, min_cut=[1, 2, 3])
    network = line(rng, 2)
    graph = network.graph.copy()
    graph.nodes[0]["memory"] = profile.training_memory(8)[2]
    with pytest.raises(InfeasibleError, match=r"min_cut: expected at most 2 \('unit2'\), all that the source 0 holds"):
        pipeline.solve(profile, psl.EdgeNetwork(graph, 0), batch_size=8, min_cut=3)
