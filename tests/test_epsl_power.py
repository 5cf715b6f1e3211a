"""The power step against CVXPY and bisection, and its behaviour at the limits."""

import numpy as np
import pytest

from epsl_scenarios import random_cell, random_profile
from oracles import cvxpy_deadline, least_total_power, uplink_deadlines
from psl.schedulers.epsl.power import PowerStep, optimal_power, uplink_time
from psl.schedulers.epsl.problem import RoundProblem
from psl.schedulers.epsl.water_filling import least_power, most_rate


def random_step(seed):
    """Return (problem, cut, assignment) with every client holding a subchannel."""
    rng = np.random.default_rng(seed)
    n_clients = int(rng.integers(1, 6))
    m = int(rng.integers(n_clients, 4 * n_clients + 1))
    cell = random_cell(rng, n_clients, m)
    problem = RoundProblem(random_profile(rng), cell, 16, float(rng.uniform()))
    assignment = np.concatenate([np.arange(n_clients), rng.integers(n_clients, size=m - n_clients)])
    return problem, int(rng.choice(problem.cuts)), rng.permutation(assignment)


@pytest.mark.parametrize("block", range(6))
def test_deadline_equals_cvxpy(block):
    for seed in range(20 * block, 20 * block + 20):
        problem, cut, assignment = random_step(seed)
        oracle, _ = cvxpy_deadline(
            problem.up_compute[cut], problem.up_bits[cut], problem.snr, problem.bandwidth, problem.limit,
            problem.total, assignment,
        )  # fmt: skip
        ours = PowerStep(problem, cut, assignment).deadline
        assert ours == pytest.approx(oracle, rel=1e-5), f"seed {seed}"


def test_deadline_equals_bisection():
    for seed in range(200, 320):
        problem, cut, assignment = random_step(seed)
        oracle = uplink_deadlines(
            problem.up_compute[cut], problem.up_bits[cut], problem.snr, problem.bandwidth, problem.limit,
            problem.total, assignment[None],
        )[0]  # fmt: skip
        assert PowerStep(problem, cut, assignment).deadline == pytest.approx(oracle, rel=1e-9), f"seed {seed}"


def test_power_meets_deadline_and_limits():
    for seed in range(400, 500):
        problem, cut, assignment = random_step(seed)
        step, power = PowerStep(problem, cut, assignment), optimal_power(problem, cut, assignment)
        spent = np.bincount(assignment, power * problem.bandwidth, problem.n_clients)
        assert (power >= 0).all(), f"seed {seed}"
        assert (spent <= problem.cell.client_power * (1 + 1e-12)).all(), f"seed {seed}"
        assert spent.sum() <= problem.total * (1 + 1e-12), f"seed {seed}"
        reached = uplink_time(problem, cut, assignment, power).max()
        assert reached == pytest.approx(step.deadline, rel=1e-9), f"seed {seed}"


def test_slope_is_the_derivative_of_least_power():
    for seed in range(500, 520):
        problem, cut, assignment = random_step(seed)
        step = PowerStep(problem, cut, assignment)
        args = problem.up_compute[cut], problem.up_bits[cut], problem.snr, problem.bandwidth, assignment[None]
        h = 1e-6 * (step.deadline - problem.up_compute[cut].max())
        around = [least_total_power(np.array([step.deadline + d]), *args).sum() for d in (-h, h)]
        assert -step.slope.sum() == pytest.approx((around[1] - around[0]) / (2 * h), rel=1e-4), f"seed {seed}"


def test_most_rate_and_least_power_are_inverse():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(50), 4)
    snr, bandwidth = rng.lognormal(3, 4, 200), rng.uniform(1, 3, 200)
    limit = rng.lognormal(0, 2, 50)
    rate = most_rate(limit, group, snr, bandwidth)
    power, price, density = least_power(rate, group, snr, bandwidth)
    np.testing.assert_allclose(power, limit, rtol=1e-9)
    more, _, _ = least_power(rate * (1 + 1e-6), group, snr, bandwidth)
    np.testing.assert_allclose((more - power) / (rate * 1e-6), price, rtol=1e-4)
    np.testing.assert_allclose(np.bincount(group, bandwidth * np.log2(1 + density * snr)), rate, rtol=1e-9)


def test_nothing_to_send_needs_no_power():
    rng = np.random.default_rng(1)
    profile = random_profile(rng, bits=0.0)
    problem = RoundProblem(profile, random_cell(rng, 3, 5), 16, 0.5)
    assignment = np.array([0, 1, 2, 0, 1])
    step = PowerStep(problem, 1, assignment)
    assert step.deadline == problem.up_compute[1].max()
    assert (optimal_power(problem, 1, assignment) == 0).all()
