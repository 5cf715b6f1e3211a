"""Prices on nodes and links: bounds below the optimum, and searches that use them against brute force."""

import dataclasses

import numpy as np
import pytest

from pipeline_oracles import brute_force
from pipeline_scenarios import random_network, random_profile
from psl.networks import EdgeNetwork
from psl.schedulers.pipeline import PipelineProblem, best_placement, label_setting, placement_below
from psl.schedulers.pipeline.prices import Prices, raised


def instance(seed, n_units=5, n_nodes=5):
    """A problem on fast links, where shortest paths come back to nodes and links, and a micro-batch size."""
    rng = np.random.default_rng(seed)
    profile = random_profile(rng, n_units)
    network = random_network(rng, n_nodes, relays=int(rng.integers(2)), tight=False)
    graph = network.graph.copy()
    for _, _, values in graph.edges(data=True):
        values["rate"] *= 100
    return profile, EdgeNetwork(graph, network.source, network.duplex), int(rng.choice([1, 2, 4]))


@pytest.mark.parametrize("links", ["once", "separate", "shared"])
def test_searches_with_prices_match_brute_force(links, monkeypatch):
    monkeypatch.setattr(label_setting, "_PATIENCE", 4)  # labels run out at once, so that prices are raised
    used = []
    real = label_setting.raised
    monkeypatch.setattr(label_setting, "raised", lambda *args: used.append(1) or real(*args))
    for seed in (*range(8), 37):
        profile, network, m = instance(seed)
        optimum, _, _ = brute_force(profile, network, 16, m, links)
        problem = PipelineProblem(profile, network, 16)
        found = best_placement(problem, m, links=links)
        assert found.exact and found.value == pytest.approx(optimum, rel=1e-9), f"seed {seed}"
        assert placement_below(problem, m, optimum * (1 - 1e-9), links=links) is None, f"seed {seed}"
        below = placement_below(problem, m, optimum * 1.01, links=links)
        assert below is not None and below.value == pytest.approx(optimum, rel=1e-9), f"seed {seed}"
    assert len(used) >= 5


def test_bounds_of_searches_that_give_up_are_below_the_optimum(monkeypatch):
    monkeypatch.setattr(label_setting, "_PATIENCE", 2)
    given_up = 0
    for seed in range(20):
        profile, network, m = instance(seed)
        optimum, _, _ = brute_force(profile, network, 16, m)
        found = best_placement(PipelineProblem(profile, network, 16), m, max_labels=8)
        assert found.lower_bound <= optimum * (1 + 1e-12) and found.value >= optimum * (1 - 1e-12), f"seed {seed}"
        given_up += not found.exact
    assert given_up >= 3


@pytest.mark.parametrize("once", [True, False])
def test_any_prices_give_a_bound_and_steps_raise_it(once):
    better = 0
    for seed in range(12):
        profile, network, m = instance(seed)
        optimum, _, _ = brute_force(profile, network, 16, m, "once" if once else "separate")
        problem = PipelineProblem(profile, network, 16)
        tables = problem.tables(m)
        stage, linear = tables.stage.copy(), tables.stage_linear.copy()
        stage[1:, :, problem.source] = linear[1:, :, problem.source] = np.inf
        tables = dataclasses.replace(tables, stage=stage, stage_linear=linear)
        rng = np.random.default_rng(seed)
        prices = rng.exponential(0.1 * optimum, problem.n_nodes), rng.exponential(0.1 * optimum, problem.n_edges)
        any_prices = Prices(prices[0], prices[1] * once)
        first = raised(problem, tables, Prices.none(problem), np.inf, once, 1)
        for found in (raised(problem, tables, any_prices, np.inf, once, 1), first):
            assert found.bound <= optimum * (1 + 1e-12), f"seed {seed}"
        last = raised(problem, tables, Prices.none(problem), optimum * (1 + 1e-9), once, 40)
        assert first.bound <= last.bound <= optimum * (1 + 1e-9), f"seed {seed}"
        better += last.bound > first.bound * (1 + 1e-6)
    assert better >= 2
