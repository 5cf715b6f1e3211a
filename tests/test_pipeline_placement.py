"""Placements: equal to brute force and to one Dijkstra per threshold, cut off, given up, and impossible."""

import networkx as nx
import numpy as np
import pytest

from marks import some
from pipeline_naive import adjacency, efficient_pairs, heap_search, networkx_search, state_graph, thresholds_of
from pipeline_oracles import brute_force
from pipeline_scenarios import random_network, random_profile
from psl.errors import InfeasibleError, ScenarioError
from psl.networks import EdgeNetwork
from psl.schedulers.pipeline import (
    LINKS,
    PipelineProblem,
    best_placement,
    latency,
    pareto_front,
    placement_below,
    relax,
)
from psl.schedulers.pipeline.label_setting import PlacementSearch
from psl.schedulers.pipeline.path import Path


def instance(seed, units=(2, 6), nodes=(2, 6), **options):
    rng = np.random.default_rng(seed)
    profile, batch_size = random_profile(rng, int(rng.integers(*units))), int(rng.integers(1, 17))
    network = random_network(rng, int(rng.integers(*nodes)), profile, batch_size, **options)
    return PipelineProblem(profile, network, batch_size), int(rng.integers(1, batch_size + 1))


def found_by(call):
    """Return the placement or None where there is none."""
    try:
        return call()
    except InfeasibleError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("block", some(range(8), lambda block: block < 2))
def test_equals_brute_force(block):
    repaired = impossible = 0
    for seed in range(250 * block, 250 * (block + 1)):
        problem, b = instance(seed, relays=None if seed % 2 else 0)
        modes = [("once", "time"), ("shared", "time"), ("separate", "time"), (LINKS[seed % 3], "interval")]
        for links, objective in modes:
            case = f"seed {seed}, {links}, {objective}"
            value, _, _ = brute_force(problem.profile, problem.network, problem.batch_size, b, links, objective)
            best = found_by(lambda: best_placement(problem, b, links=links, objective=objective))  # noqa: B023
            if best is None:
                impossible += 1
                assert value == np.inf, case
                continue
            repaired += best.labels > 0
            assert best.value == pytest.approx(value, rel=1e-9), case
            assert best.exact and best.value * (1 - 1e-12) <= best.lower_bound <= best.value, case
    assert repaired > 130 and impossible < 270  # the repair was put to the test, and most draws have a plan


def test_what_is_found_is_a_plan_of_that_time():
    for seed in range(70):
        problem, b = instance(seed, (4, 9), (4, 8))
        for links in ("once", "shared", "separate"):
            best = found_by(lambda: best_placement(problem, b, links=links))  # noqa: B023
            if best is not None:
                terms = latency(
                    problem.profile, problem.network, stages=best.stages, hops=best.hops, micro_batch=b,
                    batch_size=problem.batch_size, links=links,
                )  # fmt: skip
                assert terms.total == best.total and terms.interval == best.interval, f"seed {seed}, {links}"
                assert not best.repeated_nodes and not (links == "once" and best.repeated_links)


def test_more_freedom_never_costs():
    differ = 0
    for seed in range(70):
        problem, b = instance(seed, (5, 9), (5, 9), tight=False)
        plain = relax(problem, b)
        once, shared, separate = (best_placement(problem, b, links=links) for links in ("once", "shared", "separate"))
        assert plain.value <= separate.value * (1 + 1e-12), f"seed {seed}"
        assert separate.value <= shared.value * (1 + 1e-12) <= once.value * (1 + 1e-12) ** 2, f"seed {seed}"
        assert not plain.repeats or plain.steps
        differ += plain.value < once.value * (1 - 1e-9)
        if not plain.repeats:
            assert (once.stages, once.hops, once.labels) == (plain.stages, plain.hops, 0)
    assert differ > 5


