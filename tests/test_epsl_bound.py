"""The lower bound: valid at any multipliers and in every regime, tight where the figures say so."""

import numpy as np
import pytest
from scipy.optimize import check_grad

from epsl_scenarios import random_cell, random_profile
from oracles import all_assignments
from psl.schedulers import epsl
from psl.schedulers.epsl.lagrangian_dual import LagrangianDual
from psl.schedulers.epsl.lower_bound import Matching, dual_bound, lower_bound, needs
from psl.schedulers.epsl.power import PowerStep, round_time
from psl.schedulers.epsl.problem import RoundProblem


def small_problem(seed, **options):
    rng = np.random.default_rng(seed)
    n_clients = int(rng.integers(1, 4))
    cell = random_cell(rng, n_clients, int(rng.integers(n_clients, 6)), **options)
    return rng, RoundProblem(random_profile(rng), cell, 16, float(rng.choice([0.0, 0.5, 1.0])))


def best_split(problem, cut):
    """Return (smallest U + V, (N,) U, (N,) V) over all assignments at a cut."""
    assignments = all_assignments(problem.n_clients, problem.n_subchannels)
    up = np.array([PowerStep(problem, cut, assignment).deadline for assignment in assignments])
    down = np.array([problem.downlink_time(cut, assignment).max() for assignment in assignments])
    return float((up + down).min()), up, down


def test_dual_is_valid_at_random_multipliers():
    for seed in range(30):
        rng, problem = small_problem(seed)
        cut = int(rng.choice(problem.cuts))
        optimum, _, _ = best_split(problem, cut)
        scale = optimum * rng.uniform(0.3, 3)
        dual = LagrangianDual(problem, cut, np.ones(problem.n_clients), (0.0, 0.0), scale)
        for _ in range(20):
            x = rng.exponential(rng.choice([0.01, 0.1, 1.0]), 4 * problem.n_clients + 1)
            for smooth in (0.0, 0.01):
                assert dual.value(x, smooth)[0] * scale <= optimum * (1 + 1e-9), f"seed {seed}"


def test_gradient_of_the_dual():
    for seed in range(10):
        rng, problem = small_problem(seed)
        dual = LagrangianDual(problem, 2, np.ones(problem.n_clients), (0.0, 0.0), 10.0)
        x = rng.uniform(0.01, 0.2, 4 * problem.n_clients + 1)
        size = np.linalg.norm(dual.value(x, 0.05)[1])
        error = check_grad(lambda x, d=dual: d.value(x, 0.05)[0], lambda x, d=dual: d.value(x, 0.05)[1], x)
        assert error <= 1e-4 * size, f"seed {seed}"


def test_needs_hold_for_every_plan_within_the_budget():
    for seed in range(40):
        rng, problem = small_problem(seed)
        cut = int(rng.choice(problem.cuts))
        optimum, up, down = best_split(problem, cut)
        assignments = all_assignments(problem.n_clients, problem.n_subchannels)
        budget = optimum * rng.uniform(1.0001, 1.5)
        needed = needs(problem, cut, budget)
        assert needed is not None, f"seed {seed}"
        for assignment, u, v in zip(assignments, up, down, strict=True):
            if u + v < budget:
                held = np.bincount(assignment, minlength=problem.n_clients)
                assert (held >= needed.counts).all() and (held <= needed.most).all(), f"seed {seed}"
                assert u >= needed.earliest[0] * (1 - 1e-9) and v >= needed.earliest[1] * (1 - 1e-9), f"seed {seed}"


def test_matching_never_excludes_a_plan_that_exists():
    for seed in range(40):
        rng, problem = small_problem(seed, unequal=False)
        cut = int(rng.choice(problem.cuts))
        optimum, up, down = best_split(problem, cut)
        matching = Matching(problem, cut, optimum * 1.2)
        if not matching.applies:
            continue
        assert not matching.excludes(optimum * (1 + 1e-9)), f"seed {seed}"
        inside = up + down < optimum * 1.2
        for u, v in zip(up[inside], down[inside], strict=True):
            assert matching.feasible(u * (1 + 1e-12), v * (1 + 1e-12)), f"seed {seed}"


@pytest.mark.slow
def test_matching_raises_the_bound_with_one_subchannel_each():
    # M = C: sharing subchannels in fractions is far too optimistic, whole ones must be matched.
    better = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        problem = RoundProblem(random_profile(rng), random_cell(rng, 4, 4, unequal=False, speed=100.0), 16, 0.0)
        optimum = min(best_split(problem, cut)[0] + problem.constant[cut] for cut in problem.cuts)
        value = lower_bound(problem, optimum)
        alone = min(dual_bound(problem, cut, optimum).value for cut in problem.cuts)
        assert value <= optimum * (1 + 1e-9), f"seed {seed}"
        better += value > alone * (1 + 1e-6)
    assert better > 0


def test_bound_of_one_client_is_met():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        plan = epsl.solve(random_profile(rng), random_cell(rng, 1, 6), phi=0.4)
        assert plan.gap <= 1e-6, f"seed {seed}"


def test_bound_with_unlimited_rates_is_met():
    rng = np.random.default_rng(0)
    profile = random_profile(rng, bits=1e-9)
    for phi in (0.0, 0.5, 1.0):
        plan = epsl.solve(profile, random_cell(rng, 3, 6), phi=phi)
        assert 0 <= plan.gap <= 1e-6


def test_bound_depends_little_on_the_incumbent_and_never_exceeds_it():
    rng = np.random.default_rng(5)
    problem = RoundProblem(random_profile(rng), random_cell(rng, 3, 9), 16, 0.5)
    plan = epsl.solve(problem.profile, problem.cell, batch_size=16)
    for factor in (1.0, 1.1, 2.0):
        assert lower_bound(problem, plan.round_time * factor) <= plan.round_time * (1 + 1e-9)
    assert lower_bound(problem, 1e-3) == 1e-3


@pytest.mark.parametrize(("n_clients", "m", "target", "seeds"), [(5, 20, 0.01, 8), (50, 200, 0.015, 1)])
def test_certified_gap(n_clients, m, target, seeds):
    gaps = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        cell = random_cell(rng, n_clients, m, total_dbm=37 + 10 * np.log10(n_clients / 5), speed=1.0)
        scaled = type(cell)(**{**vars(cell), "server_speed": cell.server_speed * n_clients / 5})
        plan = epsl.solve(random_profile(rng, n_units=8), scaled)
        problem = RoundProblem(plan.profile, scaled, 64, 0.5)
        assert plan.round_time == pytest.approx(round_time(problem, plan.cut, plan.assignment, plan.power), rel=1e-12)
        gaps.append(plan.gap)
    assert np.mean(gaps) <= target, f"gaps {gaps}"
