"""Search for rounds in micro-batches: cuts pruned by their bound, local search over the critical clients' subchannels.

Source: ours [B].
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from psl.schedulers.epsl.local_search import local_search
from psl.schedulers.epsl.micro_problem import MicroProblem, MicroState
from psl.schedulers.epsl.problem import RoundProblem, no_finite_plan
from psl.schedulers.epsl.search import KICKED_CLIENTS, kicked
from psl.schedulers.epsl.subchannels import greedy
from psl.schedulers.epsl.water_filling import most_rate

TRIALS = 40  # changes of subchannels tried in full before a local search gives up, the most promising first
KICKS = 6  # restarts per cut that is not solved, from random swaps
KICKED_CUTS = 2  # of the cuts, the best so many: by trial, more take long and find next to nothing
_CLOSED = 1e-7  # relative gap below which a cut counts as solved
_BETTER = 1e-9  # relative; a smaller gain is rounding


def neighbours(state: MicroState) -> tuple[np.ndarray, ...]:
    """Return (n,) a, k, b, l: client a gives k to b and gets l in return (−1: nothing), where a or b is critical."""
    problem, assignment = state.problem, state.assignment
    critical = state.critical()
    counts = np.bincount(assignment, minlength=problem.n_clients)
    everything = np.arange(problem.n_subchannels)
    mine = np.flatnonzero(np.isin(assignment, critical))
    k, back = (grid.ravel() for grid in np.meshgrid(mine, everything, indexing="ij"))
    swap = assignment[k] != assignment[back]
    gain_k, gain_b = (grid.ravel() for grid in np.meshgrid(everything, critical, indexing="ij"))
    move = (counts[assignment[gain_k]] > 1) & (assignment[gain_k] != gain_b)
    k, back, gain_k, gain_b = k[swap], back[swap], gain_k[move], gain_b[move]
    a, b = np.concatenate([assignment[k], assignment[gain_k]]), np.concatenate([assignment[back], gain_b])
    return a, np.concatenate([k, gain_k]), b, np.concatenate([back, np.full(len(gain_k), -1)])


def ranked(state: MicroState, moves: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) lower bounds of the rounds that changes lead to, and the order in which to try them."""
    problem, cut, assignment = state.problem, state.cut, state.assignment
    a, k, b, back = moves
    n, client = len(a), np.concatenate([a, b])
    held = assignment[None, :] == client[:, None]  # (2 n, K)
    row = np.arange(n)
    held[row, k], held[n + row, k] = False, True
    given = back >= 0
    held[row[given], back[given]], held[n + row[given], back[given]] = True, False
    group, which = np.nonzero(held)
    who = client[group]
    up = most_rate(problem.limit[client], group, problem.snr[who, which], problem.bandwidth[which])
    down = np.bincount(group, problem.down_rate[who, which], 2 * n)
    pair = problem.client_bound(cut, client, up, down).reshape(2, n).max(axis=0)
    others = problem.client_bound(cut, np.arange(problem.n_clients), state.most, state.down_rate)
    rest = np.array([np.delete(others, [i, j]).max(initial=0.0) for i, j in zip(a, b, strict=True)])
    # Of equal bounds, the change after which the two clients take least to send and receive everything.
    sending = (problem.terms.upload_bits[cut] / up + problem.terms.unicast_bits[cut] / down).reshape(2, n).max(axis=0)
    bound = np.maximum(pair, rest)
    return bound, np.lexsort([sending, bound])


def improved(state: MicroState, goal: float) -> MicroState:
    """Improve an assignment by moves and swaps until none that is tried helps, or the round takes `goal` or less."""
    while state.value > goal:
        moves = neighbours(state)
        if not len(moves[0]):
            return state
        bound, order = ranked(state, moves)
        for n in order[:TRIALS].tolist():
            if bound[n] >= state.value * (1 - _BETTER):
                return state  # so are all that follow
            assignment = state.assignment.copy()
            a, k, b, back = (int(part[n]) for part in moves)
            assignment[k] = b
            if back >= 0:
                assignment[back] = a
            key = state.cut, assignment.tobytes()
            if state.problem.tried.get(key, 0.0) >= state.value * (1 - _BETTER):
                continue  # from another start it was no better
            trial = MicroState(state.problem, state.cut, assignment)
            state.problem.tried[key] = trial.value
            if trial.value < state.value * (1 - _BETTER):
                state = trial
                break
        else:
            return state
    return state


def micro_search(
    problem: MicroProblem,
    whole: RoundProblem,
    starts: Sequence[np.ndarray],
    rng: np.random.Generator,
    report: Callable[[dict[str, Any]], None] = lambda event: None,
    known: float = np.inf,
) -> MicroState | None:
    """Search the candidate cuts for the assignment and the power that make the shortest round in micro-batches.

    Args:
        problem: the joint problem.
        whole: the same with the whole mini-batch at a time: its local search gives starts.
        starts: (K,) assignments to start from at every cut, such as that of the best plan without micro-batches.
        rng: draws the kicks.
        report: called with a dict per improvement: block, cut, round_time.
        known: s; cuts whose bound is not below it are left out.

    Returns:
        The best that was found, None if no cut's bound is below `known`.

    Raises:
        InfeasibleError: no start has a finite round.
    """
    best: MicroState | None = None
    floor = {cut: problem.reach_bound(cut) for cut in problem.candidates}

    def offer(state: MicroState, block: str) -> None:
        nonlocal best
        if best is None or state.value < best.value:
            best = state
            if np.isfinite(state.value):
                report({"block": block, "cut": state.cut, "round_time": state.value})

    found: dict[int, list[MicroState]] = {}
    for cut in sorted(floor, key=floor.__getitem__):
        if floor[cut] >= min(known, np.inf if best is None else best.value) * (1 - _CLOSED):
            continue
        proposals = [*starts, local_search(whole, cut, greedy(whole, cut)).assignment]
        states = [MicroState(problem, cut, each) for each in proposals]
        found[cut] = sorted(states, key=lambda state: state.value)
        offer(found[cut][0], "greedy")
    for rank, cut in enumerate(sorted(found, key=lambda cut: found[cut][0].value)):
        goal = floor[cut] * (1 + _CLOSED)
        at_cut: list[MicroState] = []
        for state in found[cut]:
            if best is not None and goal < best.value:
                at_cut.append(improved(state, goal))
                offer(at_cut[-1], "local search")
        for _ in range(KICKS if problem.n_clients <= KICKED_CLIENTS and rank < KICKED_CUTS else 0):
            if best is None or goal >= best.value or not at_cut:
                break
            state = min(at_cut, key=lambda state: state.value)
            at_cut.append(improved(MicroState(problem, cut, kicked(state.assignment, rng)), goal))
            offer(at_cut[-1], "kick")
    if best is not None:
        offer(MicroState(problem, best.cut, best.assignment, thorough=True), "power")
    if best is not None and not np.isfinite(best.value):
        raise no_finite_plan()
    return best
