"""Every scheduler and the simulation with models that train in part, against brute force from the formulas."""

import dataclasses

import numpy as np
import pytest

import edgesplit_oracles
import oracles
import pipeline_oracles
from edgesplit_scenarios import BATCH, STEPS, random_cluster
from epsl_scenarios import random_cell, random_profile
from frozen_profiles import train_in_part
from pipeline_scenarios import random_network
from pipeline_scenarios import random_profile as random_pipeline_profile
from psl.errors import InfeasibleError
from psl.networks import EdgeCluster
from psl.profiles import Profile
from psl.schedulers import edgesplit, epsl, pipeline
from psl.schedulers.edgesplit.policy_iteration import best_split
from psl.schedulers.edgesplit.problem import EdgeSplitProblem
from psl.schedulers.pipeline import LINKS, PipelineProblem, best_placement
from psl.simulation import lower_bound, simulate


def edgesplit_case(seed, blocks_per_device=None):
    """Return (profile, cluster): activations take little memory, so that the weights decide which cuts fit."""
    rng = np.random.default_rng(seed)
    profile = random_profile(rng, int(rng.integers(2, 5)))
    profile = dataclasses.replace(profile, act_memory=profile.act_memory / 1000)
    n_devices = int(rng.integers(1, 4))
    blocks = None if blocks_per_device is None else max(n_devices, round(n_devices * rng.uniform(*blocks_per_device)))
    # Frozen weights take no more than others: what holds the first unit of this profile holds it frozen.
    return train_in_part(profile, rng), random_cluster(rng, profile, n_devices, blocks, memory=True)


def test_edgesplit_is_the_optimum_of_exhaustive_search():
    memory_matters = 0
    for seed in range(150):
        profile, cluster = edgesplit_case(seed)
        optimum = edgesplit_oracles.exhaustive(profile, cluster, BATCH, STEPS)
        for method in ("exact", "bisection"):
            plan = edgesplit.solve(profile, cluster, batch_size=BATCH, local_steps=STEPS, method=method)
            assert plan.round_time == pytest.approx(optimum, rel=1e-9), f"seed {seed}, {method}"
            assert plan.lower_bound == pytest.approx(optimum, rel=1e-9), f"seed {seed}, {method}"
            need = profile.param_memory + BATCH * profile.act_memory
            assert (need[plan.cuts] <= cluster.device_memory).all(), f"seed {seed}, {method}"
        assert simulate(plan).makespan == pytest.approx(plan.round_time, rel=1e-9), f"seed {seed}"
        by_envelopes = best_split(EdgeSplitProblem(profile, cluster, BATCH, STEPS))[2]
        assert by_envelopes == pytest.approx(optimum, rel=1e-9), f"seed {seed}"
        without = dataclasses.replace(profile, param_memory=None)
        memory_matters += edgesplit_oracles.exhaustive(without, cluster, BATCH, STEPS) < optimum * (1 - 1e-9)
    assert memory_matters > 5  # a planner that took 3 δ / 8 for the memory would be found out


def test_edgesplit_in_whole_resource_blocks():
    for seed in range(60):
        profile, cluster = edgesplit_case(seed, (1, 3.4))
        n_blocks = round(cluster.bandwidth / cluster.resource_block)
        plan = edgesplit.solve(profile, cluster, batch_size=BATCH, local_steps=STEPS)
        optimum = edgesplit_oracles.exhaustive_blocks(profile, cluster, BATCH, STEPS, n_blocks)
        assert plan.round_time == pytest.approx(optimum, rel=1e-9), f"seed {seed}"


def test_many_devices_by_envelopes_and_by_trying_every_cut():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        profile = train_in_part(random_profile(rng, 12), rng)
        cluster = EdgeCluster.sample(2_000, seed=seed, bandwidth=10 ** rng.uniform(7, 9))
        plans = [edgesplit.solve(profile, cluster, method=method) for method in ("exact", "bisection", "alternating")]
        for plan in plans[1:]:
            assert plan.round_time == pytest.approx(plans[0].round_time, rel=1e-9), f"seed {seed}, {plan.method}"