def test_plain_path_equals_one_dijkstra_per_threshold():
    for seed in range(60):
        problem, b = instance(seed, (3, 7), (3, 7))
        scenario = problem.profile, problem.network, problem.batch_size, b
        more = -(-problem.batch_size // b) - 1
        graph = state_graph(*scenario)
        thresholds, out = thresholds_of(graph), adjacency(graph)
        slow, own = networkx_search(graph, thresholds, more), heap_search(out, thresholds, more)
        assert slow == pytest.approx(own, rel=1e-12)
        best = found_by(lambda: relax(problem, b))  # noqa: B023
        assert (np.inf if best is None else best.value) == pytest.approx(slow, rel=1e-9), f"seed {seed}"
        if best is not None:
            least = relax(problem, b, "interval")
            pairs = efficient_pairs(state_graph(*scenario))
            assert len(best.steps) <= len(pairs) + 1
            assert (least.fill_time, least.interval) == pytest.approx(pairs[-1], rel=1e-9), f"seed {seed}"
            front = pareto_front(problem, b)
            np.testing.assert_allclose(front[["fill_time", "interval"]], pairs, rtol=1e-9, err_msg=f"seed {seed}")
            assert front["total"].min() == pytest.approx(best.value, rel=1e-9)


@pytest.mark.parametrize("objective", ["time", "interval"])
def test_cutoff(objective):
    for seed in range(60):
        problem, b = instance(seed)
        for links in ("once", "shared"):
            options = {"links": links, "objective": objective}
            best = found_by(lambda: best_placement(problem, b, **options))  # noqa: B023
            if best is not None:
                assert placement_below(problem, b, best.value * (1 - 1e-9), **options) is None
                again = placement_below(problem, b, best.value * (1 + 1e-9), **options)
                assert again.value == pytest.approx(best.value, rel=1e-9), f"seed {seed}, {links}"


def test_giving_up_says_so():
    given_up = 0
    for seed in range(70):
        problem, b = instance(seed, (5, 9), (5, 9), tight=False)
        for links in ("once", "shared"):
            best = best_placement(problem, b, links=links)
            hasty = best_placement(problem, b, links=links, max_labels=20)
            given_up += not hasty.exact
            assert not hasty.repeated_nodes and not (links == "once" and hasty.repeated_links)
            assert hasty.lower_bound <= best.value * (1 + 1e-12) and best.value <= hasty.value * (1 + 1e-12)
            if hasty.exact:
                assert hasty.value == pytest.approx(best.value, rel=1e-12), f"seed {seed}, {links}"
    assert given_up > 5


def test_finer_classes_of_the_interval_change_nothing(monkeypatch):
    monkeypatch.setattr("psl.schedulers.pipeline.label_setting._PATIENCE", 3)
    for seed in range(0, 400, 10):
        problem, b = instance(seed)
        for links in ("once", "shared", "separate"):
            value, _, _ = brute_force(problem.profile, problem.network, problem.batch_size, b, links)
            best = found_by(lambda: best_placement(problem, b, links=links))  # noqa: B023
            assert (np.inf if best is None else best.value) == pytest.approx(value, rel=1e-9), f"seed {seed}, {links}"


def test_hosts_beyond_the_bounds_tables_are_remembered_by_labels(monkeypatch):
    monkeypatch.setattr("psl.schedulers.pipeline.completion_bounds._TABLE", 1.0)
    for seed in range(0, 400, 10):
        problem, b = instance(seed)
        value, _, _ = brute_force(problem.profile, problem.network, problem.batch_size, b, "once")
        best = found_by(lambda: best_placement(problem, b))  # noqa: B023
        assert (np.inf if best is None else best.value) == pytest.approx(value, rel=1e-9), f"seed {seed}"


def test_one_node_alone_trains_without_a_network():
    profile = random_profile(np.random.default_rng(0))
    graph = nx.DiGraph()
    graph.add_node("all", speed=1e9)
    problem = PipelineProblem(profile, EdgeNetwork(graph, "all"), 8)
    for objective in ("time", "interval"):
        best = best_placement(problem, 8, objective=objective)
        assert best.stages == (("all", 0, 4),) and best.hops == ()
    assert best.total == pytest.approx(8 * (profile.fwd_cost[-1] + profile.bwd_cost[-1]) / 1e9)
    assert best_placement(problem, 2).total == pytest.approx(best.total)


def test_free_links_lead_in_no_circle():
    rng = np.random.default_rng(5)
    profile = random_profile(rng, 5)
    graph = nx.complete_graph(5, nx.DiGraph)
    for n in graph:
        graph.nodes[n]["speed"] = 0 if n in (1, 2) else 1e9 * (n + 1)
    nx.set_edge_attributes(graph, np.inf, "rate")
    graph.remove_edges_from([(0, 4), (4, 0)])
    problem = PipelineProblem(profile, EdgeNetwork(graph, 0), 8)
    best = best_placement(problem, 1)
    assert best.value == pytest.approx(brute_force(profile, problem.network, 8, 1)[0], rel=1e-9)
    assert relax(problem, 1).value <= best.value


def test_without_a_reason_to_move_everything_stays():
    profile = random_profile(np.random.default_rng(0))
    network = EdgeNetwork.sample(5, 0, source_speed=1e12, server_speed_range=(1e9, 2e9), rate_range=(1.0, 2.0))
    assert best_placement(PipelineProblem(profile, network, 8), 8).stages == ((0, 0, 4),)


def memory_instance(**memories):
    profile = random_profile(np.random.default_rng(1), 3)
    graph = nx.DiGraph()
    for node in ("source", "a", "b"):
        graph.add_node(node, speed=1e9, memory=memories.get(node, np.inf))
    for u, v in (("source", "a"), ("a", "b")):
        graph.add_edge(u, v, rate=1e6)
        graph.add_edge(v, u, rate=1e6)
    return PipelineProblem(profile, EdgeNetwork(graph, "source"), 8)


def test_memory_that_decides():
    free = memory_instance()
    # source: unit 1 exactly; a: the largest of the others alone; b: nothing else
    need = free.need
    exact = memory_instance(source=need[0, 1], a=need[1, 2], b=need[2, 3])
    assert best_placement(exact, 2).stages == (("source", 0, 1), ("a", 1, 2), ("b", 2, 3))


@pytest.mark.parametrize(
    ("memories", "message"),
    [
        (lambda need: {"source": 1.0}, r"source 'source': expected memory for unit 1 \('unit1'\), .* bytes, got 1\."),
        (
            lambda need: {"source": need[0, 1], "a": need[0, 1] / 1e3, "b": need[0, 1] / 1e3},
            r"expected a node with memory for unit 2 \('unit2'\), 2.892e\+06 bytes, got at most 5677 off the source",
        ),
        (
            lambda need: {"source": need[0, 1], "a": need[2, 3], "b": need[2, 3] / 2},
            r"network: expected memory for the whole model, 1.195e\+07 bytes, got 1.075e\+07 on all nodes together",
        ),
        (
            lambda need: {"source": need[0, 1], "a": need[1, 2] * 0.999, "b": need[1:, 1:].max() * 0.999},
            r"network: expected a path from the source .*, one stage per node and one hop per link, got none",
        ),
    ],
)
def test_a_model_that_fits_nowhere(memories, message):
    problem = memory_instance(**memories(memory_instance().need))
    for objective in ("time", "interval"):
        with pytest.raises(InfeasibleError, match=message):
            best_placement(problem, 2, objective=objective)
    if problem.fits[0, 1, problem.source]:  # the plain path may come back to the source
        assert relax(problem, 2).repeated_nodes and len(pareto_front(problem, 2))
    else:
        with pytest.raises(InfeasibleError, match=message):
            pareto_front(problem, 2)


def test_a_model_that_fits_only_twice_on_one_node():
    # Unit 3 fills b, which is reached through a; units 2 and 4 are left for a, which would have to host twice.
    rng = np.random.default_rng(0)
    profile = random_profile(rng, 4)
    sizes = np.array([1.0, 10.0, 100.0, 10.0])
    profile = type(profile).from_dict(
        profile.to_dict() | {"param_bits": [0.0, *np.cumsum(8 * sizes / 3)], "act_memory": [0.0] * 5}
    )
    graph = nx.DiGraph()
    for node, memory in (("source", 1.0), ("a", 25.0), ("b", 100.0)):
        graph.add_node(node, speed=1e9, memory=memory)
    for u, v in (("source", "a"), ("a", "b")):
        graph.add_edge(u, v, rate=1e6)
        graph.add_edge(v, u, rate=1e6)
    problem = PipelineProblem(profile, EdgeNetwork(graph, "source"), 8)
    assert relax(problem, 2).repeated_nodes == ("a",)
    for links in ("once", "shared", "separate"):
        with pytest.raises(InfeasibleError, match="expected a path from the source.*one stage per node.*got none"):
            best_placement(problem, 2, links=links)
    with pytest.raises(InfeasibleError, match="none within max_labels = 1, .* Fix: raise max_labels"):
        best_placement(problem, 2, max_labels=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: best_placement(p, 9), "micro_batch: expected at most batch_size = 8, got 9"),
        (lambda p: best_placement(p, 1.5), "micro_batch: expected a whole number"),
        (lambda p: best_placement(p, 1, links="many"), "links: expected one of"),
        (lambda p: best_placement(p, 1, objective="speed"), "objective: expected one of 'time', 'interval'"),
        (lambda p: best_placement(p, 1, max_labels=0), "max_labels: expected at least 1"),
        (lambda p: PipelineProblem(p.profile, p.network, 0), "batch_size: expected at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ScenarioError, match=message):
        call(memory_instance())


def test_bounds_never_exceed_what_remains():
    # The search must find the same with every host and link critical from the start.
    for seed in range(0, 300, 10):
        problem, b = instance(seed, (4, 7), (4, 7), tight=False)
        best = best_placement(problem, b)
        search = PlacementSearch(problem, problem.tables(b), "once", 10**6)
        everything = Path([(n, 0, 1) for n in range(problem.n_nodes)] * 2, [(1, e) for e in range(problem.n_edges)])
        path, _, exact = search.run("time", np.inf, everything, relax(problem, b).value)
        assert exact
        stages, hops = path.named(problem.network)
        options = {"stages": stages, "hops": hops, "micro_batch": b, "batch_size": problem.batch_size}
        total = latency(problem.profile, problem.network, **options).total
        assert total == pytest.approx(best.value, rel=1e-12), f"seed {seed}"
