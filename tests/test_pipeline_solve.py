"""`solve` of the pipeline scheduler: the joint optimum against brute force, methods, limits and bad input."""

import dataclasses
import json

import networkx as nx
import numpy as np
import pytest

from pipeline_oracles import brute_force, evaluate
from pipeline_scenarios import random_network, random_profile
from psl.errors import InfeasibleError, ScenarioError
from psl.networks import EdgeNetwork
from psl.schedulers import pipeline
from psl.simulation import simulate

LINKS = ("once", "shared", "separate")


def instance(seed, n_units=4, n_nodes=4, batch_size=None, **options):
    rng = np.random.default_rng(seed)
    profile = random_profile(rng, int(rng.integers(2, n_units + 1)))
    batch_size = batch_size or int(rng.integers(1, 13))
    return profile, random_network(rng, int(rng.integers(2, n_nodes + 1)), profile, batch_size, **options), batch_size


def solved(profile, network, batch_size, **options):
    """Return the plan, or None if there is none."""
    try:
        return pipeline.solve(profile, network, batch_size=batch_size, **options)
    except InfeasibleError:
        return None


def change(network, nodes=None, edges=None):
    """Return the network with other attributes on all nodes and edges."""
    graph = nx.DiGraph(network.graph)
    for node in graph:
        graph.add_node(node, **(nodes(node) if nodes else {}))
    for u, v in graph.edges:
        graph.add_edge(u, v, **(edges or {}))
    return EdgeNetwork(graph, network.source, network.duplex)


@pytest.mark.parametrize("links", LINKS)
def test_the_joint_optimum_equals_brute_force_over_sizes_and_placements(links):
    met = 0
    for seed in range(160):
        profile, network, batch_size = instance(seed)
        optimum = min(brute_force(profile, network, batch_size, b, links)[0] for b in range(1, batch_size + 1))
        plan = solved(profile, network, batch_size, links=links)
        if plan is None:
            assert optimum == np.inf, f"seed {seed}"
            continue
        assert plan.round_time == pytest.approx(optimum, rel=1e-9), f"seed {seed}"
        assert plan.exact and plan.gap == 0, f"seed {seed}"
        terms = evaluate(profile, network, plan.stages, plan.hops, batch_size, plan.micro_batch, links)
        assert terms == pytest.approx((plan.fill_time, plan.interval, plan.round_time), rel=1e-12), f"seed {seed}"
        met += 1
    assert met > 120


