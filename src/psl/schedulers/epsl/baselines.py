"""Baselines that optimise at most one of the three decisions, to show how much each of them saves.

Source: our reconstruction of the usual ablation [R].
"""

import numpy as np

from psl.schedulers.epsl.power import optimal_power, round_time, uniform_power
from psl.schedulers.epsl.problem import RoundProblem
from psl.schedulers.epsl.subchannels import greedy, round_robin

#: What each method optimises; the rest is a random cut, round-robin subchannels and uniform power.
BASELINES = {
    "random": "nothing",
    "power-only": "power",
    "cut-only": "the cut",
    "channels-only": "the subchannels",
}


def baseline(problem: RoundProblem, method: str, rng: np.random.Generator) -> tuple[int, np.ndarray, np.ndarray]:
    """Return (cut, (K,) client of each subchannel, (K,) W/Hz) of a baseline.

    The cut is drawn uniformly unless it is optimised; the same seed draws the same cut in every method.
    Uniform power: each client spreads P_total / N, at most its own limit, evenly over its subchannels.

    Args:
        problem: the joint problem.
        method: a key of `BASELINES`.
        rng: draws the cut.
    """
    cut = int(rng.choice(list(problem.cuts)))
    assignment = round_robin(problem.n_clients, problem.n_subchannels)
    if method == "channels-only":
        proposal = greedy(problem, cut)
        times = [round_time(problem, cut, each, uniform_power(problem, each)) for each in (assignment, proposal)]
        assignment = proposal if times[1] < times[0] else assignment
    power = uniform_power(problem, assignment)
    if method == "power-only":
        power = optimal_power(problem, cut, assignment)
    if method == "cut-only":
        cut = min(problem.cuts, key=lambda j: round_time(problem, j, assignment, power))
    return cut, assignment, power
