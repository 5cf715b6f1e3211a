"""The default method: every cut that could win, several starts, local search, a few kicks, and the certificate.

Source: ours [B].
"""

import numpy as np

from psl.schedulers.epsl.local_search import State, local_search
from psl.schedulers.epsl.lower_bound import CutBound, dual_bound
from psl.schedulers.epsl.problem import RoundProblem, no_finite_plan
from psl.schedulers.epsl.subchannels import greedy, matched, repaired, spectral_weight

KICKS = 12  # random restarts around the best assignment of a cut
KICKED_CLIENTS = 10  # beyond so many clients a kick costs more than it finds
_CLOSED = 1e-6  # relative gap below which a cut counts as solved


def search(problem: RoundProblem, rng: np.random.Generator, report=lambda event: None):
    """Search all candidate cuts.

    Args:
        problem: the joint problem.
        rng: draws the kicks.
        report: called with a dict per improvement: block, cut, round_time.

    Returns:
        (cut, (M,) client of each subchannel, {cut: CutBound}).

    Raises:
        InfeasibleError: no start has a finite round time.
    """
    best_time, best = np.inf, None
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
    for cut in sorted(floor, key=floor.get):
        if floor[cut] < best_time:
            starts[cut] = offer(State(problem, cut, greedy(problem, cut)), "greedy")

    few = problem.n_clients <= KICKED_CLIENTS
    for cut in sorted(starts, key=lambda cut: starts[cut].time + problem.constant[cut]):
        constant = float(problem.constant[cut])
        if floor[cut] >= best_time:
            continue
        bounds[cut] = dual_bound(problem, cut, best_time)
        if bounds[cut].value >= best_time * (1 - _CLOSED):
            continue
        # Whoever has most of a subchannel in the relaxation gets all of it: the best start in large cells.
        state = local_search(problem, cut, repaired(problem, bounds[cut].shares.argmax(axis=0)))
        offer(state, "local search")
        if few:
            other = offer(local_search(problem, cut, starts[cut].owner), "local search")
            state = min(state, other, key=lambda s: s.time)
        counts = np.bincount(state.owner, minlength=problem.n_clients)
        start = matched(problem, spectral_weight(problem, state.owner), counts)
        other = offer(local_search(problem, cut, start), "local search")
        state = min(state, other, key=lambda s: s.time)
        for _ in range(KICKS if few else 0):
            if state.time + constant <= bounds[cut].value * (1 + _CLOSED):
                break
            other = offer(local_search(problem, cut, _kicked(state.owner, rng)), "kick")
            state = min(state, other, key=lambda s: s.time)
    if best is None:
        raise no_finite_plan()
    return best.cut, best.owner, bounds


def _kicked(owner: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the assignment after two random swaps of subchannels."""
    owner = owner.copy()
    for _ in range(2):
        k, other = rng.integers(len(owner), size=2)
        owner[k], owner[other] = owner[other], owner[k]
    return owner
