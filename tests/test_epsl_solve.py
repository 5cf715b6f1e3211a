"""Plans: limits, symmetries, monotonicity, the methods, and the errors of bad input."""

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epsl_scenarios import random_cell, random_profile
from psl.errors import InfeasibleError, ScenarioError
from psl.gradient_aggregation import aggregated_rows, server_rows
from psl.schedulers import epsl
from psl.schedulers.epsl.local_search import State, bounds, local_search, neighbours
from psl.schedulers.epsl.power import round_time
from psl.schedulers.epsl.problem import RoundProblem


def scenario(seed, n_clients=4, m=9, **options):
    rng = np.random.default_rng(seed)
    return random_profile(rng), random_cell(rng, n_clients, m, **options)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 6), st.sampled_from([0, 0.3, 1]),
    st.sampled_from(epsl.METHODS),
)  # fmt: skip
def test_plan_is_consistent(seed, n_clients, extra, phi, method):
    profile, cell = scenario(seed, n_clients, n_clients + extra)
    plan = epsl.solve(profile, cell, batch_size=16, phi=phi, method=method, seed=seed)
    again = epsl.latency(
        profile, cell, cut=plan.cut, assignment=plan.assignment, power=plan.power, batch_size=16, phi=phi
    )
    assert plan.round_time == again.total == plan.framework_round_time("epsl")
    spent = np.bincount(plan.assignment, plan.power * cell.bandwidth, n_clients)
    assert (spent <= cell.client_power * (1 + 1e-12)).all()
    assert spent.sum() <= cell.total_power * (1 + 1e-12)
    assert set(plan.assignment) == set(range(n_clients))
    assert 1 <= plan.cut <= profile.n_units - 1
    assert 0 < plan.lower_bound <= plan.round_time
    times = [event["round_time"] for event in plan.history]
    assert all(b <= a for a, b in pairwise(times))
    assert times[-1] == pytest.approx(plan.round_time, rel=1e-9)


def test_same_seed_same_plan():
    profile, cell = scenario(1)
    for method in epsl.METHODS:
        assert epsl.solve(profile, cell, method=method, seed=3) == epsl.solve(profile, cell, method=method, seed=3)


def test_search_is_never_worse_than_any_other_method():
    for seed in range(12):
        profile, cell = scenario(seed)
        best = epsl.solve(profile, cell, bound=False).round_time
        for method in epsl.METHODS[1:]:
            other = epsl.solve(profile, cell, method=method, seed=seed, bound=False)
            assert best <= other.round_time * (1 + 1e-9), f"seed {seed}, {method}"


def test_baselines_isolate_one_decision():
    profile, cell = scenario(2)
    plans = {method: epsl.solve(profile, cell, method=method, bound=False) for method in epsl.METHODS}
    base = plans["random"]
    for method in ("power-only", "cut-only", "channels-only"):
        assert plans[method].round_time <= base.round_time
    assert plans["power-only"].cut == plans["channels-only"].cut == base.cut
    np.testing.assert_array_equal(plans["power-only"].assignment, base.assignment)
    np.testing.assert_array_equal(plans["cut-only"].assignment, base.assignment)
    np.testing.assert_array_equal(plans["cut-only"].power, base.power)


def test_bcd_history_names_its_blocks():
    profile, cell = scenario(3)
    plan = epsl.solve(profile, cell, method="bcd")
    assert [event["block"] for event in plan.history[:4]] == ["start", "subchannels", "power", "cut"]
    assert plan.history[0]["cut"] == 2  # the middle of 1..3
    assert len(plan.history) % 3 == 1


def test_more_power_is_never_worse():
    for seed in range(8):
        profile, cell = scenario(seed, 3, 6, total_dbm=25.0)
        times = []
        for factor in (1.0, 2.0, 8.0):
            richer = dataclasses.replace(cell, total_power=cell.total_power * factor)
            times.append(epsl.solve(profile, richer, bound=False).round_time)
        assert times[1] <= times[0] * (1 + 1e-9) and times[2] <= times[1] * (1 + 1e-9), f"seed {seed}: {times}"