@pytest.mark.parametrize("links", LINKS)
def test_the_interval_alone_equals_brute_force(links):
    met = 0
    for seed in range(200, 260):
        profile, network, batch_size = instance(seed)
        sizes = pipeline.useful_micro_batches(batch_size)
        oracle = {b: brute_force(profile, network, batch_size, b, links, "interval")[0] for b in map(int, sizes)}
        if solved(profile, network, batch_size) is None:
            continue
        b = int(sizes[len(sizes) // 2])
        options = {"links": links, "objective": "interval"}
        plan = pipeline.solve(profile, network, batch_size=batch_size, micro_batch=b, **options)
        assert plan.interval == pytest.approx(oracle[b], rel=1e-9) and plan.exact, f"seed {seed}"
        free = pipeline.solve(profile, network, batch_size=batch_size, **options)
        per_sample = {b: value / b for b, value in oracle.items()}
        assert free.interval / free.micro_batch == pytest.approx(min(per_sample.values()), rel=1e-9), f"seed {seed}"
        assert per_sample[batch_size] == pytest.approx(min(per_sample.values()), rel=1e-9), f"seed {seed}"
        assert all(value > min(per_sample.values()) for b, value in per_sample.items() if b < free.micro_batch)
        assert free.exact and free.gap == 0, f"seed {seed}"
        met += 1
    assert met > 40


def test_the_alternation_never_gets_worse_nor_beats_the_optimum():
    stuck = 0
    for seed in range(40):
        profile, network, batch_size = instance(seed, 5, 4, batch_size=64)
        exact = solved(profile, network, batch_size)
        if exact is None:
            continue
        for start in (1, 32, 1000):
            plan = pipeline.solve(profile, network, batch_size=batch_size, method="alternating", start=start)
            values = [event["round_time"] for event in plan.history]
            assert all(b <= a * (1 + 1e-12) for a, b in zip(values, values[1:], strict=False)), f"seed {seed}"
            first = pipeline.solve(profile, network, batch_size=batch_size, micro_batch=min(start, 64))
            assert plan.history[0]["round_time"] == first.round_time, f"seed {seed}"
            assert plan.round_time == pytest.approx(values[-1], rel=1e-12), f"seed {seed}"
            assert plan.lower_bound == pytest.approx(exact.round_time, rel=1e-12), f"seed {seed}"
            assert plan.round_time >= exact.round_time * (1 - 1e-12), f"seed {seed}"
            assert plan.exact == (plan.round_time <= exact.round_time * (1 + 1e-11)), f"seed {seed}"
            stuck += not plan.exact
    assert stuck > 5


@pytest.mark.slow
def test_baselines_decide_what_their_name_says_and_nothing_better():
    above = dict.fromkeys(("no-pipeline", "two-tier", "random-cuts", "random-placement"), 0)
    for seed in range(80):
        profile, network, batch_size = instance(seed, tight=False)
        exact = solved(profile, network, batch_size)
        if exact is None:
            continue
        for method in above:
            plan = solved(profile, network, batch_size, method=method, seed=seed)
            if plan is None:
                continue
            assert plan.method == method and plan.lower_bound == pytest.approx(exact.round_time), f"seed {seed}"
            assert plan.round_time >= exact.round_time * (1 - 1e-12), f"seed {seed}"
            assert plan == solved(profile, network, batch_size, method=method, seed=seed), f"seed {seed}"
            above[method] += plan.round_time > exact.round_time * (1 + 1e-9)
            if method == "no-pipeline":
                assert plan.micro_batch == batch_size and plan.n_micro_batches == 1
                assert plan.round_time == pytest.approx(brute_force(profile, network, batch_size, batch_size)[0])
            elif method == "random-placement":
                assert plan.cuts == exact.cuts, f"seed {seed}"
            elif method == "random-cuts":
                assert len(plan.stages) >= 2, f"seed {seed}"
            else:
                # The same by brute force: all servers but one only relay.
                pairs = [
                    change(network, lambda n, keep=(network.source, server): {} if n in keep else {"speed": 0.0})
                    for server in network.nodes
                    if server != network.source
                ]
                sizes = range(1, batch_size + 1)
                optimum = min(brute_force(profile, pair, batch_size, b)[0] for pair in pairs for b in sizes)
                assert plan.round_time == pytest.approx(optimum, rel=1e-9), f"seed {seed}"
    assert min(above.values()) > 3, above


def test_seeds_draw_other_plans_and_fixed_sizes_stay_fixed():
    profile, network, _ = instance(3, 6, 6, relays=0, tight=False)
    plans = [pipeline.solve(profile, network, batch_size=64, method="random-cuts", seed=s) for s in range(8)]
    assert len({plan.stages for plan in plans}) > 3
    joint = pipeline.solve(profile, network, batch_size=64)
    for method in ("exact", "two-tier", "random-cuts", "random-placement"):
        plan = pipeline.solve(profile, network, batch_size=64, micro_batch=5, method=method)
        assert plan.micro_batch == 5 and plan.round_time >= joint.round_time, method
    bare = pipeline.solve(profile, network, batch_size=64, method="two-tier", bound=False)
    assert np.isnan(bare.lower_bound) and np.isnan(bare.gap) and not bare.exact


def test_a_search_cut_short_says_so_and_keeps_a_valid_bound():
    capped = 0
    for seed in range(40):
        profile, network, batch_size = instance(seed, 7, 6, batch_size=16, tight=False)
        exact = solved(profile, network, batch_size)
        short = solved(profile, network, batch_size, max_labels=1)
        if exact is None or short is None:
            continue
        assert short.lower_bound <= exact.round_time * (1 + 1e-12) <= short.round_time * (1 + 2e-12), f"seed {seed}"
        assert short.exact == (short.lower_bound >= short.round_time * (1 - 1e-12)), f"seed {seed}"
        capped += not short.exact
    assert capped > 2


def test_plans_say_where_the_closed_form_may_be_optimistic():
    above, quiet = 0, 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(1, 5))
        graph = nx.path_graph(count).to_directed()
        for node in graph:
            graph.add_node(node, speed=rng.lognormal(0, 1) * 1e9, overhead=rng.choice([0.0, 0.1, 1.0]))
        for u, v in graph.edges:
            graph.add_edge(u, v, rate=rng.choice([1e5, 1e6, 1e7]) * rng.lognormal(0, 1))
        plan = pipeline.PipelinePlan(
            random_profile(rng, count), EdgeNetwork(graph, 0, str(rng.choice(["full", "half"]))), 40, 4,
            stages=[(k, k, k + 1) for k in range(count)], hops=[(k, k - 1, k) for k in range(1, count)],
        )  # fmt: skip
        ratio = simulate(plan, equal_micro_batches=True).makespan / plan.round_time
        assert plan.may_be_optimistic or ratio <= 1 + 1e-9, f"seed {seed}"
        assert ("T may be optimistic" in repr(plan)) == plan.may_be_optimistic
        above, quiet = above + (ratio > 1 + 1e-9), quiet + (not plan.may_be_optimistic)
    assert above > 10 and quiet > 50, (above, quiet)


def test_plans_survive_json():
    profile, network, batch_size = instance(5, batch_size=12, tight=False)
    for method in pipeline.METHODS:
        plan = pipeline.solve(profile, network, batch_size=batch_size, method=method)
        again = pipeline.PipelinePlan.from_dict(json.loads(json.dumps(plan.to_dict())))
        assert again == plan and again.history == plan.history, method


def test_limits():
    for seed in range(30):
        profile, network, _ = instance(seed, 5, 5, tight=False)
        whole = pipeline.solve(profile, network, batch_size=8, micro_batch=8)
        assert whole.n_micro_batches == 1 and whole.round_time == whole.fill_time, f"seed {seed}"

        alone = EdgeNetwork(network.graph.subgraph([network.source]).copy(), network.source)
        plan = pipeline.solve(profile, alone, batch_size=8)  # nobody to overlap with: one piece
        assert plan.stages == ((network.source, 0, profile.n_units),) and plan.micro_batch == 8, f"seed {seed}"

        fast, free = (change(network, edges={"rate": rate, "latency": 0.0}) for rate in (1e18, np.inf))
        a, b = (pipeline.solve(profile, n, batch_size=8, links="shared") for n in (fast, free))
        assert a.round_time == pytest.approx(b.round_time, rel=1e-6), f"seed {seed}"
        slow = pipeline.solve(profile, network, batch_size=8, links="shared")
        assert b.round_time <= slow.round_time, f"seed {seed}"

        one = dataclasses.replace(
            profile,
            **{f.name: getattr(profile, f.name)[[0, -1]] for f in dataclasses.fields(profile) if "_bits" in f.name},
            names=("input", "output"), fwd_cost=profile.fwd_cost[[0, -1]], bwd_cost=profile.bwd_cost[[0, -1]],
            act_memory=profile.act_memory[[0, -1]],
        )  # fmt: skip
        plan = pipeline.solve(one, network, batch_size=8)  # the source computes at least the only unit
        assert plan.stages == ((network.source, 0, 1),) and plan.hops == (), f"seed {seed}"


def small(**memory):
    """Return a profile of three equal units of 100 bytes each, and a line of three nodes."""
    profile = pipeline_profile()
    graph = nx.path_graph(3, create_using=nx.DiGraph).to_undirected().to_directed()
    nx.set_node_attributes(graph, 1e9, "speed")
    nx.set_edge_attributes(graph, 1e9, "rate")
    nx.set_node_attributes(graph, memory.get("memory", np.inf), "memory")
    return profile, EdgeNetwork(nx.DiGraph(graph), 0)


def pipeline_profile():
    profile = random_profile(np.random.default_rng(0), 3)
    steps = np.arange(4.0)
    return dataclasses.replace(
        profile, fwd_cost=steps * 1e9, bwd_cost=steps * 1e9, param_bits=np.zeros(4), act_memory=steps * 100
    )


def test_models_that_do_not_fit_are_refused_by_the_reason():
    assert len(pipeline.solve(*small(memory=100), batch_size=1).stages) == 3
    for method in pipeline.METHODS:
        with pytest.raises(InfeasibleError, match=r"source 0: expected memory for unit 1 .*100 bytes, got 99"):
            pipeline.solve(*small(memory=99), batch_size=1, method=method)
    with pytest.raises(InfeasibleError, match="method 'two-tier': expected a split .* got none.* more servers"):
        pipeline.solve(*small(memory=100), batch_size=1, method="two-tier")
    profile, network = small(memory=200)
    narrow = change(network, lambda node: {"memory": 100.0, "speed": 0.0} if node == 1 else {"memory": 100.0})
    with pytest.raises(InfeasibleError, match="network: expected memory for the whole model, 300 bytes, got 200"):
        pipeline.solve(profile, narrow, batch_size=1, method="random-cuts")
    only_even = change(network, lambda node: {"speed": 0.0, "memory": 0.0} if node else {"memory": 300.0})
    assert pipeline.solve(profile, only_even, batch_size=1).stages == ((0, 0, 3),)
    hard = change(network, lambda node: {"memory": 300.0 if node == 0 else 0.0})
    with pytest.raises(InfeasibleError, match="method 'random-cuts': expected a random draw .* got none in 200"):
        pipeline.solve(profile, hard, batch_size=1, method="random-cuts")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method: expected one of 'exact', 'alternating'.* got 'magic'"),
        ({"objective": "energy"}, "objective: expected one of 'time', 'interval', got 'energy'"),
        ({"links": "twice"}, "links: expected one of 'once', 'shared', 'separate', got 'twice'"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size: expected a whole number, got 2.5"),
        ({"micro_batch": 9}, "micro_batch: expected at most batch_size = 8, got 9"),
        ({"micro_batch": 0}, "micro_batch: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"max_labels": 0}, "max_labels: expected at least 1, got 0"),
        ({"method": "alternating", "start": 0}, "start: expected at least 1, got 0"),
        ({"method": "alternating", "micro_batch": 4}, "micro_batch: expected None for method='alternating'.* got 4"),
        ({"method": "no-pipeline", "micro_batch": 4}, "micro_batch: expected batch_size = 8 for .* got 4"),
        (
            {"method": "alternating", "objective": "interval"},
            "method: expected one of 'exact', 'random-cuts'.*interval",
        ),
        ({"method": "no-pipeline", "objective": "interval"}, "for objective='interval', got 'no-pipeline'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ScenarioError, match=message):
        pipeline.solve(*small(), **{"batch_size": 8, **options})
