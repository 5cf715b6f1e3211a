"""Plans of EdgeSplit: the alternation, baselines, metamorphic relations, tables, round trips, errors."""

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from edgesplit_oracles import bits, compute_seconds, exhaustive
from edgesplit_scenarios import BATCH, STEPS, measured, random_case
from psl.networks.edge_cluster import EdgeCluster
from psl.profiles import Profile
from psl.schedulers import edgesplit

METHODS = edgesplit.METHODS


def solve(profile, cluster, method="alternating", **options):
    return edgesplit.solve(profile, cluster, **{"batch_size": BATCH, "local_steps": STEPS, "method": method, **options})


def falls(history):
    return all(b["round_time"] <= a["round_time"] for a, b in pairwise(history))


def test_alternation_ends_at_the_optimum():
    for seed in range(1_100):
        profile, cluster = random_case(seed)
        plan = solve(profile, cluster)
        assert plan.round_time == pytest.approx(plan.lower_bound, rel=1e-9), f"seed {seed}"
        assert falls(plan.history), f"seed {seed}: {plan.history}"
        assert plan.history[-1]["round_time"] == pytest.approx(plan.round_time, rel=1e-12), f"seed {seed}"


def test_exact_is_never_above_the_alternation_in_resource_blocks():
    trapped = 0
    for seed in range(150):
        profile, cluster = random_case(seed, blocks_per_device=(1, 10))
        plan, best = solve(profile, cluster), solve(profile, cluster, "exact")
        assert best.round_time <= plan.round_time * (1 + 1e-12), f"seed {seed}"
        assert plan.lower_bound == best.round_time and best.gap == 0, f"seed {seed}"
        assert falls(plan.history) and falls(best.history), f"seed {seed}"
        trapped += plan.gap > 1e-9
    assert trapped  # the theorem needs bandwidth in any parts


def test_cuts_that_send_nothing_trap_the_alternation_and_the_plan_says_so():
    # Measured without parameters: whoever trains everything sends nothing.
    profile = Profile.measured(("in", "a", "out"), [0, 1, 9], [0, 1, 9], [8e6, 8e6, 1e6])
    cluster = EdgeCluster([1.0, 0.5], np.inf, 1.0, 1e6, 100.0)
    plan = edgesplit.solve(profile, cluster, batch_size=1, method="alternating")
    best = edgesplit.solve(profile, cluster, batch_size=1)
    optimum = exhaustive(profile, cluster, 1, 1)
    assert plan.lower_bound == pytest.approx(optimum, rel=1e-9) and best.round_time == pytest.approx(optimum, rel=1e-9)
    assert plan.gap > 0.1 and "closed by method='exact'" in repr(plan)
    assert best.gap == 0 and "closed by" not in repr(best)
    assert "closed by" not in repr(solve(*random_case(0)))
    assert "every cut has something to send" in edgesplit.solve.__doc__


def test_stopping_early_costs_and_its_history_is_a_beginning():
    worst = 0.0
    for seed in range(80):
        profile, cluster = random_case(seed)
        whole = solve(profile, cluster)
        early = solve(profile, cluster, max_steps=1)
        assert early.history == whole.history[:2] and [e["block"] for e in early.history] == ["cuts", "bandwidth"]
        assert early.history[0]["changed"] == cluster.n_devices
        np.testing.assert_array_equal(early.cuts, solve(profile, cluster, "adaptive-equal").cuts)
        assert early.round_time >= whole.round_time * (1 - 1e-12)
        worst = max(worst, early.gap)
    assert worst > 0.05


@pytest.mark.parametrize("method", METHODS)
def test_seed_and_progress_change_nothing(method, capfd):
    case = random_case(2, memory=False)
    plan = solve(*case, method)
    assert capfd.readouterr().err == ""
    assert solve(*case, method, seed=1, progress=True) == plan
    assert f"EdgeSplit {method}: {len(plan.history)} improvements" in capfd.readouterr().err
    assert edgesplit.solve(*case).method == "exact"


