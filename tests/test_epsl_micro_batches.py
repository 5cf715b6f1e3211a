"""Rounds in micro-batches: formula, orders, simulation, plans and their bounds."""

import dataclasses

import numpy as np
import pytest

from epsl_scenarios import random_cell, random_profile
from marks import some
from micro_batch_oracles import best_of_all_orders, exhaustive, random_plan, tiny_scenario
from psl.errors import ScenarioError
from psl.schedulers import epsl
from psl.schedulers.epsl.server_order import best_order, longest_tail_first, preemptive_bound, value_of
from psl.schedulers.micro_batches import micro_batch_sizes, numbers_to_try, one_client, releases, tails
from psl.simulation import lower_bound, simulate


def scenario(seed=5, n=3, k=7):
    rng = np.random.default_rng(seed)
    return random_profile(rng), random_cell(rng, n, k, unequal=False)


def test_a_mini_batch_is_divided_with_the_rest_in_the_last_micro_batch():
    assert micro_batch_sizes(64, 8).tolist() == [8] * 8
    assert micro_batch_sizes(64, 5).tolist() == [13, 13, 13, 13, 12]
    assert micro_batch_sizes(3, 3).tolist() == [1, 1, 1]
    assert numbers_to_try(64) == [1, 2, 4, 8, 16, 32] and numbers_to_try(1) == [1]
    for b in range(1, 40):
        for number in numbers_to_try(b):
            assert len(micro_batch_sizes(b, number)) == number and micro_batch_sizes(b, number).sum() == b


def test_closed_forms_of_equal_micro_batches():
    rng = np.random.default_rng(0)
    for _ in range(50):
        m = int(rng.integers(1, 9))
        a, u, p, d, e = rng.exponential(size=5)
        k = np.arange(m)
        every = [np.full(m, x) for x in (a, u, p, d, e)]
        np.testing.assert_allclose(releases(every[0], every[1]), a + u + k * max(a, u))
        np.testing.assert_allclose(tails(every[3], every[4]), d + e + (m - 1 - k) * max(d, e))
        alone = max(m * (a + e), a + u + p + d + e + (m - 1) * max(a, u, p, d, e))
        assert one_client(*every) == pytest.approx(alone)


@pytest.mark.parametrize("seed", range(4))
def test_the_servers_order_is_the_best_of_all_orders(seed):
    rng = np.random.default_rng(seed)
    better = 0
    for trial in range(60):
        n = int(rng.integers(1, 7))
        release, tail = rng.random(n) * rng.choice([1, 3]), rng.random(n) * rng.choice([1, 3])
        seconds = np.full(n, rng.random() * rng.choice([0.3, 1.0]))
        if trial % 3 == 0:  # ties
            release, tail, seconds = np.round(release * 4) / 4, np.round(tail * 4) / 4, np.round(seconds * 4 + 0.5) / 4
        optimum, found = best_of_all_orders(release, tail, seconds), best_order(release, tail, seconds)
        assert found.value == pytest.approx(optimum, rel=1e-9)
        assert value_of(found.order, release, tail, seconds) == pytest.approx(found.value, rel=1e-12)
        seconds = seconds * rng.uniform(0.5, 1.0, n)  # unequal: longest tail first is within one job of the bound
        optimum, tail_first = best_of_all_orders(release, tail, seconds), longest_tail_first(release, tail, seconds)
        bound = preemptive_bound(release, tail, seconds)
        assert bound <= optimum * (1 + 1e-12) and optimum <= tail_first.value * (1 + 1e-12)
        assert tail_first.value <= bound + seconds.max() * (1 + 1e-9)
        better += tail_first.value > optimum * (1 + 1e-9)
    assert better > 0  # the rule alone is not always optimal: the test would not notice otherwise


def test_formula_and_event_simulation_agree_on_a_thousand_plans():
    seen = set()
    for seed in range(1000):
        plan = random_plan(seed)
        timeline = simulate(plan)
        assert timeline.makespan == pytest.approx(plan.round_time, rel=1e-9), f"seed {seed}: {plan}"
        assert plan._pipelined().bound() <= plan.round_time * (1 + 1e-12), f"seed {seed}"
        seen.add((plan.phi, plan.duplex, plan.micro_batches > 1, plan.batch_size % plan.micro_batches > 0))
    assert len(seen) == 2 * 2 * 3  # M = 1 has no uneven last one


def test_one_micro_batch_without_barriers_is_never_longer_than_with_them():
    gain = []
    for seed in range(200):
        plan = random_plan(seed, micro_batches=1, duplex="full")
        plan = dataclasses.replace(plan, cell=dataclasses.replace(plan.cell, call_overhead=0.0))
        barriers = dataclasses.replace(plan, micro_batches=None)
        assert plan.round_time <= barriers.round_time * (1 + 1e-12), f"seed {seed}"
        gain.append(plan.round_time < barriers.round_time * (1 - 1e-6))
    assert np.mean(gain) > 0.3


def test_the_round_tends_to_the_largest_load():
    for seed in range(100):
        plan = random_plan(seed, phi=0.0, duplex="full")
        plain = {"round_overhead": 0.0, "message_overhead": 0.0, "call_overhead": 0.0}
        profile = dataclasses.replace(plan.profile, step_cost=None)
        cell = dataclasses.replace(plan.cell, **plain)
        for number in (1, 2, 4):
            each = dataclasses.replace(plan, profile=profile, cell=cell, batch_size=32, micro_batches=number)
            barriers = dataclasses.replace(each, micro_batches=None).latency()
            server = barriers.server_forward + barriers.server_backward
            load = max(each.latency().busy.values())
            most = load + (barriers.total - server + server / cell.n_clients) / number
            assert load * (1 - 1e-12) <= each.round_time <= most * (1 + 1e-12), f"seed {seed}, M = {number}"


