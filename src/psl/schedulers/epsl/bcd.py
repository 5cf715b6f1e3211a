"""Block-coordinate descent over subchannels, power and cut, as in the paper: the reference for `search`.

It gets trapped: often no block alone can help, but two changed together would. `search` avoids this.

Source: EPSL (arXiv 2303.15991): the three blocks are optimised in turn [P]; the algorithms of the blocks [R].
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from psl.schedulers.epsl.power import optimal_power, round_time, uniform_power
from psl.schedulers.epsl.problem import RoundProblem
from psl.schedulers.epsl.subchannels import greedy, round_robin

_TOLERANCE = 1e-9  # relative improvement of a whole pass below which the alternation stops


def block_coordinate_descent(
    problem: RoundProblem,
    report: Callable[[dict[str, Any]], None] = lambda event: None,
    power_step: Callable[[RoundProblem, int, np.ndarray], np.ndarray] = optimal_power,
) -> tuple[int, np.ndarray, np.ndarray]:
    """Alternate greedy subchannels, optimal power and the best cut until nothing improves.

    It starts from the middle cut, round-robin subchannels and uniform power. A block that finds nothing better keeps
    what there is, so the round time never rises. New subchannels are compared with the power that is optimal for them.

    Args:
        problem: the joint problem.
        report: called with a dict per block: block, cut, round_time.
        power_step: (problem, cut, (K,) clients) -> (K,) W/Hz; another solver of the power block can be put in.

    Returns:
        (cut, (K,) client of each subchannel, (K,) W/Hz).
    """
    cut = problem.cuts[len(problem.cuts) // 2]
    assignment = round_robin(problem.n_clients, problem.n_subchannels)
    power = uniform_power(problem, assignment)
    time = round_time(problem, cut, assignment, power)
    report({"block": "start", "cut": cut, "round_time": time})
    while True:
        before = time
        proposal = greedy(problem, cut)
        if not np.array_equal(proposal, assignment):
            trial = power_step(problem, cut, proposal)
            trial_time = round_time(problem, cut, proposal, trial)
            if trial_time < time:
                assignment, power, time = proposal, trial, trial_time
        report({"block": "subchannels", "cut": cut, "round_time": time})

        trial = power_step(problem, cut, assignment)
        trial_time = round_time(problem, cut, assignment, trial)
        if trial_time < time:
            power, time = trial, trial_time
        report({"block": "power", "cut": cut, "round_time": time})

        times = {j: round_time(problem, j, assignment, power) for j in problem.cuts}
        best = min(times, key=times.__getitem__)
        if times[best] < time:
            cut, time = best, times[best]
        report({"block": "cut", "cut": cut, "round_time": time})
        if time >= before * (1 - _TOLERANCE):
            return cut, assignment, power