@pytest.mark.parametrize("method", METHODS)
def test_plans_are_consistent(method):
    for seed in range(20):
        blocks = (1, 5) if seed % 2 else None
        profile, cluster = random_case(seed, blocks_per_device=blocks, memory=method != "fedavg" and seed % 3 == 0)
        plan = solve(profile, cluster, method)
        terms = edgesplit.latency(
            profile, cluster, cuts=plan.cuts, bandwidth=plan.bandwidth, batch_size=BATCH, local_steps=STEPS
        )
        assert plan.latency() == terms and plan.to_frame().equals(terms.to_frame())
        assert plan.round_time == plan.device_times.max() == terms.total == plan.to_frame()["total"].max()
        assert plan.round_time == plan.framework_round_time("edgesplit")
        assert 0 < plan.lower_bound <= plan.round_time and plan.method == method and plan.scheduler == "edgesplit"
        assert plan.bandwidth.sum() == pytest.approx(cluster.bandwidth, rel=1e-9)
        assert plan.n_clients == cluster.n_devices and len(plan.cut_names) == plan.n_clients
        assert plan.history[-1]["round_time"] == pytest.approx(plan.round_time, rel=1e-9)
        if method in ("fedavg", "sfl", "common-optimal"):
            assert plan.cut == plan.cuts[0] and plan.cut_name == plan.cut_names[0]
        need = 3 * profile.param_bits / 8 + BATCH * profile.act_memory
        assert (need[plan.cuts] <= cluster.device_memory).all()
        if blocks and method in ("fedavg", "sfl", "adaptive-equal"):
            counts = np.rint(plan.bandwidth / cluster.resource_block)
            assert np.ptp(counts) <= 1, f"seed {seed}: {counts}"


def test_baselines_by_brute_force():
    for seed in range(40):
        profile, cluster = random_case(seed, n_devices=(1, 6))
        n, width = cluster.n_devices, cluster.bandwidth / cluster.n_devices

        def time(i, j, profile=profile, cluster=cluster, width=width):
            wait = bits(profile, j, BATCH, STEPS) / (cluster.spectral_efficiency[i] * width)
            return compute_seconds(profile, cluster, i, j, BATCH, STEPS) + wait

        need = 3 * profile.param_bits / 8 + BATCH * profile.act_memory
        fits = [[j for j in range(1, profile.n_units + 1) if need[j] <= m] for m in cluster.device_memory]
        common = sorted(set.intersection(*map(set, fits)))
        sfl = min(max(time(i, j) for i in range(n)) for j in common)
        assert solve(profile, cluster, "sfl").round_time == pytest.approx(sfl, rel=1e-12), f"seed {seed}"
        adaptive = max(min(time(i, j) for j in fits[i]) for i in range(n))
        assert solve(profile, cluster, "adaptive-equal").round_time == pytest.approx(adaptive, rel=1e-12)
        one_cut = []
        for j in common:  # a model of which only this cut is left
            single = dataclasses.replace(cluster, device_memory=need[j])
            one_cut.append(exhaustive(profile, single, BATCH, STEPS, min_cut=j))
        assert solve(profile, cluster, "common-optimal").round_time == pytest.approx(min(one_cut), rel=1e-9)
        roomy = dataclasses.replace(cluster, device_memory=np.inf)
        whole = max(time(i, profile.n_units) for i in range(n))
        assert solve(profile, roomy, "fedavg").round_time == pytest.approx(whole, rel=1e-12)


def test_no_method_beats_the_optimum_and_baselines_are_ordered():
    for seed in range(60):
        profile, cluster = random_case(seed, memory=False, blocks_per_device=(1, 6) if seed % 2 else None)
        time = {method: solve(profile, cluster, method).round_time for method in METHODS}
        for a, b in (
            ("exact", "alternating"), ("exact", "common-optimal"), ("alternating", "adaptive-equal"),
            ("adaptive-equal", "sfl"), ("common-optimal", "sfl"), ("sfl", "fedavg"),
        ):  # fmt: skip
            assert time[a] <= time[b] * (1 + 1e-12), f"seed {seed}: {a}, {b}"


