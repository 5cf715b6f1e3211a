"""Rounds and plans in which rows are drawn: by hand, against exhaustive search, simulated, and in training."""

import dataclasses
import json

import numpy as np
import pytest

import psl
from epsl_scenarios import random_cell, random_profile
from oracles import exhaustive
from psl.errors import ScenarioError
from psl.gradient_aggregation import sampled_rows
from psl.schedulers import epsl
from psl.simulation import lower_bound, simulate
from test_epsl_exhaustive import small_scenario
from test_epsl_latency import CELL, PLAN, PROFILE


def terms(phi=0.5, **options):
    return epsl.latency(PROFILE, CELL, cut=1, phi=phi, linearise="sampled", **PLAN, **options)


def test_a_round_by_hand():
    # φ = 0.5, b = 4, N = 2: 2 + 2·2 = 6 rows, 3 of each client. Rates are those of test_epsl_latency.
    result, averaged = terms(), epsl.latency(PROFILE, CELL, cut=1, phi=0.5, **PLAN)
    assert result.uplink == averaged.uplink and result.server_forward == averaged.server_forward
    assert result.second_forward == pytest.approx(6 * 26 / 100)
    assert result.server_backward == pytest.approx(6 * (68 - 16) / 100)
    assert result.broadcast == 0
    assert result.downlink_of == pytest.approx([3 * 24 / 9 + 3 * 16 / 10, 3 * 24 / 2 + 3 * 16 / 20])
    assert result.total == pytest.approx(26 + 2.08 + 1.56 + 3.12 + 36 + 2.4)
    assert result.to_frame().loc["second_forward", "seconds"] == result.second_forward
    assert "second_forward" not in averaged.to_frame().index


def test_clients_get_unequal_rows_where_they_do_not_divide():
    # φ = 0.75: 3 + 2·1 = 5 rows, 3 of client 0 and 2 of client 1.
    assert terms(0.75).downlink_of == pytest.approx([3 * 24 / 9 + 3 * 16 / 10, 2 * 24 / 2 + 2 * 16 / 20])


def test_all_rows_are_psl():
    assert terms(0.0).total == epsl.latency(PROFILE, CELL, cut=1, phi=0.0, framework="psl", **PLAN).total


@pytest.mark.parametrize("block", range(3))
def test_plans_are_near_the_optimum_and_the_bound_is_below_it(block):
    excess = []
    for seed in range(25 * block, 25 * block + 25):
        profile, cell, phi = small_scenario(seed)
        rng = np.random.default_rng(seed)
        if rng.random() < 0.5:
            cell = dataclasses.replace(cell, round_overhead=rng.uniform(0, 0.1), message_overhead=rng.uniform(0, 0.1))
        if rng.random() < 0.2:  # a cut where nothing before it trains saves messages
            bits = profile.grad_bits.copy()
            bits[:2] = 0
            profile = dataclasses.replace(profile, grad_bits=bits)
        optimum, _, _ = exhaustive(profile, cell, 16, phi, drawn=True)
        plan = epsl.solve(profile, cell, batch_size=16, phi=phi, linearise="sampled")
        assert plan.lower_bound <= optimum * (1 + 1e-8), f"seed {seed}: the bound is above the optimum"
        assert plan.round_time >= optimum * (1 - 1e-8), f"seed {seed}: better than the optimum, so wrong"
        assert plan.rows.tolist() == sampled_rows(phi, 16, cell.n_clients).tolist()
        excess.append(plan.round_time / optimum - 1)
    assert np.quantile(excess, 0.99) <= 0.01, f"seeds {25 * block}..{25 * block + 24}: {np.sort(excess)[-3:]}"


def test_every_method_lies_between_bound_and_nothing():
    for seed in range(200, 204):
        profile, cell, phi = small_scenario(seed)
        optimum, _, _ = exhaustive(profile, cell, 16, phi, drawn=True)
        for method in epsl.METHODS:
            plan = epsl.solve(profile, cell, batch_size=16, phi=phi, method=method, linearise="sampled")
            assert plan.lower_bound <= optimum * (1 + 1e-8), f"seed {seed}, {method}"
            assert plan.round_time >= optimum * (1 - 1e-8), f"seed {seed}, {method}"


def drawn_plan(rng, phi=None, **overheads):
    n_clients, n_subchannels = int(rng.integers(1, 5)), int(rng.integers(4, 9))
    cell = dataclasses.replace(random_cell(rng, n_clients, n_subchannels), **overheads)
    owner = rng.permutation(np.arange(n_subchannels) % n_clients)
    spent = np.minimum(cell.client_power, cell.total_power / n_clients) / np.bincount(owner, cell.bandwidth)
    profile, phi = random_profile(rng), float(rng.choice([0, 0.3, 1])) if phi is None else phi
    return epsl.EPSLPlan(
        profile, cell, batch_size=int(rng.integers(1, 65)), phi=phi, method="random", power=spent[owner],
        cut=int(rng.integers(1, profile.n_units)), assignment=owner, linearise="sampled",
    )  # fmt: skip


