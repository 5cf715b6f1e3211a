"""The optimum of EdgeSplit against exhaustive search, CVXPY and bisection; degenerate and extreme clusters."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from edgesplit_oracles import bits, compute_seconds, cuts_that_fit, cvxpy_bandwidth, exhaustive, exhaustive_blocks
from edgesplit_scenarios import BATCH, STEPS, measured, random_case
from psl.networks.edge_cluster import EdgeCluster
from psl.profiles import Profile
from psl.schedulers import edgesplit
from psl.schedulers.edgesplit.bandwidth import share_band
from psl.schedulers.edgesplit.bisection import bisect_deadline
from psl.schedulers.edgesplit.enumeration import SMALL, EnumeratedProblem, make_problem
from psl.schedulers.edgesplit.envelope import lowest_lines, undominated
from psl.schedulers.edgesplit.policy_iteration import best_split
from psl.schedulers.edgesplit.problem import EdgeSplitProblem


def solve(profile, cluster, method="exact", **options):
    return edgesplit.solve(profile, cluster, batch_size=BATCH, local_steps=STEPS, method=method, **options)


def drop_bits(profile, rng):
    """Return the profile with some cuts that send nothing: no parameters at all, activations of no bits."""
    activation = profile.act_bits * (rng.random(len(profile.names)) < 0.6)
    return dataclasses.replace(profile, act_bits=activation, grad_bits=activation, param_bits=profile.param_bits * 0)


def test_exact_is_the_optimum_of_exhaustive_search():
    for seed in range(520):
        profile, cluster = random_case(seed, n_units=(1, 4), n_devices=(1, 3))
        plan = solve(profile, cluster)
        optimum = exhaustive(profile, cluster, BATCH, STEPS)
        assert plan.round_time == pytest.approx(optimum, rel=1e-9), f"seed {seed}"
        assert plan.lower_bound == pytest.approx(optimum, rel=1e-9), f"seed {seed}"
        by_envelopes = best_split(EdgeSplitProblem(profile, cluster, BATCH, STEPS))[2]
        assert by_envelopes == pytest.approx(optimum, rel=1e-9), f"seed {seed}"


def test_exact_is_the_optimum_with_a_privacy_floor_and_measured_devices():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        profile, cluster = random_case(seed, n_units=(3, 4), n_devices=(2, 3), memory=False)
        tables = [np.concatenate([[0], np.cumsum(rng.lognormal(-4, 1, profile.n_units))]) for _ in range(2)]
        own = [measured(profile, table, 2 * table) for table in tables]
        cluster = dataclasses.replace(cluster, profiles=(own[0], *(None, own[1])[: cluster.n_devices - 1]))
        plan = solve(profile, cluster, min_cut=2)
        optimum = exhaustive(profile, cluster, BATCH, STEPS, 2)
        assert plan.round_time == pytest.approx(optimum, rel=1e-9), f"seed {seed}"
        by_envelopes = best_split(EdgeSplitProblem(profile, cluster, BATCH, STEPS, 2))[2]
        assert by_envelopes == pytest.approx(optimum, rel=1e-9), f"seed {seed}"
        assert (plan.cuts >= 2).all() and plan.min_cut == 2


def test_exact_is_the_optimum_of_whole_resource_blocks():
    for seed in range(220):
        profile, cluster = random_case(seed, n_units=(1, 3), n_devices=(1, 3), blocks_per_device=(1, 3.4))
        n_blocks = round(cluster.bandwidth / cluster.resource_block)
        plan = solve(profile, cluster)
        optimum = exhaustive_blocks(profile, cluster, BATCH, STEPS, n_blocks)
        assert plan.round_time == pytest.approx(optimum, rel=1e-9), f"seed {seed}"
        by_envelopes = best_split(EdgeSplitProblem(profile, cluster, BATCH, STEPS))[2]
        assert by_envelopes == pytest.approx(optimum, rel=1e-9), f"seed {seed}"
        counts = plan.bandwidth / cluster.resource_block
        np.testing.assert_allclose(counts, np.rint(counts), rtol=1e-12)
        assert counts.min() >= 1 and np.rint(counts).sum() == n_blocks, f"seed {seed}"


def test_exact_is_the_optimum_where_cuts_send_nothing():
    without_band = 0
    for seed in range(150):
        profile, cluster = random_case(seed, n_units=(1, 4), n_devices=(1, 3))
        profile = drop_bits(profile, np.random.default_rng(seed))
        optimum = exhaustive(profile, cluster, BATCH, STEPS)
        for method in ("exact", "bisection"):
            plan = solve(profile, cluster, method)
            assert plan.round_time == pytest.approx(optimum, rel=1e-9), f"seed {seed}, {method}"
            assert plan.lower_bound == pytest.approx(optimum, rel=1e-9), f"seed {seed}, {method}"
        by_envelopes = best_split(EdgeSplitProblem(profile, cluster, BATCH, STEPS))[2]
        assert by_envelopes == pytest.approx(optimum, rel=1e-9), f"seed {seed}"
        assert solve(profile, cluster, "alternating").round_time >= optimum * (1 - 1e-9), f"seed {seed}"
        without_band += (plan.bandwidth == 0).any()
    assert without_band > 20  # devices without bandwidth did occur


def test_exact_equals_bisection_on_larger_clusters_of_every_kind():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        blocks = (1, 20) if seed % 2 else None
        profile, cluster = random_case(seed, n_units=(5, 30), n_devices=(80, 300), blocks_per_device=blocks)
        if seed % 3 == 0:
            own = [measured(profile, profile.fwd_cost / s, profile.bwd_cost / s) for s in rng.lognormal(25, 1, 3)]
            picks = rng.integers(4, size=cluster.n_devices)
            cluster = dataclasses.replace(cluster, profiles=tuple([*own, None][k] for k in picks))
        if seed % 5 == 0:
            profile = drop_bits(profile, rng)
        plan, slow = solve(profile, cluster), solve(profile, cluster, "bisection", bound=False)
        assert plan.round_time == pytest.approx(slow.round_time, rel=1e-9), f"seed {seed}"
        for kind in (EdgeSplitProblem, EnumeratedProblem):
            problem = kind(profile, cluster, BATCH, STEPS)
            assert best_split(problem)[2] == pytest.approx(plan.round_time, rel=1e-9), f"seed {seed}"
        if blocks is None:
            near = bisect_deadline(problem, 1e-9)
            assert plan.round_time * (1 - 1e-12) <= near <= plan.round_time * (1 + 2e-9), f"seed {seed}"


def test_small_clusters_are_enumerated_and_large_ones_not():
    profile, cluster = random_case(1, n_units=(5, 5), n_devices=(SMALL + 1, SMALL + 1), memory=True)
    few = dataclasses.replace(
        cluster, device_speed=cluster.device_speed[1:], device_memory=cluster.device_memory[1:],
        spectral_efficiency=cluster.spectral_efficiency[1:],
    )  # fmt: skip
    for case, kind in ((cluster, EdgeSplitProblem), (few, EnumeratedProblem)):
        problem = make_problem(profile, case, BATCH, STEPS)
        assert type(problem) is kind
        plan = solve(profile, case)
        assert plan.gap < 1e-12
        assert best_split(problem)[2] == pytest.approx(solve(profile, case, "bisection").round_time, rel=1e-9)


def _optimum_in_fractions(profile, cluster):
    """Return the optimal round time of a continuous band in exact arithmetic, by bisection; memory without limit."""
    fwd, bwd = ([Fraction(v) for v in row.tolist()] for row in (profile.fwd_cost, profile.bwd_cost))
    samples, total = BATCH * STEPS, Fraction(cluster.bandwidth)
    share = Fraction(cluster.n_devices) / Fraction(cluster.server_speed)
    cuts = range(1, profile.n_units + 1)
    load = [Fraction(bits(profile, j, BATCH, STEPS)) for j in cuts]
    own = [samples * (fwd[j] + bwd[j]) for j in cuts]
    rest = [samples * ((fwd[-1] - fwd[j]) + (bwd[-1] - bwd[j])) * share for j in cuts]
    options = [
        [(c / Fraction(s) + r, q / Fraction(e)) for c, r, q in zip(own, rest, load, strict=True)]
        for s, e in zip(cluster.device_speed.tolist(), cluster.spectral_efficiency.tolist(), strict=True)
    ]
    low = max(min(c for c, _ in device) for device in options)
    high = max(min(c + q * cluster.n_devices / total for c, q in device) for device in options)
    for _ in range(60):
        middle = (low + high) / 2
        need = Fraction(0)
        for device in options:
            in_time = [q / (middle - c) for c, q in device if c < middle]
            need += min(in_time) if in_time else 2 * total
        low, high = (low, middle) if need <= total else (middle, high)
    return float(high)


def test_digits_of_a_small_backward_pass_beside_a_large_forward_pass():
    # Sums of both passes swallow the smaller one; what is left to the server is their difference.
    for seed in range(12):
        rng = np.random.default_rng(seed)
        profile, _ = random_case(seed, n_units=(3, 5))
        n = int(rng.integers(1, 4))
        forward = np.minimum(np.arange(profile.n_units + 1), 1) * 1e12  # all of it in the first unit
        backward = np.concatenate([[0], np.cumsum(rng.lognormal(-4, 1, profile.n_units))])
        profile = dataclasses.replace(profile, fwd_cost=forward, bwd_cost=backward, last_bwd_cost=0.0)
        # A server so slow that the rest of the backward pass takes as long as the devices' forward pass.
        cluster = EdgeCluster(rng.lognormal(27, 1, n), np.inf, rng.uniform(1, 5, n), 1e12, n * 10 ** rng.uniform(-3, 0))
        optimum = _optimum_in_fractions(profile, cluster)
        for kind in (EdgeSplitProblem, EnumeratedProblem):
            found = best_split(kind(profile, cluster, BATCH, STEPS))[2]
            assert found == pytest.approx(optimum, rel=1e-13), f"seed {seed}, {kind.__name__}"


@pytest.mark.parametrize("block", [None, 1e5])
@pytest.mark.parametrize("method", edgesplit.METHODS)
def test_a_round_without_work_or_bits_ends(method, block):
    profile = Profile(("in", "flat", "out"), *([[0, 0, 0]] * 2), [64, 64, 64], *([[0, 0, 0]] * 3))
    cluster = EdgeCluster([1e9, 2e9], np.inf, 1.0, 1e6, 1e10, resource_block=block)
    plan = solve(profile, cluster, method)  # it trains everything on the device and sends no parameters
    assert plan.round_time == plan.lower_bound == plan.gap == 0


def test_both_rules_for_cuts_equal_enumeration():
    for seed in range(40):
        profile, cluster = random_case(
            seed, n_units=(1, 30), n_devices=(310, 700)
        )  # some groups by envelope, others not
        fast, slow = (kind(profile, cluster, BATCH, STEPS) for kind in (EdgeSplitProblem, EnumeratedProblem))
        width = cluster.bandwidth / cluster.n_devices * np.random.default_rng(seed).lognormal(0, 2, cluster.n_devices)
        times = [problem.times(problem.best_cuts(width), width) for problem in (fast, slow)]
        np.testing.assert_allclose(*times, rtol=1e-12, err_msg=f"seed {seed}")
        for deadline in np.quantile(times[0], (0.5, 0.9, 1.0)) * 1.01:
            need = [problem.bandwidth_for(problem.min_bandwidth_cuts(deadline), deadline) for problem in (fast, slow)]
            np.testing.assert_allclose(*need, rtol=1e-9, err_msg=f"seed {seed}")
            np.testing.assert_allclose(need[0], slow.least_bandwidth(deadline), rtol=1e-9, err_msg=f"seed {seed}")


def test_lowest_lines():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        k = int(rng.integers(1, 12))
        # Few values: parallel, equal and concurrent lines are common.
        intercept, slope = rng.integers(-3, 4, size=(2, k)).astype(float)
        x = rng.uniform(-5, 5, 400)
        best = (intercept + slope * x[:, None]).min(axis=1)
        for places in (x, x[:10]):
            found = lowest_lines(intercept, slope, places)
            np.testing.assert_allclose(intercept[found] + slope[found] * places, best[: len(places)], atol=1e-12)


def test_undominated_choices():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        cost, need = rng.integers(0, 5, size=(2, int(rng.integers(1, 10))))
        keep = undominated(cost, need)
        for j in range(len(cost)):
            beaten = [i for i in range(len(cost)) if cost[i] <= cost[j] and need[i] <= need[j] and i != j]
            strictly = any((cost[i], need[i]) != (cost[j], need[j]) for i in beaten)
            twins = [i for i in (*beaten, j) if (cost[i], need[i]) == (cost[j], need[j])]
            assert not (keep[j] and strictly), f"seed {seed}"
            assert strictly or sum(keep[i] for i in twins) == 1, f"seed {seed}"


def test_bandwidth_for_fixed_cuts_equals_cvxpy():
    for seed in range(40):
        profile, cluster = random_case(seed, n_devices=(1, 8), memory=False)
        rng = np.random.default_rng(seed)
        cuts = rng.integers(1, profile.n_units + 1, cluster.n_devices)
        c = np.array([compute_seconds(profile, cluster, i, j, BATCH, STEPS) for i, j in enumerate(cuts)])
        q = np.array([bits(profile, j, BATCH, STEPS) for j in cuts]) / cluster.spectral_efficiency
        shares, deadline = share_band(c, q, cluster.bandwidth)
        assert deadline == pytest.approx(cvxpy_bandwidth(c, q, cluster.bandwidth), rel=1e-6), f"seed {seed}"
        assert shares.sum() == pytest.approx(cluster.bandwidth, rel=1e-12)
        np.testing.assert_allclose(c + q / shares, deadline, rtol=1e-12)


def test_bandwidth_of_lopsided_loads():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 30))
        c, q = 10 ** rng.uniform(-6, 6, n), 10 ** rng.uniform(-9, 9, n)
        total = 10 ** rng.uniform(-6, 12)
        shares, deadline = share_band(c, q, total)
        assert shares.sum() == pytest.approx(total, rel=1e-12), f"seed {seed}"
        np.testing.assert_allclose(c + q / shares, deadline, rtol=1e-9, err_msg=f"seed {seed}")


def test_extreme_clusters_keep_their_digits():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        profile, cluster = random_case(seed, n_units=(1, 10), n_devices=(1, 90))
        wild = dataclasses.replace(
            cluster,
            bandwidth=cluster.bandwidth * 10 ** rng.choice([-8.0, 0.0, 12.0, 30.0]),
            device_speed=cluster.device_speed * 10 ** rng.normal(0, 4, cluster.n_devices),
            spectral_efficiency=cluster.spectral_efficiency * 10 ** rng.normal(0, 3, cluster.n_devices),
            server_speed=cluster.server_speed * 10 ** rng.choice([-6.0, 0.0, 12.0]),
        )
        plan = solve(profile, wild)
        slow = solve(profile, wild, "bisection", bound=False)
        assert plan.round_time == pytest.approx(slow.round_time, rel=1e-9), f"seed {seed}"
        assert plan.gap < 1e-9 and plan.bandwidth.sum() <= wild.bandwidth * (1 + 1e-9), f"seed {seed}"
        last = [
            min(compute_seconds(profile, wild, i, j, BATCH, STEPS) for j in cuts_that_fit(profile, wild, i, BATCH))
            for i in range(wild.n_devices)
        ]
        assert plan.round_time >= max(last) * (1 - 1e-12), f"seed {seed}"


def test_one_device_gets_the_band_and_equal_devices_equal_parts():
    for seed in range(10):
        profile, cluster = random_case(seed, n_devices=(1, 1))
        for method in ("exact", "alternating"):
            plan = solve(profile, cluster, method)
            assert plan.bandwidth == pytest.approx([cluster.bandwidth], rel=1e-12)
            times = [
                compute_seconds(profile, cluster, 0, j, BATCH, STEPS)
                + bits(profile, j, BATCH, STEPS) / (cluster.spectral_efficiency[0] * cluster.bandwidth)
                for j in cuts_that_fit(profile, cluster, 0, BATCH)
            ]
            assert plan.round_time == pytest.approx(min(times), rel=1e-12)
        twins = EdgeCluster([3e9] * 7, 1e15, 2.0, cluster.bandwidth, 1e12)
        for method in ("exact", "alternating", "adaptive-equal", "common-optimal"):
            plan = solve(profile, twins, method)
            np.testing.assert_allclose(plan.bandwidth, twins.bandwidth / 7, rtol=1e-9)
            assert plan.cut is not None and plan.gap < 1e-9


def test_a_deadline_of_computing_alone():
    # With all the band in the world a round takes as long as the slowest device computes at its fastest cut.
    for seed in range(10):
        profile, cluster = random_case(seed)
        vast = dataclasses.replace(cluster, bandwidth=cluster.bandwidth * 1e14)
        fastest = [
            min(compute_seconds(profile, vast, i, j, BATCH, STEPS) for j in cuts_that_fit(profile, vast, i, BATCH))
            for i in range(vast.n_devices)
        ]
        assert solve(profile, vast).round_time == pytest.approx(max(fastest), rel=1e-9)