def test_more_is_never_slower():
    for seed in range(40):
        profile, cluster = random_case(seed, n_devices=(2, 8))
        best = lambda **change: solve(profile, dataclasses.replace(cluster, **change), "exact").round_time  # noqa: B023, E731
        time = best()
        assert best(bandwidth=2 * cluster.bandwidth) <= time * (1 + 1e-12)
        assert best(server_speed=2 * cluster.server_speed) <= time * (1 + 1e-12)
        assert best(device_memory=np.inf) <= time * (1 + 1e-12)
        assert best(device_speed=2 * cluster.device_speed) <= time * (1 + 1e-12)
        coarse = [best(resource_block=cluster.bandwidth / (cluster.n_devices * k)) for k in (1, 2, 4, 8, 64)]
        assert all(b <= a * (1 + 1e-12) for a, b in pairwise(coarse)), f"seed {seed}: {coarse}"
        assert time <= coarse[-1] * (1 + 1e-12)
        # One device fewer, the others' share of the server as before: the band alone becomes wider for each.
        rest = dataclasses.replace(
            cluster, device_speed=cluster.device_speed[1:], device_memory=cluster.device_memory[1:],
            spectral_efficiency=cluster.spectral_efficiency[1:],
            server_speed=cluster.server_speed * (1 - 1 / cluster.n_devices),
        )  # fmt: skip
        assert solve(profile, rest, "exact").round_time <= time * (1 + 1e-12), f"seed {seed}"


def test_units_and_order_do_not_matter():
    for seed in range(15):
        profile, cluster = random_case(seed, n_devices=(2, 9))
        plan = solve(profile, cluster)
        faster = dataclasses.replace(
            cluster, device_speed=cluster.device_speed * 1e3, server_speed=cluster.server_speed * 1e3,
            bandwidth=cluster.bandwidth * 1e3,
        )  # fmt: skip
        other = solve(profile, faster)
        assert other.round_time == pytest.approx(plan.round_time / 1e3, rel=1e-9)
        np.testing.assert_allclose(other.bandwidth, plan.bandwidth * 1e3, rtol=1e-6)
        # Twice the steps with half-size models: activations and computing double, parameters stay.
        light = dataclasses.replace(profile, param_bits=profile.param_bits * 0.5)
        roomy = dataclasses.replace(cluster, device_memory=np.inf)
        half, double = solve(light, roomy, local_steps=1), solve(profile, roomy, local_steps=2)
        assert double.round_time == pytest.approx(2 * half.round_time, rel=1e-9)
        order = np.random.default_rng(seed).permutation(cluster.n_devices)
        mixed = dataclasses.replace(
            cluster, device_speed=cluster.device_speed[order], device_memory=cluster.device_memory[order],
            spectral_efficiency=cluster.spectral_efficiency[order],
        )  # fmt: skip
        np.testing.assert_allclose(solve(profile, mixed).bandwidth, plan.bandwidth[order], rtol=1e-6)


def test_latency_by_hand():
    profile = Profile(
        names=["input", "conv", "block", "output"], fwd_cost=[0, 10, 30, 36], bwd_cost=[0, 20, 60, 72],
        act_bits=[40, 24, 12, 4], grad_bits=[40, 16, 12, 4], param_bits=[0, 30, 90, 120], act_memory=[0, 1, 2, 3],
    )  # fmt: skip
    own = measured(profile, [0, 1, 2, 3], [0, 2, 4, 6])
    cluster = EdgeCluster(
        [10, 20, 1], 1e9, [1, 2, 3], 10, 300, device_names=["a", "b", "c"], profiles=(None, None, own)
    )
    terms = edgesplit.latency(profile, cluster, cuts=[1, "output", 2], bandwidth=[4, 3, 2], batch_size=5, local_steps=2)
    table = terms.to_frame()
    assert list(table["name"]) == ["a", "b", "c"] and list(table["cut_name"]) == ["conv", "output", "block"]
    assert list(table["device_compute"]) == pytest.approx([10 * 30 / 10, 10 * 108 / 20, 10 * 6])
    assert list(table["server_compute"]) == pytest.approx([10 * 78 / 100, 0, 10 * 18 / 100])
    assert list(table["activation_exchange"]) == pytest.approx([10 * 40 / 4, 0, 10 * 24 / 6])
    assert list(table["model_exchange"]) == pytest.approx([60 / 4, 240 / 6, 180 / 6])
    parts = table[["device_compute", "server_compute", "activation_exchange", "model_exchange"]].sum(axis=1)
    assert list(table["total"]) == pytest.approx(list(parts))
    assert list(table["uplink_bits"]) == [270, 120, 210] and list(table["downlink_bits"]) == [190, 120, 210]
    assert list(table["rate_bit_s"]) == [4, 6, 6]
    assert terms.total == table["total"].max() and list(terms.device_times) == list(table["total"])
    assert edgesplit.RoundLatency.from_dict(json.loads(json.dumps(terms.to_dict()))) == terms
    assert f"3 devices: {terms.total:.6g} s, of device {terms.device_times.argmax()}: device_compute" in repr(terms)
    same = edgesplit.latency(profile, cluster, cuts="conv", bandwidth=1.0)
    assert (same.cuts == 1).all()
    names = ["conv", "output", "block"]
    for form in (
        names,
        tuple(names),
        np.array(names),
        np.array(names, dtype=object),
        pd.Series(names),
        [1, "output", 2],
    ):
        again = edgesplit.latency(profile, cluster, cuts=form, bandwidth=[4, 3, 2], batch_size=5, local_steps=2)
        assert again == terms and again.to_frame().equals(table), f"{type(form)}"
    for column in ("cut", "cut_name"):
        again = edgesplit.latency(
            profile, cluster, cuts=table[column], bandwidth=table["bandwidth_hz"], batch_size=5, local_steps=2
        )
        assert again.to_frame().equals(table), column
    plan = solve(profile, cluster, batch_size=5, local_steps=2)
    assert plan.framework_round_time("centralised") == pytest.approx(3 * 5 * 108 / 300)
    assert plan.framework_round_time("fedavg") == pytest.approx(
        max(10 * 108 / 10 + 240 / (10 / 3), 10 * 108 / 20 + 240 / (20 / 3), 90 + 240 / 10)
    )
    assert plan.framework_round_time("sfl", 4) == solve(profile, cluster, "sfl", batch_size=5, local_steps=4).round_time
    assert plan.framework_round_time("edgesplit", 1) < plan.round_time == plan.framework_round_time("edgesplit")


