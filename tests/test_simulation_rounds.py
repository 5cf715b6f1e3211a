"""Rounds of EPSL and EdgeSplit, event by event, against the closed forms, which are exact between barriers."""

import dataclasses

import numpy as np
import pytest

from epsl_scenarios import random_cell, random_profile
from psl.errors import ScenarioError
from psl.networks import EdgeCluster
from psl.profiles import Profile
from psl.schedulers import edgesplit, epsl
from psl.simulation import lower_bound, simulate


def random_epsl_plan(rng):
    n_clients, n_subchannels = int(rng.integers(1, 5)), int(rng.integers(4, 9))
    profile, cell = random_profile(rng), random_cell(rng, n_clients, n_subchannels)
    if rng.random() < 0.3:
        cell = dataclasses.replace(cell, profiles=tuple(own_profile(rng, profile) for _ in range(n_clients)))
    owner = rng.permutation(np.arange(n_subchannels) % n_clients)
    spent = np.minimum(cell.client_power, cell.total_power / n_clients) / np.bincount(owner, cell.bandwidth)
    return epsl.EPSLPlan(
        profile, cell, batch_size=int(rng.integers(1, 65)), phi=float(rng.choice([0, 0.3, 1])), method="random",
        cut=int(rng.integers(1, profile.n_units)), assignment=owner, power=spent[owner] * rng.uniform(0.1, 1),
    )  # fmt: skip


def own_profile(rng, profile):
    """A measured profile, or none for a client known by its speed."""
    if rng.random() < 0.5:
        return None
    seconds = profile.fwd_cost / rng.uniform(1e9, 1e11)
    return Profile.measured(profile.names, seconds, 2 * seconds, profile.act_bits)


def random_edgesplit_plan(rng):
    n, profile = int(rng.integers(1, 7)), random_profile(rng, bits=None)
    measured = tuple(own_profile(rng, profile) for _ in range(n)) if rng.random() < 0.3 else None
    speed, efficiency = rng.uniform(1e9, 1e11, n), rng.uniform(0.5, 6, n)
    names = None if rng.random() < 0.5 else tuple(rng.choice(["Pi", "Nano"], n))
    batch_size, local_steps = int(rng.integers(1, 33)), int(rng.integers(1, 6))
    cuts, bandwidth = rng.integers(1, profile.n_units + 1, n), rng.uniform(1e6, 2e7, n)
    cluster = EdgeCluster(speed, np.inf, efficiency, bandwidth.sum(), 1e13, device_names=names, profiles=measured)
    return edgesplit.EdgeSplitPlan(profile, cluster, batch_size, local_steps, "random", cuts, bandwidth)


def edgesplit_times(plan):
    """Seconds of every device: the formula of the round, spelled out device by device."""
    p, cluster, b, steps, times = plan.profile, plan.cluster, plan.batch_size, plan.local_steps, []
    for i, j in enumerate(plan.cuts):
        own = cluster.profiles[i] if cluster.profiles else None
        if own is None:
            device = (p.fwd_cost[j] + p.bwd_cost[j]) / cluster.device_speed[i]
        else:
            device = own.fwd_cost[j] + own.bwd_cost[j]
        rest = p.fwd_cost[-1] - p.fwd_cost[j] + p.bwd_cost[-1] - p.bwd_cost[j]
        rate = cluster.spectral_efficiency[i] * plan.bandwidth[i]
        exchanged = 0 if j == p.n_units else p.act_bits[j] + p.grad_bits[j]
        step = b * (device + rest / (cluster.server_speed / len(plan.cuts)) + exchanged / rate)
        times.append(steps * step + 2 * p.param_bits[j] / rate)
    return np.array(times)


