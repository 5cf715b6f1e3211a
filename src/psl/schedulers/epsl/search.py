"""The default method: every cut that could be best, several starts, local search, and restarts by random swaps.

Source: ours [B].
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from psl.schedulers.epsl.local_search import State, local_search
from psl.schedulers.epsl.lower_bound import CutBound, dual_bound
from psl.schedulers.epsl.problem import RoundProblem, no_finite_plan
from psl.schedulers.epsl.subchannels import greedy, matched, repaired, spectral_weight

RESTARTS = 12  # per cut, from random swaps: by trial, enough to solve 99 of 100 small cells exactly
KICKED_CLIENTS = 10  # in larger cells two swaps change too little, and the local search after them takes too long
_CLOSED = 1e-6  # relative gap below which a cut counts as solved; the dual bound is computed to about 1e-7


def search(
    problem: RoundProblem,
    rng: np.random.Generator,
    report: Callable[[dict[str, Any]], None] = lambda event: None,
    restarts: int = RESTARTS,
) -> tuple[int, np.ndarray, dict[int, CutBound]]:
    """Search all candidate cuts for the assignment of subchannels that makes the shortest round.

    Args:
        problem: the joint problem.
        rng: draws the swaps.
        report: called with a dict per improvement: block, cut, round_time.
        restarts: per cut, in cells of at most 10 clients.

    Returns:
        (cut, (K,) client of each subchannel, {cut: CutBound}).

    Raises:
        InfeasibleError: no start has a finite round time.
    """
    best_time = np.inf
    best: State | None = None
    bounds: dict[int, CutBound] = {}

    def offer(state: State, block: str) -> State:
        nonlocal best_time, best
        time = state.time + float(problem.constant[state.cut])
        if time < best_time:
            best_time, best = time, state
            report({"block": block, "cut": state.cut, "round_time": time})
        return state

    starts: dict[int, State] = {}
    floor = {cut: problem.reach_bound(cut) for cut in problem.candidates}
    for cut in sorted(floor, key=floor.__getitem__):
        if floor[cut] < best_time:
            starts[cut] = offer(State(problem, cut, greedy(problem, cut)), "greedy")

    few = problem.n_clients <= KICKED_CLIENTS
    for cut in sorted(starts, key=lambda cut: starts[cut].time + problem.constant[cut]):
        constant = float(problem.constant[cut])
        if floor[cut] >= best_time:
            continue
        bound = bounds[cut] = dual_bound(problem, cut, best_time)
        if bound.shares is None or bound.value >= best_time * (1 - _CLOSED):
            continue
        # The client with the largest share of a subchannel in the relaxation gets it: the best start in large cells.
        state = local_search(problem, cut, repaired(problem, bound.shares.argmax(axis=0)))
        offer(state, "local search")
        if few:
            other = offer(local_search(problem, cut, starts[cut].assignment), "local search")
            state = min(state, other, key=lambda s: s.time)
        counts = np.bincount(state.assignment, minlength=problem.n_clients)
        start = matched(problem, spectral_weight(problem, state.assignment), counts)
        other = offer(local_search(problem, cut, start), "local search")
        state = min(state, other, key=lambda s: s.time)
        for _ in range(restarts if few else 0):
            if state.time + constant <= bound.value * (1 + _CLOSED):
                break
            other = offer(local_search(problem, cut, kicked(state.assignment, rng)), "kick")
            state = min(state, other, key=lambda s: s.time)
    if best is None:
        raise no_finite_plan()
    return best.cut, best.assignment, bounds


def kicked(assignment: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the assignment after two random swaps of subchannels."""
    assignment = assignment.copy()
    for _ in range(2):
        k, other = rng.integers(len(assignment), size=2)
        assignment[k], assignment[other] = assignment[other], assignment[k]
    return assignment
