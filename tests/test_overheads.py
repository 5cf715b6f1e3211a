"""Time per round and per message: in latencies, plans, bounds, simulations and files."""

import dataclasses
import json

import numpy as np
import pytest

import edgesplit_oracles
from edgesplit_scenarios import BATCH, STEPS, random_case
from epsl_scenarios import random_profile
from oracles import exhaustive
from psl.errors import ScenarioError
from psl.networks import EdgeCluster, WirelessCell
from psl.networks.overheads import TYPICAL_MESSAGE_OVERHEAD, TYPICAL_ROUND_OVERHEAD
from psl.schedulers import edgesplit, epsl
from psl.schedulers.edgesplit.policy_iteration import best_split
from psl.schedulers.edgesplit.problem import EdgeSplitProblem
from psl.simulation import lower_bound, simulate
from test_epsl_exhaustive import small_scenario
from test_epsl_latency import CELL, PLAN, PROFILE


@pytest.mark.parametrize(
    ("framework", "messages", "options"),
    [
        ("epsl", 3, {"phi": 0.5}), ("epsl", 2, {"phi": 1.0}), ("epsl", 2, {"phi": 0.0}), ("psl", 2, {}),
        ("epsl", 2, {"phi": 0.5, "linearise": "sampled"}), ("sfl", 3 * 2 + 2, {"local_steps": 3}),
        ("sl", 2 * (2 + 2), {}), ("fedavg", 2, {"local_steps": 3}),
    ],
)  # fmt: skip
def test_overhead_of_a_round_in_the_cell(framework, messages, options):
    cell = dataclasses.replace(CELL, round_overhead=1000.0, message_overhead=100.0)
    options = {"phi": 0.5, "cut": 1, "framework": framework} | PLAN | options
    free, found = (epsl.latency(PROFILE, where, **options) for where in (CELL, cell))
    assert found.overhead == 1000 + 100 * messages and free.overhead == 0
    assert found.total == pytest.approx(free.total + found.overhead)
    assert "overhead" in found.to_frame().index and "overhead" not in free.to_frame().index


def test_centralised_training_sends_nothing():
    cell = dataclasses.replace(CELL, round_overhead=1000.0, message_overhead=100.0)
    assert epsl.latency(PROFILE, cell, cut=1, phi=0, framework="centralised", **PLAN).overhead == 0


def test_plans_of_a_cell_with_overhead_are_optimal_and_bounded():
    excess = []
    for seed in range(25):
        profile, free, phi = small_scenario(seed)
        rng = np.random.default_rng(seed)
        scale = epsl.solve(profile, free, batch_size=16, phi=phi, bound=False).round_time
        overhead = {"round_overhead": scale * rng.random(), "message_overhead": scale * rng.uniform(0, 5)}
        cell = dataclasses.replace(free, **overhead)
        bits = profile.grad_bits * (np.arange(len(profile.grad_bits)) > rng.integers(0, 3))
        profile = dataclasses.replace(profile, grad_bits=bits)
        optimum, _, _ = exhaustive(profile, cell, 16, phi)
        plan = epsl.solve(profile, cell, batch_size=16, phi=phi)
        assert plan.lower_bound <= optimum * (1 + 1e-8) <= plan.round_time * (1 + 2e-8), f"seed {seed}"
        assert simulate(plan).makespan == pytest.approx(plan.round_time, rel=1e-9), f"seed {seed}"
        assert lower_bound(plan) == pytest.approx(plan.round_time, rel=1e-9), f"seed {seed}"
        excess.append(plan.round_time / optimum - 1)
    assert np.quantile(excess, 0.99) <= 0.01


def test_messages_that_fall_away_move_the_cut():
    profile, cell, phi = small_scenario(17)
    bits = profile.grad_bits * (np.arange(len(profile.grad_bits)) > 1)  # nothing before cut 1 trains
    profile = dataclasses.replace(profile, grad_bits=bits)
    cuts = []
    for overhead in (0.0, 10.0):
        costly = dataclasses.replace(cell, message_overhead=overhead)
        plan = epsl.solve(profile, costly, batch_size=16, phi=phi)
        optimum, cut, _ = exhaustive(profile, costly, 16, phi)
        assert plan.cut == cut and plan.round_time == pytest.approx(optimum, rel=1e-6)
        cuts.append(plan.cut)
    assert cuts == [2, 1]