@pytest.mark.parametrize("seed", some(range(60), always=lambda seed: seed < 4))
def test_plans_of_tiny_cells_beside_all_plans(seed):
    profile, cell, phi, duplex = tiny_scenario(seed)
    b, found = 6, {}
    for number in (1, 3):
        found[number] = exhaustive(profile, cell, b, phi, number, duplex)
        plan = epsl.solve(profile, cell, batch_size=b, phi=phi, micro_batches=number, duplex=duplex)
        assert plan.lower_bound <= found[number] * (1 + 1e-9)
        assert plan.round_time <= found[number] * 1.02
    today = epsl.solve(profile, cell, batch_size=b, phi=phi)
    one = epsl.solve(profile, cell, batch_size=b, phi=phi, micro_batches=1, bound=False)
    auto = epsl.solve(profile, cell, batch_size=b, phi=phi, micro_batches="auto", duplex=duplex)
    assert one.round_time <= today.round_time * (1 + 1e-12)
    assert auto.round_time <= today.round_time
    assert auto.lower_bound <= min(*found.values(), today.round_time) * (1 + 1e-9)


def test_a_plan_in_micro_batches_says_what_binds_and_survives_a_file(tmp_path):
    profile, cell = scenario()
    plan = epsl.solve(profile, cell, batch_size=16, phi=0, micro_batches=4)
    assert plan == epsl.EPSLPlan.load(plan.save(tmp_path / "plan.json"))
    found = plan.latency()
    assert found.bottleneck in repr(plan) and "M=4" in repr(plan) and found.bottleneck in plan._repr_html_()
    busy = simulate(plan).utilisation()["busy_s"]
    assert {name: pytest.approx(seconds) for name, seconds in found.busy.items()} == busy.to_dict()
    assert plan.to_frame().shape == (3, 6) and found.to_frame()["share"].max() <= 1 + 1e-12
    assert np.isnan(dataclasses.replace(plan, micro_batches=2).lower_bound)
    assert np.isnan(dataclasses.replace(plan, duplex="half").lower_bound)
    assert plan.training_arguments()["micro_batch"] == 4
    assert plan.framework_round_time("psl") == plan.round_time
    assert plan.framework_round_time("sl") == dataclasses.replace(plan, micro_batches=None).framework_round_time("sl")


def test_without_micro_batches_a_plan_is_what_it_was():
    profile, cell = scenario()
    plan = epsl.solve(profile, cell, batch_size=16, phi=0)
    assert plan == epsl.solve(profile, cell, batch_size=16, phi=0, micro_batches=None)
    assert not {"micro_batches", "duplex"} & set(plan.to_dict())
    assert not {"call_overhead"} & set(cell.to_dict())


def test_micro_batches_that_cost_time_become_fewer():
    profile, cell = scenario()
    free = epsl.solve(profile, cell, batch_size=32, phi=0, micro_batches="auto")
    costly = dataclasses.replace(cell, message_overhead=free.round_time, call_overhead=free.round_time)
    plan = epsl.solve(profile, costly, batch_size=32, phi=0, micro_batches="auto")
    assert free.micro_batches >= 8 and plan.micro_batches in (None, 1)
    assert plan.round_time <= epsl.solve(profile, costly, batch_size=32, phi=0).round_time


def test_a_floor_on_the_cut_holds_and_is_priced():
    profile, cell = scenario()
    free = epsl.solve(profile, cell, batch_size=16, phi=0, micro_batches=4)
    plan = epsl.solve(profile, cell, batch_size=16, phi=0, micro_batches=4, min_cut=3)
    assert plan.cut == 3 and plan.price == pytest.approx(plan.round_time / free.round_time)
    assert epsl.solve(profile, cell, batch_size=16, phi=0, micro_batches=4, cut=3).round_time == plan.round_time


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phi": 0.5, "micro_batches": 4}, "phi: expected 0 or 1 with micro-batches"),
        ({"phi": 1, "micro_batches": 4, "linearise": "sampled"}, "linearise: expected 'representative'"),
        ({"phi": 0, "micro_batches": 9}, "9: 8 samples at a time make 8. Fix: take 8"),
        ({"phi": 0, "micro_batches": 65}, "take 64"),
        ({"phi": 0, "micro_batches": "many"}, "micro_batches: expected"),
        ({"phi": 0, "micro_batches": 0}, "micro_batches: expected"),
        ({"phi": 0, "micro_batches": 4, "duplex": "both"}, "duplex: expected"),
        ({"phi": 0, "micro_batches": 4, "method": "bcd"}, "method: expected 'search' with micro-batches"),
    ],
)
def test_what_is_not_modelled_is_refused(options, message):
    profile, cell = scenario()
    with pytest.raises(ScenarioError, match=message.replace("(", r"\(")):
        epsl.solve(profile, cell, batch_size=64, **options)


def test_rounds_of_other_rows_and_u_shaped_rounds_have_no_micro_batches():
    profile, cell = scenario()
    plan = epsl.solve(profile, cell, batch_size=16, phi=1, micro_batches=4, bound=False)
    with pytest.raises(ScenarioError, match="server_steps"):
        plan.round_time_of("psl", server_steps=2)
    with pytest.raises(ScenarioError, match="micro_batches"):
        epsl.solve_u_shaped(profile, cell, tail_cut=3, batch_size=16, micro_batches=4)
    assert plan.round_time_of("epsl", linearise="each") >= plan.round_time
    assert lower_bound(plan) <= plan.round_time * (1 + 1e-9)