@pytest.mark.parametrize("phi", [0.0, 0.5, 1.0])
def test_epsl_finds_and_bounds_the_optimum(phi):
    excess = []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        profile = train_in_part(random_profile(rng), rng)
        cell = random_cell(rng, int(rng.integers(1, 4)), int(rng.integers(4, 6)))
        optimum, _, _ = oracles.exhaustive(profile, cell, 16, phi)
        plan = epsl.solve(profile, cell, batch_size=16, phi=phi)
        assert plan.lower_bound <= optimum * (1 + 1e-8), f"seed {seed}: the bound is above the optimum"
        assert plan.round_time >= optimum * (1 - 1e-8), f"seed {seed}: better than the optimum, so wrong"
        assert simulate(plan).makespan == pytest.approx(plan.round_time, rel=1e-9), f"seed {seed}"
        excess.append(plan.round_time / optimum - 1)
    assert max(excess) <= 0.01, np.sort(excess)[-3:]


def test_every_method_of_epsl_lies_above_the_optimum():
    for seed in range(4):
        rng = np.random.default_rng(seed)
        profile, cell = train_in_part(random_profile(rng), rng), random_cell(rng, 2, 4)
        optimum, _, _ = oracles.exhaustive(profile, cell, 16, 0.5)
        for method in epsl.METHODS:
            plan = epsl.solve(profile, cell, batch_size=16, phi=0.5, method=method)
            assert plan.lower_bound <= optimum * (1 + 1e-8) <= plan.round_time * (1 + 2e-8), f"seed {seed}, {method}"


def test_a_cut_in_frozen_units_sends_activations_alone():
    rng = np.random.default_rng(3)
    frozen = dataclasses.replace(
        random_profile(rng), bwd_cost=[0, 0, 0, 2e9, 3e9], grad_bits=[0, 0, 0, 1e6, 1e6], last_bwd_cost=1e9,
        param_bits=[0, 0, 0, 8e6, 9e6],
    )  # fmt: skip
    cell = random_cell(rng, 2, 4)
    radio = {"assignment": [0, 1, 0, 1], "batch_size": 16, "phi": 0.5}
    radio["power"] = np.full(4, min(cell.client_power.min(), cell.total_power / 2) / cell.bandwidth.sum())
    for framework in ("epsl", "psl", "sfl", "sl"):
        terms = epsl.latency(frozen, cell, cut=2, framework=framework, **radio)
        assert terms.uplink > 0 and terms.server_backward > 0, framework
        assert (terms.broadcast, terms.downlink, terms.model_exchange) == (0, 0, 0), framework
        later = epsl.latency(frozen, cell, cut=3, framework=framework, **radio)
        assert later.downlink > 0 and (later.model_exchange > 0) == (framework in ("sfl", "sl")), framework
    cluster = EdgeCluster([1e10, 1e11], np.inf, 2.0, 1e7, 1e12)
    device = edgesplit.latency(frozen, cluster, cuts=2, bandwidth=[5e6, 5e6])
    assert device.model_exchange.tolist() == [0, 0] and device.downlink_bits.tolist() == [0, 0]
    np.testing.assert_allclose(device.activation_exchange, 32 * frozen.act_bits[2] / 1e7, rtol=1e-12)
    np.testing.assert_allclose(device.device_compute, 32 * frozen.fwd_cost[2] / np.array([1e10, 1e11]), rtol=1e-12)