def test_seconds_that_say_what_the_speeds_say_give_the_same_plan():
    for seed in range(10):
        profile, cluster = random_case(seed, n_devices=(2, 8))
        own = tuple(measured(profile, profile.fwd_cost / s, profile.bwd_cost / s) for s in cluster.device_speed)
        fleet = dataclasses.replace(cluster, device_speed=np.ones(cluster.n_devices), profiles=own)
        relative = Profile.measured(
            profile.names, profile.fwd_cost / 1e12, profile.bwd_cost / 1e12, profile.act_bits, profile.grad_bits,
            profile.param_bits, profile.act_memory,
        )  # fmt: skip
        slower = dataclasses.replace(
            cluster, device_speed=cluster.device_speed / 1e12, server_speed=cluster.server_speed / 1e12
        )
        for method in ("alternating", "exact", "sfl"):
            plan = solve(profile, cluster, method)
            for other in (solve(profile, fleet, method), solve(relative, slower, method)):
                assert other.round_time == pytest.approx(plan.round_time, rel=1e-9), f"seed {seed}, {method}"
                np.testing.assert_allclose(other.bandwidth, plan.bandwidth, rtol=1e-6)


def test_round_trip_and_repr(tmp_path):
    for blocks in (None, (2, 4)):
        profile, cluster = random_case(5, n_units=(3, 8), n_devices=(4, 9), blocks_per_device=blocks)
        for method in METHODS[:3]:
            plan = solve(profile, cluster, method)
            again = edgesplit.EdgeSplitPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
            assert again == plan and again.round_time == plan.round_time and again.gap == plan.gap
            assert edgesplit.EdgeSplitPlan.load(plan.save(tmp_path / "plan.json")) == plan
            assert again.cuts.dtype.kind == "i" and not again.cuts.flags.writeable
            for part in (
                method,
                f"round {plan.round_time:.6g} s",
                "optimal" if plan.exact else "optimum",
                f"{cluster.n_devices} devices",
            ):
                assert part in repr(plan)
    blind = solve(profile, cluster, bound=False)
    assert np.isnan(blind.lower_bound) and np.isnan(blind.gap) and "no lower bound" in repr(blind)
    assert edgesplit.EdgeSplitPlan.from_dict(json.loads(json.dumps(blind.to_dict()))) == blind
    mixed = dataclasses.replace(plan, cuts=[1, *[2] * (cluster.n_devices - 1)])
    assert mixed.cut is None and mixed.cut_name is None and "cuts 1..2" in repr(mixed)