def cluster_case(seed, **options):
    """Return a scenario with overheads that matter: of the order of a round, over the messages of a round."""
    profile, cluster = random_case(seed, n_units=(1, 5), n_devices=(1, 3), **options)
    rng = np.random.default_rng(seed)
    scale = edgesplit.solve(profile, cluster, batch_size=BATCH, local_steps=STEPS).round_time
    overhead = {"round_overhead": scale * rng.random(), "message_overhead": scale * rng.random() / STEPS}
    return profile, dataclasses.replace(cluster, **overhead)


def test_edgesplit_with_overhead_is_the_optimum_of_exhaustive_search():
    moved = 0
    for seed in range(120):
        profile, cluster = cluster_case(seed)
        optimum = edgesplit_oracles.exhaustive(profile, cluster, BATCH, STEPS)
        for method in ("exact", "bisection", "alternating"):
            plan = edgesplit.solve(profile, cluster, batch_size=BATCH, local_steps=STEPS, method=method)
            if method != "alternating":
                assert plan.round_time == pytest.approx(optimum, rel=1e-9), f"seed {seed}, {method}"
            assert plan.lower_bound == pytest.approx(optimum, rel=1e-9), f"seed {seed}, {method}"
        by_envelopes = best_split(EdgeSplitProblem(profile, cluster, BATCH, STEPS))[2]
        assert by_envelopes == pytest.approx(optimum, rel=1e-9), f"seed {seed}"
        assert simulate(plan).makespan == pytest.approx(plan.round_time, rel=1e-9), f"seed {seed}"
        free = dataclasses.replace(cluster, round_overhead=0, message_overhead=0)
        before = edgesplit.solve(profile, free, batch_size=BATCH, local_steps=STEPS)
        moved += (before.cuts != plan.cuts).any()
    assert moved > 5, "messages move cuts"


def test_edgesplit_in_whole_blocks_with_overhead():
    for seed in range(40):
        profile, cluster = cluster_case(seed, blocks_per_device=(1, 3.4))
        n_blocks = round(cluster.bandwidth / cluster.resource_block)
        plan = edgesplit.solve(profile, cluster, batch_size=BATCH, local_steps=STEPS)
        optimum = edgesplit_oracles.exhaustive_blocks(profile, cluster, BATCH, STEPS, n_blocks)
        assert plan.round_time == pytest.approx(optimum, rel=1e-9), f"seed {seed}"


def test_many_devices_by_envelopes_with_overhead():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        cluster = EdgeCluster.sample(2_000, seed=seed, bandwidth=1e8, round_overhead=0.01, message_overhead=0.05)
        profile = random_profile(rng, 12)
        plans = [edgesplit.solve(profile, cluster, method=method) for method in ("exact", "bisection", "alternating")]
        for plan in plans[1:]:
            assert plan.round_time == pytest.approx(plans[0].round_time, rel=1e-9), f"seed {seed}, {plan.method}"


def test_terms_of_a_device_add_up():
    profile, cluster = cluster_case(4)
    plan = edgesplit.solve(profile, cluster, batch_size=BATCH, local_steps=STEPS)
    table = plan.to_frame()
    assert table["overhead"].min() >= cluster.round_overhead
    names = ["device_compute", "server_compute", "optimizer", "activation_exchange", "model_exchange", "overhead"]
    assert table[names].sum(axis=1).to_numpy() == pytest.approx(plan.device_times)
    assert "overhead" in repr(plan.latency()) and "overhead" in plan._repr_html_()
    free = dataclasses.replace(cluster, round_overhead=0, message_overhead=0)
    assert "overhead" not in edgesplit.solve(profile, free).to_frame()


@pytest.mark.parametrize(
    ("kind", "options"), [(WirelessCell, {"channel": "log-distance"}), (EdgeCluster, {})], ids=["cell", "cluster"]
)
def test_files_without_overhead_are_as_before(kind, options):
    plain = kind.sample(seed=1, **options)
    assert not {"round_overhead", "message_overhead"} & set(plain.to_dict())
    costly = kind.sample(
        seed=1, round_overhead=TYPICAL_ROUND_OVERHEAD, message_overhead=TYPICAL_MESSAGE_OVERHEAD, **options
    )
    assert kind.from_dict(json.loads(json.dumps(costly.to_dict()))) == costly != plain
    assert kind.from_dict(json.loads(json.dumps(plain.to_dict()))) == plain
    for name in ("round_overhead", "message_overhead"):
        with pytest.raises(ScenarioError, match=f"{kind.__name__}.{name}: expected values of at least 0, got -1"):
            dataclasses.replace(plain, **{name: -1})
