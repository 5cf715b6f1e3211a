"""Independent answers about rounds in micro-batches: random plans, all orders, and all plans of a tiny cell."""

import dataclasses
import itertools

import numpy as np

from epsl_scenarios import random_cell, random_profile
from psl.schedulers import epsl
from psl.schedulers.epsl.micro_problem import MicroProblem
from psl.schedulers.epsl.water_filling import most_rate
from psl.schedulers.micro_batches import micro_batch_sizes


def random_plan(seed, **fixed) -> epsl.EPSLPlan:
    """Return a plan that nobody optimised, with overheads, optimizer steps and an uneven last micro-batch at times."""
    rng = np.random.default_rng(seed)
    profile = random_profile(rng)
    if seed % 3 == 0:
        work = np.concatenate([[0.0], np.sort(rng.random(len(profile.fwd_cost) - 1)) * profile.fwd_cost[-1]])
        profile = dataclasses.replace(profile, step_cost=work)
    n = int(rng.integers(1, 5))
    k = int(rng.integers(n, n + 6))
    overhead = {
        "round_overhead": rng.choice([0, 0.1]),
        "message_overhead": rng.choice([0, 0.01]),
        "call_overhead": rng.choice([0, 0.01]),
    }
    cell = dataclasses.replace(random_cell(rng, n, k), **overhead)
    b = int(rng.integers(1, 33))
    number = -(-b // int(rng.integers(1, b + 1)))
    assignment = rng.integers(0, n, k)
    assignment[rng.permutation(k)[:n]] = np.arange(n)
    share = np.minimum(cell.client_power, cell.total_power / n)
    power = (share / np.bincount(assignment, cell.bandwidth, n))[assignment] * rng.uniform(0.1, 1)
    phi, duplex = float(rng.choice([0, 1])), str(rng.choice(["full", "half"]))
    cut = int(rng.integers(1, profile.n_units))
    options = {"micro_batches": number, "duplex": duplex} | fixed
    return epsl.EPSLPlan(profile, cell, b, options.pop("phi", phi), "given", cut, assignment, power, **options)


def best_of_all_orders(release, tail, seconds) -> float:
    """Return min over all orders of max_j (C_j + q_j)."""
    best = np.inf
    for order in itertools.permutations(range(len(release))):
        now = value = 0.0
        for job in order:
            now = max(now, release[job]) + seconds[job]
            value = max(value, now + tail[job])
        best = min(best, value)
    return best


def tiny_scenario(seed):
    """Return profile, cell of two clients, φ and duplex."""
    rng = np.random.default_rng(seed)
    profile = random_profile(rng, n_units=3)
    cell = random_cell(rng, 2, int(rng.integers(3, 5)))
    return profile, cell, float(rng.choice([0, 1])), str(rng.choice(["full", "half"]))


def exhaustive(profile, cell, batch_size, phi, number, duplex, splits=40) -> float:
    """Return the shortest round over all cuts, assignments and splits of the total power between two clients."""
    sizes = micro_batch_sizes(batch_size, number)
    problem = MicroProblem(profile, cell, batch_size, phi, sizes=sizes, duplex=duplex)
    k, best = np.arange(problem.n_subchannels), np.inf
    high = problem.limit[0]
    low = min(max(0.0, problem.total - problem.limit[1]), high)
    for assignment in map(np.array, itertools.product(range(2), repeat=len(k))):
        if len(set(assignment.tolist())) < 2:
            continue
        snr = problem.snr[assignment, k]
        down = np.bincount(assignment, problem.down_rate[assignment, k], 2)
        for first in np.unique(np.linspace(low, high, splits)):
            power = np.array([first, min(problem.limit[1], problem.total - first)])
            if power.min() > 0:
                rate = most_rate(power, assignment, snr, problem.bandwidth)
                for cut in problem.cuts:
                    found = problem.round(cut, rate, down)
                    if found.bound() < best:
                        best = min(best, found.served().value)
    return best
