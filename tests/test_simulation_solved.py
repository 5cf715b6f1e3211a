"""The simulation of plans that the pipeline scheduler makes."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from epsl_scenarios import random_profile
from psl import plotting
from psl.networks import EdgeNetwork
from psl.schedulers import pipeline
from psl.simulation import lower_bound, simulate


def solved(seed, **options):
    rng = np.random.default_rng(seed)
    profile = random_profile(rng, n_units=6)
    network = EdgeNetwork.sample(
        5, seed=seed, topology=["mesh", "line", "tree", "geometric"][seed % 4], relays=seed % 2,
        duplex=["full", "half"][seed % 3 % 2],
    )  # fmt: skip
    return pipeline.solve(profile, network, batch_size=64, **options)


def test_without_pipelining_the_closed_form_is_exact():
    for seed in range(24):
        plan = solved(seed, micro_batch=64)
        assert simulate(plan).makespan == pytest.approx(plan.round_time, rel=1e-9), f"seed {seed}"


def test_with_pipelining_it_is_near_and_the_bound_holds():
    for seed in range(24):
        plan = solved(seed)
        timeline = simulate(plan)
        assert 0.7 < timeline.makespan / plan.round_time < 1.2, f"seed {seed}"
        assert timeline.makespan >= lower_bound(plan) * (1 - 1e-9), f"seed {seed}"
        assert simulate(plan, order="flush").makespan >= lower_bound(plan) * (1 - 1e-9), f"seed {seed}"
        memory = simulate(plan, order="flush").memory().max()
        for node, i, j in plan.stages:
            held = plan.batch_size * (plan.profile.act_memory[j] - plan.profile.act_memory[i])
            parameters = 3 * (plan.profile.param_bits[j] - plan.profile.param_bits[i]) / 8
            assert memory[f"node {node}"] == pytest.approx(held + parameters), f"seed {seed}"


def test_a_plan_from_a_file_gives_the_same_timeline(tmp_path):
    plan = solved(1)
    assert simulate(type(plan).load(plan.save(tmp_path / "plan.json"))) == simulate(plan)


def test_pictures_of_a_solved_plan():
    profile = random_profile(np.random.default_rng(4), n_units=3)
    plan = pipeline.solve(profile, EdgeNetwork.sample(2, seed=4), batch_size=16)
    for ax in (
        plotting.plot_network(plan.network, plan),
        plotting.plot_state_graph(plan.network, plan.profile.n_units, plan),
        simulate(plan).plot(),
    ):
        ax.figure.canvas.draw()
        plt.close(ax.figure)