def test_permuting_clients_permutes_the_plan():
    for seed in range(5):
        profile, cell = scenario(seed, 3, 6)
        order = np.array([2, 0, 1])
        permuted = dataclasses.replace(
            cell, client_speed=cell.client_speed[order], uplink_gain=cell.uplink_gain[order],
            client_power=cell.client_power[order], positions=None, line_of_sight=None,
        )  # fmt: skip
        plan, other = epsl.solve(profile, cell), epsl.solve(profile, permuted)
        assert other.round_time == pytest.approx(plan.round_time, rel=1e-9), f"seed {seed}"
        np.testing.assert_array_equal(order[other.assignment], plan.assignment, err_msg=f"seed {seed}")


def test_faster_time_unit_scales_everything():
    profile, cell = scenario(4)
    faster = dataclasses.replace(
        cell, client_speed=cell.client_speed * 10, server_speed=cell.server_speed * 10, bandwidth=cell.bandwidth * 10,
        noise_psd=cell.noise_psd / 10, downlink_psd=cell.downlink_psd / 10,
    )  # fmt: skip
    # Ten times the width at a tenth of the noise density leaves each subchannel's signal-to-noise ratio as it was.
    plan, other = epsl.solve(profile, cell), epsl.solve(profile, faster)
    assert other.round_time == pytest.approx(plan.round_time / 10, rel=1e-6)


def test_phi_zero_is_psl_and_aggregation_never_slows_the_server():
    profile, cell = scenario(5)
    plan = epsl.solve(profile, cell, phi=0.0)
    assert plan.round_time == plan.framework_round_time("psl")
    backward = [
        epsl.latency(
            profile, cell, cut=2, assignment=plan.assignment, power=plan.power, batch_size=64, phi=phi
        ).server_backward
        for phi in (0.0, 0.25, 0.5, 1.0)
    ]
    assert all(b < a for a, b in pairwise(backward))


def test_fixed_cut_by_number_and_name():
    profile, cell = scenario(6)
    for cut in range(1, profile.n_units):
        plan = epsl.solve(profile, cell, cut=cut)
        assert plan.cut == cut and plan == epsl.solve(profile, cell, cut=profile.names[cut])
        assert plan.lower_bound <= plan.round_time
    free = epsl.solve(profile, cell)
    fixed = [epsl.solve(profile, cell, cut=j).round_time for j in range(1, profile.n_units)]
    assert free.round_time <= min(fixed) * 1.001


def test_only_cuts_that_can_be_best_are_searched():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        problem = RoundProblem(random_profile(rng, n_units=7), random_cell(rng, 3, 5), 16, 0.5)
        assignment = rng.permutation([0, 1, 2, 0, 1])
        times = {j: round_time(problem, j, assignment) for j in problem.cuts}
        assert min(times, key=times.get) in problem.candidates, f"seed {seed}"
    profile, cell = scenario(0)
    twice = np.array([0, 1, 1, 2, 3, 4])  # a ReLU that costs nothing repeats its predecessor's row
    arrays = ("fwd_cost", "bwd_cost", "act_bits", "grad_bits", "param_bits", "act_memory")
    longer = dataclasses.replace(
        profile, names=["input", "conv", "relu", "a", "b", "output"],
        **{name: getattr(profile, name)[twice] for name in arrays},
    )  # fmt: skip
    assert 1 not in RoundProblem(longer, cell, 16, 0.5).candidates
    assert epsl.solve(longer, cell).round_time == epsl.solve(profile, cell).round_time