def test_the_simulation_equals_the_round_time():
    for seed in range(150):
        rng = np.random.default_rng(seed)
        extra = {} if seed % 2 else {"round_overhead": rng.uniform(0, 1), "message_overhead": rng.uniform(0, 1)}
        plan = drawn_plan(rng, **extra)
        timeline = simulate(plan)
        assert timeline.makespan == pytest.approx(plan.round_time, rel=1e-9), f"seed {seed}"
        assert lower_bound(plan) == pytest.approx(plan.round_time, rel=1e-9), f"seed {seed}"
        assert "broadcast" not in set(timeline.to_frame()["kind"])


def test_a_plan_says_its_rule_and_keeps_its_bound_for_it_alone():
    profile, cell, _ = small_scenario(3)
    plan = epsl.solve(profile, cell, batch_size=16, phi=0.5, linearise="sampled")
    assert plan.linearise == "sampled" and f"{plan.rows.sum()} rows drawn" in repr(plan)
    assert "rows drawn" in plan._repr_html_()
    assert epsl.EPSLPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    other = dataclasses.replace(plan, linearise="representative")
    assert np.isnan(other.lower_bound) and not np.isnan(plan.lower_bound)
    assert other.rows.tolist() == [16] * cell.n_clients
    old = {name: value for name, value in other.to_dict().items() if name != "linearise"}
    assert epsl.EPSLPlan.from_dict(old) == other, "files from before there was a rule"
    with pytest.raises(ScenarioError, match="linearise: expected one of 'representative', 'sampled', got 'mean'"):
        epsl.solve(profile, cell, linearise="mean")


def test_training_takes_the_rule_of_its_plan_and_refuses_another():
    profile = psl.profile(psl.models.cnn(), (1, 8, 8))
    cell = psl.WirelessCell.sample(2, 4, channel="log-distance")
    plans = {
        rule: epsl.solve(profile, cell, batch_size=16, phi=1.0, cut="pool1", bound=False, linearise=rule)
        for rule in ("sampled", "representative")
    }

    def train(framework, rule, **options):
        return psl.train(
            framework, psl.models.cnn(), "digits", rounds=2, plan=plans[rule], progress=False, eval_every=2, **options
        )

    history = train("epsl", "sampled")
    assert history.settings["linearise"] == "sampled" and history.server_rows.tolist() == [16, 16]
    assert history.simulated_time_s[-1] == pytest.approx(2 * plans["sampled"].round_time)
    few = train("epsl", "sampled", rows="adaptive")
    seconds = [plans["sampled"].round_time_of("epsl", rows=sampled_like(rows)) for rows in few.server_rows]
    assert few.simulated_time_s == pytest.approx(np.cumsum(seconds))
    assert train("epsl", "representative", linearise="mean").settings["linearise"] == "mean"
    with pytest.raises(ScenarioError, match="linearise: expected the plan's 'sampled', got 'representative'"):
        train("epsl", "sampled", linearise="representative")
    with pytest.raises(ScenarioError, match=r"got 'sampled'. Fix: leave it out, or solve .*linearise='sampled'"):
        train("epsl", "representative", linearise="sampled")
    assert train("psl", "sampled").simulated_time_s[0] == plans["representative"].framework_round_time("psl")


def sampled_like(total):
    """Return rows of two clients in equal shares."""
    return np.array([total - total // 2, total // 2])


def test_rivals_take_their_own_time():
    profile = psl.profile(psl.models.cnn(), (1, 8, 8))
    cell = psl.WirelessCell.sample(2, 4, channel="log-distance")
    plan = epsl.solve(profile, cell, batch_size=16, phi=0.0, cut="pool1", bound=False)
    options = {"rounds": 3, "plan": plan, "progress": False, "eval_every": 3}
    pooled = psl.train("psl", psl.models.cnn(), "digits", sampling="global", **options)
    assert len(set(np.diff(pooled.simulated_time_s))) > 1, "mini-batches differ, and so do rounds"
    even = plan.round_time_of("psl", samples=np.array([16, 16]))
    assert even == pytest.approx(plan.round_time), "equal shares are PSL's round"
    assert plan.round_time_of("psl", samples=np.array([32, 0])) > plan.round_time
    cycled = psl.train("psl", psl.models.cnn(), "digits", server_steps=4, **options)
    psl_terms, terms = plan.latency("psl"), plan.latency("psl", server_steps=4)
    assert cycled.simulated_time_s[0] == pytest.approx(terms.total)
    extra = psl_terms.server_forward + psl_terms.server_backward
    assert terms.total == pytest.approx(psl_terms.total + extra)


def test_readings_that_keep_all_rows_take_the_time_of_all_rows():
    profile = psl.profile(psl.models.cnn(), (1, 8, 8))
    plan = epsl.solve(profile, psl.WirelessCell.sample(3, 6, seed=2), batch_size=8, phi=1.0, cut="pool1", bound=False)
    averaged, every = plan.latency(), plan.latency("psl")
    assert averaged.server_backward < every.server_backward
    for rule in ("each", "cut"):
        assert plan.latency(linearise=rule).server_backward == every.server_backward
        assert plan.latency(linearise=rule).broadcast == averaged.broadcast
    further = plan.latency(linearise="mean")
    assert further.second_forward == pytest.approx(averaged.server_forward / 3)
    for rule, time in (("representative", plan.round_time), ("cut", plan.latency(linearise="cut").total)):
        options = {"rounds": 1, "linearise": rule, "plan": plan, "progress": False}
        assert psl.train("epsl", psl.models.cnn(), "digits", **options).simulated_time_s[0] == pytest.approx(time)