def test_epsl_equals_its_round_time():
    for seed in range(200):
        plan = random_epsl_plan(np.random.default_rng(seed))
        timeline = simulate(plan)
        assert timeline.makespan == pytest.approx(plan.round_time, rel=1e-9), f"seed {seed}"
        assert lower_bound(plan) == pytest.approx(plan.round_time, rel=1e-9), f"seed {seed}: barriers leave no choice"
        server = timeline.to_frame().query("resource == 'server'")
        terms = plan.latency()
        assert server["start_s"].iloc[0] == pytest.approx(terms.uplink, rel=1e-9), f"seed {seed}"
        took = server["end_s"].iloc[-1] - server["start_s"].iloc[0]
        want = terms.server_forward + terms.server_backward
        assert took == pytest.approx(want, rel=1e-9, abs=1e-11 * plan.round_time), f"seed {seed}: more than ticks"


def test_epsl_of_a_solved_plan():
    cell = random_cell(np.random.default_rng(1), 3, 6)
    plan = epsl.solve(random_profile(np.random.default_rng(2)), cell, batch_size=8, phi=0.5, bound=False)
    timeline = simulate(plan)
    assert timeline.makespan == pytest.approx(plan.round_time, rel=1e-9)
    assert (timeline.scheduler, timeline.order) == ("epsl", None)
    frame = timeline.to_frame()
    assert frame["kind"].value_counts()[["forward", "activation", "backward", "gradient", "broadcast"]].tolist() == [
        4, 3, 4, 3, 1
    ]  # fmt: skip
    memory = timeline.memory().max()
    held = [
        24 * (plan.profile.act_memory[-1] - plan.profile.act_memory[plan.cut]),
        8 * plan.profile.act_memory[plan.cut],
    ]
    bits = [plan.profile.param_bits[-1] - plan.profile.param_bits[plan.cut], plan.profile.param_bits[plan.cut]]
    assert memory[["server", "client 2"]].tolist() == pytest.approx(
        [h + 3 * b / 8 for h, b in zip(held, bits, strict=True)]
    )


def test_edgesplit_equals_its_formula():
    for seed in range(200):
        plan = random_edgesplit_plan(np.random.default_rng(seed))
        timeline, want = simulate(plan), edgesplit_times(plan)
        assert timeline.makespan == pytest.approx(want.max(), rel=1e-9), f"seed {seed}"
        frame = timeline.to_frame()
        done = frame[frame["kind"] == "model"].groupby("stage")["end_s"].max()
        assert done.to_numpy() == pytest.approx(want, rel=1e-9), f"seed {seed}"


def test_edgesplit_equals_the_plan_round_time():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        cluster = EdgeCluster.sample(int(rng.integers(1, 12)), seed=seed, bandwidth=10 ** rng.uniform(6, 8))
        options = {"batch_size": int(rng.integers(1, 33)), "local_steps": int(rng.integers(1, 6))}
        for method in ("exact", "fedavg", "adaptive-equal"):
            plan = edgesplit.solve(random_profile(rng), cluster, method=method, **options)
            timeline = simulate(plan)
            assert timeline.makespan == pytest.approx(plan.round_time, rel=1e-9), f"seed {seed} {method}"
            peaks = timeline.memory().max()
            devices = [name for name in timeline.memory() if not name.startswith("server")]
            assert (peaks[devices].to_numpy() <= cluster.device_memory * (1 + 1e-9)).all(), f"seed {seed} {method}"


def test_a_device_with_the_whole_model_meets_no_server():
    plan = random_edgesplit_plan(np.random.default_rng(0))
    plan = dataclasses.replace(plan, cuts=np.full(len(plan.cuts), plan.profile.n_units))
    frame = simulate(plan).to_frame()
    assert set(frame["kind"]) == {"model", "forward", "backward"}
    assert not frame["resource"].astype(str).str.startswith("server").any()


def test_options_of_pipelines_are_refused():
    plan = random_epsl_plan(np.random.default_rng(0))
    for options in ({"order": "flush"}, {"max_in_flight": 2}, {"equal_micro_batches": True}):
        (name,) = options
        with pytest.raises(ScenarioError, match=f"{name}: expected its default with a plan of epsl"):
            simulate(plan, **options)
    with pytest.raises(ScenarioError, match="plan: expected a plan of epsl.solve, .*, got EPSLPlan"):
        simulate(epsl.EPSLPlan)