def test_extreme_cells_are_planned_without_losing_digits():
    # Gains, limits, widths and speeds over many orders of magnitude; activations or gradients of no bits.
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n_clients = int(rng.integers(1, 7))
        m = n_clients + int(rng.integers(0, 9))
        profile, cell = random_profile(rng, n_units=5), random_cell(rng, n_clients, m)
        wild = dataclasses.replace(
            cell,
            uplink_gain=cell.uplink_gain * 10 ** rng.normal(0, rng.choice([0, 2, 6]), (n_clients, m)),
            total_power=cell.total_power * 10 ** rng.choice([-6.0, 0.0, 6.0]),
            client_power=cell.client_power * 10 ** rng.normal(0, 2, n_clients),
            bandwidth=cell.bandwidth * 10 ** rng.choice([-4.0, 0.0, 8.0]),
            client_speed=cell.client_speed * 10 ** rng.normal(0, 2, n_clients),
        )
        if rng.random() < 0.4:
            profile = dataclasses.replace(profile, **{rng.choice(["act_bits", "grad_bits"]): np.zeros(6)})
        plan = epsl.solve(profile, wild, batch_size=16, phi=float(rng.choice([0.0, 0.5, 1.0])))
        assert plan.history[-1]["round_time"] == pytest.approx(plan.round_time, rel=1e-7), f"seed {seed}"
        assert plan.lower_bound <= plan.round_time, f"seed {seed}"


def test_slots_are_counted_without_rounding_surprises():
    assert [aggregated_rows(phi, 100) for phi in (0.0, 0.07, 0.5, 0.501, 1.0)] == [0, 7, 50, 51, 100]
    assert [server_rows(phi, 100, 5) for phi in (0.0, 0.07, 0.5, 0.501, 1.0)] == [500, 472, 300, 296, 100]
    assert server_rows(0.3, 100, 1) == 100, "one client saves nothing"


def test_candidates_are_bounded_from_below_and_none_is_missed():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n_clients = int(rng.integers(2, 5))
        problem = RoundProblem(random_profile(rng), random_cell(rng, n_clients, n_clients + 4), 16, 0.5)
        cut = int(rng.choice(problem.cuts))
        assignment = rng.permutation(np.concatenate([np.arange(n_clients), rng.integers(n_clients, size=4)]))
        state = State(problem, cut, assignment)
        moves = neighbours(state)
        for n, bound in enumerate(bounds(state, moves)):
            trial = assignment.copy()
            trial[moves.k[n]] = moves.b[n]
            if moves.back[n] >= 0:
                trial[moves.back[n]] = moves.a[n]
            assert bound <= State(problem, cut, trial).time * (1 + 1e-9), f"seed {seed}, candidate {n}"
        # Local optimality, by trying every move and swap.
        found = local_search(problem, cut, assignment)
        for k in range(len(assignment)):
            for other in (*range(n_clients), *(-1 - other for other in range(k))):
                trial = found.assignment.copy()
                if other >= 0:
                    trial[k] = other
                else:
                    trial[k], trial[-1 - other] = trial[-1 - other], trial[k]
                if len(set(trial)) == n_clients:
                    assert State(problem, cut, trial).time >= found.time * (1 - 1e-9), f"seed {seed}"


def test_plan_round_trip_repr_and_table():
    profile, cell = scenario(7)
    plan = epsl.solve(profile, cell)
    again = epsl.EPSLPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan and again.gap == plan.gap
    for part in (plan.cut_name, f"{plan.round_time:.6g} s", "lower bound", "gap", "search"):
        assert part in repr(plan)
    frame = plan.to_frame()
    assert frame["subchannels"].sum() == cell.n_subchannels
    assert frame["uplink_s"].max() == pytest.approx(plan.latency().uplink)
    blind = epsl.solve(profile, cell, bound=False)
    assert np.isnan(blind.lower_bound) and np.isnan(blind.gap) and "no lower bound" in repr(blind)
    assert epsl.EPSLPlan.from_dict(json.loads(json.dumps(blind.to_dict()))) == blind


