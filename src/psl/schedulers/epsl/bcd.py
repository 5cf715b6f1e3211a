"""Block-coordinate descent over subchannels, power and cut: the alternation of the paper's kind, as the reference.

It gets trapped: a block may not help until another has changed. `search` is there because of it.

Source: EPSL (arXiv 2303.15991): the three blocks are optimised in turn [P]; the algorithms of the blocks [R].
"""

import numpy as np

from psl.schedulers.epsl.power import optimal_power, round_time, uniform_power
from psl.schedulers.epsl.problem import RoundProblem
from psl.schedulers.epsl.subchannels import greedy, round_robin

_TOLERANCE = 1e-9  # relative improvement of a whole pass below which the alternation stops


def block_coordinate_descent(problem: RoundProblem, report=lambda event: None, power_step=optimal_power):
    """Alternate greedy subchannels, optimal power and the best cut until nothing improves.

    Starts from the middle cut, subchannels dealt in turn and uniform power. A block keeps what it had when it finds
    nothing better, so the round time never rises. New subchannels are judged by their own optimal power.

    Args:
        problem: the joint problem.
        report: called with a dict per block: block, cut, round_time.
        power_step: (problem, cut, (M,) clients) -> (M,) W/Hz; another solver of the power block can be put in.

    Returns:
        (cut, (M,) client of each subchannel, (M,) W/Hz).
    """
    cut = problem.cuts[len(problem.cuts) // 2]
    owner = round_robin(problem.n_clients, problem.n_subchannels)
    power = uniform_power(problem, owner)
    time = round_time(problem, cut, owner, power)
    report({"block": "start", "cut": int(cut), "round_time": time})
    while True:
        before = time
        proposal = greedy(problem, cut)
        if not np.array_equal(proposal, owner):
            trial = power_step(problem, cut, proposal)
            trial_time = round_time(problem, cut, proposal, trial)
            if trial_time < time:
                owner, power, time = proposal, trial, trial_time
        report({"block": "subchannels", "cut": int(cut), "round_time": time})

        trial = power_step(problem, cut, owner)
        trial_time = round_time(problem, cut, owner, trial)
        if trial_time < time:
            power, time = trial, trial_time
        report({"block": "power", "cut": int(cut), "round_time": time})

        times = {j: round_time(problem, j, owner, power) for j in problem.cuts}
        best = min(times, key=times.get)
        if times[best] < time:
            cut, time = best, times[best]
        report({"block": "cut", "cut": int(cut), "round_time": time})
        if time >= before * (1 - _TOLERANCE):
            return cut, owner, power