def test_pipelines_equal_brute_force():
    planned = impossible = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        profile, batch_size = random_pipeline_profile(rng, int(rng.integers(2, 6))), int(rng.integers(1, 9))
        network = random_network(rng, int(rng.integers(2, 5)), profile, batch_size)
        profile = train_in_part(profile, rng)
        links, sizes = LINKS[seed % 3], range(1, batch_size + 1)
        problem = PipelineProblem(profile, network, batch_size)
        values = []
        for b in sizes:
            value, _, _ = pipeline_oracles.brute_force(profile, network, batch_size, b, links)
            values.append(value)
            if value < np.inf:
                best = best_placement(problem, b, links=links)
                assert best.value == pytest.approx(value, rel=1e-9) and best.exact, f"seed {seed}, b {b}"
        if min(values) == np.inf:
            impossible += 1
            with pytest.raises(InfeasibleError):
                pipeline.solve(profile, network, batch_size=batch_size, links=links)
            continue
        plan = pipeline.solve(profile, network, batch_size=batch_size, links=links)
        assert plan.round_time == pytest.approx(min(values), rel=1e-9) and plan.exact, f"seed {seed}"
        alone = dataclasses.replace(plan, micro_batch=batch_size, lower_bound=float("nan"))
        assert simulate(alone).makespan == pytest.approx(alone.round_time, rel=1e-9), f"seed {seed}"
        timeline = simulate(plan)
        assert timeline.makespan >= lower_bound(plan) * (1 - 1e-9), f"seed {seed}"
        held = simulate(plan, order="flush").memory().max()
        for (node, i, j), column in zip(plan.stages, held.loc[[f"node {n}" for n, _, _ in plan.stages]], strict=True):
            need = profile.param_memory[j] - profile.param_memory[i]
            need += batch_size * (profile.act_memory[j] - profile.act_memory[i])
            assert column == pytest.approx(need, rel=1e-9), f"seed {seed}, node {node}"
        planned += 1
    assert planned > 40 and impossible > 0


def lora_by_hand(sent):
    """Return the profile of 784-2048-512-64-10 with adapters of rank 2, ReLU between; its bits as given, cumulative."""
    sizes, total = [(784, 2048), (2048, 512), (512, 64)], lambda values: np.concatenate([[0], np.cumsum(values)])
    base = [2 * i * o for i, o in sizes]
    adapter = [2 * 2 * (i + o) for i, o in sizes]
    # Gradients of the adapters' weights and, behind the first layer, of their inputs and of what the base reads.
    down = [2 * 2 * i for i, _ in sizes]
    backward = [2 * adapter[0] - down[0], base[1] + 2 * adapter[1], base[2] + 2 * adapter[2]]
    last = 2 * 64 * 10
    zeros = np.zeros(3)
    activation = 32.0 * np.array([784, 2048, 2048, 512, 512, 64, 64, 10])
    return Profile(
        names=["input", "0", "1", "2", "3", "4", "5", "6"],
        fwd_cost=total([*np.column_stack([np.add(base, adapter), zeros]).ravel(), last]),
        bwd_cost=total([*np.column_stack([backward, zeros]).ravel(), 2 * last]),
        act_bits=activation,
        grad_bits=np.where(np.arange(8) > 0, activation, 0),
        param_bits=sent,
        act_memory=np.zeros(8),
        last_bwd_cost=2 * last,
    )


def test_adapters_are_planned_by_what_they_send():
    cell = EdgeCluster([5e9, 2e10, 5e10], np.inf, 2.0, 20e6, 1e12)
    adapters = [2 * (784 + 2048), 0, 2 * (2048 + 512), 0, 2 * (512 + 64), 0, 64 * 10 + 10]
    frozen = [784 * 2048 + 2048, 0, 2048 * 512 + 512, 0, 512 * 64 + 64, 0, 0]
    sent, everything = (32.0 * np.cumsum([0, *values]) for values in (adapters, np.add(adapters, frozen)))
    assert sent[-1] == 402_752
    plan = edgesplit.solve(lora_by_hand(sent), cell, batch_size=32, local_steps=2)
    assert plan.cuts.tolist() == [7, 7, 7] and plan.round_time == pytest.approx(0.129, abs=5e-4)
    assert plan.exact and plan.latency().uplink_bits.tolist() == [402_752] * 3
    wrong = edgesplit.solve(lora_by_hand(everything), cell, batch_size=32, local_steps=2)
    assert wrong.cuts.tolist() == [1, 1, 1] and wrong.round_time == pytest.approx(8.39, abs=0.3)