def test_progress_bar(capsys):
    profile, cell = scenario(8)
    epsl.solve(profile, cell, progress=True, bound=False)
    assert "EPSL search" in capsys.readouterr().err
    epsl.solve(profile, cell, bound=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, r"method: expected one of 'search', 'bcd'.*got 'magic'"),
        ({"phi": 2}, r"phi: expected a value of at most 1, got 2"),
        ({"phi": -1e-3}, r"phi: expected values of at least 0"),
        ({"batch_size": 2.5}, r"batch_size: expected a whole number, got 2\.5"),
        ({"cut": 0}, r"cut: expected 1\.\.3"),
        ({"cut": 4}, r"cut: expected 1\.\.3.*last layer on the server"),
        ({"cut": "nowhere"}, r"got 'nowhere'"),
        *(({"cut": cut}, r"cut: expected a number 0\.\.4 or a name") for cut in (float("nan"), np.inf, [1], True)),
        ({"batch_size": float("nan")}, r"batch_size: expected a whole number, got nan"),
        ({"batch_size": np.inf}, r"batch_size: expected a whole number, got inf"),
        ({"seed": -1}, r"seed: expected at least 0, got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    profile, cell = scenario(9)
    with pytest.raises(ScenarioError, match=message):
        epsl.solve(profile, cell, **arguments)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("uplink_gain", np.full((4, 9), np.nan), r"WirelessCell\.uplink_gain: expected finite numbers, got nan"),
        ("bandwidth", -1e6, r"WirelessCell\.bandwidth: expected values above 0, got -1e\+06"),
    ],
)
def test_bad_cells(field, value, message):
    _, cell = scenario(9)
    with pytest.raises(ScenarioError, match=message):
        dataclasses.replace(cell, **{field: value})


@pytest.mark.parametrize("method", epsl.METHODS)
def test_a_cell_nobody_can_send_in_is_infeasible(method):
    profile, cell = scenario(9)
    for change in ({"uplink_gain": cell.uplink_gain * 1e-200}, {"total_power": 1e-200}):
        silent = dataclasses.replace(cell, **change)
        with pytest.raises(InfeasibleError, match=r"cell: expected a rate above 0 .* Fix: check gains \(linear"):
            epsl.solve(profile, silent, method=method)


def test_a_model_of_one_unit_cannot_be_planned():
    rng = np.random.default_rng(0)
    with pytest.raises(ScenarioError, match=r"profile: expected at least 2 units"):
        epsl.solve(random_profile(rng, n_units=1), random_cell(rng, 2, 2))


def test_a_plan_refuses_power_beyond_the_limits():
    profile, cell = scenario(10)
    plan = epsl.solve(profile, cell, bound=False)
    with pytest.raises(ScenarioError, match=r"power: expected at most"):
        dataclasses.replace(plan, power=plan.power * 10 + 1e-6)


def test_a_bound_of_another_scenario_is_no_certificate():
    profile, cell = scenario(11)
    plan = epsl.solve(profile, cell, batch_size=16)
    message = r"EPSLPlan\.lower_bound: expected at most the plan's own round time, .*Fix: solve again, or pass lower_b"
    with pytest.raises(ScenarioError, match=message):
        dataclasses.replace(plan, batch_size=2, proven_for="")
    with pytest.raises(ScenarioError, match=r"EPSLPlan\.lower_bound: expected seconds, or NaN for none, got 'low'"):
        dataclasses.replace(plan, lower_bound="low")
    tight = dataclasses.replace(plan, lower_bound=plan.round_time * (1 + 1e-12))
    assert tight.lower_bound == plan.round_time and tight.exact, "above it by rounding only"
    moved = dataclasses.replace(plan, batch_size=2)
    assert moved.round_time < plan.lower_bound and "no lower bound" in repr(moved)


def test_more_restarts_find_no_longer_rounds_and_sometimes_shorter_ones():
    shorter = 0
    for seed in range(6):
        profile, cell = scenario(100 + seed, n_clients=5, m=12)
        none, many = (epsl.solve(profile, cell, batch_size=16, restarts=n, bound=False) for n in (0, 40))
        assert many.round_time <= none.round_time * (1 + 1e-12)
        shorter += many.round_time < none.round_time * (1 - 1e-9)
    assert shorter > 0
    with pytest.raises(ScenarioError, match="restarts: expected at least 0"):
        epsl.solve(profile, cell, restarts=-1)
