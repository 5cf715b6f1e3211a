"""Baselines that optimise at most one of the three decisions, so that figures show what each is worth.

Source: our reconstruction of the usual ablation [R].
"""

import numpy as np

from psl.schedulers.epsl.power import optimal_power, round_time, uniform_power
from psl.schedulers.epsl.problem import RoundProblem
from psl.schedulers.epsl.subchannels import greedy, round_robin

#: method: what it optimises; the rest is a random cut, subchannels dealt in turn and uniform power.
BASELINES = {
    "random": "nothing",
    "power-only": "power",
    "cut-only": "the cut",
    "channels-only": "the subchannels",
}


def baseline(problem: RoundProblem, method: str, rng: np.random.Generator):
    """Return (cut, (M,) client of each subchannel, (M,) W/Hz) of a baseline.

    The cut is drawn uniformly unless it is what is optimised; the same seed draws the same cut in every method.
    Uniform power: each client spreads P_total / C, at most its own limit, evenly over its subchannels.

    Args:
        problem: the joint problem.
        method: a key of `BASELINES`.
        rng: draws the cut.
    """
    cut = int(rng.choice(list(problem.cuts)))
    owner = round_robin(problem.n_clients, problem.n_subchannels)
    if method == "channels-only":
        proposal = greedy(problem, cut)
        times = [round_time(problem, cut, each, uniform_power(problem, each)) for each in (owner, proposal)]
        owner = proposal if times[1] < times[0] else owner
    power = uniform_power(problem, owner)
    if method == "power-only":
        power = optimal_power(problem, cut, owner)
    if method == "cut-only":
        cut = min(problem.cuts, key=lambda j: round_time(problem, j, owner, power))
    return cut, owner, power
