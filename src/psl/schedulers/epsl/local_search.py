"""Local search over moves and swaps of subchannels, ranked by a lower bound of what each would give.

A candidate changes the subchannels of two clients. The two clients' own limits, and one Newton step from the current
deadline, bound its round time from below. Only candidates whose bound is below the current round time are evaluated
exactly. When there is none, the assignment is proven locally optimal.

Source: ours [B].
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from psl.schedulers.checks import seconds
from psl.schedulers.epsl.power import PowerStep
from psl.schedulers.epsl.problem import RoundProblem
from psl.schedulers.epsl.water_filling import LN2, least_power, most_rate

_FAINT = 1e-6  # bit/s/Hz; below, the sums of logarithms in `_Filling` lose the digits of the rate


@dataclass
class State:
    """An assignment at a cut, with what is needed to rank its neighbours; `time` leaves out the cut's constant."""

    problem: RoundProblem
    cut: int
    assignment: np.ndarray  # (K,)

    def __post_init__(self) -> None:
        self.step = PowerStep(self.problem, self.cut, self.assignment)
        self.down = self.problem.downlink_time(self.cut, self.assignment)
        self.time = self.step.deadline + float(self.down.max())


@dataclass(frozen=True)
class Candidates:
    """n changes: client a gives subchannel k to client b and gets l in return (−1: nothing)."""

    a: np.ndarray
    k: np.ndarray
    b: np.ndarray
    back: np.ndarray


def neighbours(state: State) -> Candidates:
    """Return all moves and swaps that could help; if total power is left over, only those of the critical clients."""
    assignment, n_clients = state.assignment, state.problem.n_clients
    n_subchannels = len(assignment)
    counts = np.bincount(assignment, minlength=n_clients)
    slack = state.step.need.sum() < state.problem.total * (1 - 1e-9)
    if slack:
        # T falls only if the client that sets U or V gets another subchannel, or a better one.
        critical = np.unique([int(np.argmax(state.step.limits)), int(np.argmax(state.down))])
        mine = np.flatnonzero(np.isin(assignment, critical))
        k, back = (grid.ravel() for grid in np.meshgrid(mine, np.arange(n_subchannels), indexing="ij"))
        gain_k, gain_b = (grid.ravel() for grid in np.meshgrid(np.arange(n_subchannels), critical, indexing="ij"))
    else:
        k, back = np.triu_indices(n_subchannels, 1)
        pairs = np.meshgrid(np.arange(n_subchannels), np.arange(n_clients), indexing="ij")
        gain_k, gain_b = (grid.ravel() for grid in pairs)
    swap = assignment[k] != assignment[back]
    k, back = k[swap], back[swap]
    move = (counts[assignment[gain_k]] > 1) & (assignment[gain_k] != gain_b)
    gain_k, gain_b = gain_k[move], gain_b[move]
    return Candidates(
        a=np.concatenate([assignment[k], assignment[gain_k]]),
        k=np.concatenate([k, gain_k]),
        b=np.concatenate([assignment[back], gain_b]),
        back=np.concatenate([back, np.full(len(gain_k), -1)]),
    )


def bounds(state: State, moves: Candidates) -> np.ndarray:
    """Return (n,) lower bounds of each candidate's round time (constant left out)."""
    step, n = state.step, len(moves.a)
    halves = _changed(
        state,
        np.concatenate([moves.a, moves.b]),
        np.concatenate([moves.k, moves.back]),
        np.concatenate([moves.back, moves.k]),
    )
    (limit_a, limit_b), (down_a, down_b), (need_a, need_b), (slope_a, slope_b) = (h.reshape(2, n) for h in halves)
    a, b = moves.a, moves.b
    need = step.need.sum() - step.need[a] - step.need[b] + need_a + need_b
    slope = step.slope.sum() - step.slope[a] - step.slope[b] + slope_a + slope_b
    with np.errstate(divide="ignore", invalid="ignore"):
        newton = np.where(slope > 0, step.deadline + (need - state.problem.total) / slope, 0.0)
    up = np.maximum(np.maximum(limit_a, limit_b), np.maximum(newton, _largest_without(step.limits, a, b)))
    down = np.maximum(np.maximum(down_a, down_b), _largest_without(state.down, a, b))
    return up + down


def _largest_without(values: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (n,) the largest of (N,) values when entries a and b are left out; −inf if none remains."""
    order = np.argsort(-values)[:3]
    top = np.concatenate([values[order], [-np.inf] * 3])[:3]
    first, second = order[0], order[min(1, len(order) - 1)]
    hit_first = (a == first) | (b == first)
    hit_second = (a == second) | (b == second)
    return np.where(~hit_first, top[0], np.where(~hit_second, top[1], top[2]))


class _Filling:
    """A water-filling of all clients' subchannels that is updated when a client loses one and gains another.

    Sums run over the subchannels in use, so an update is O(1) as long as the others stay in or out of use.
    """

    def __init__(self, state: State, used: np.ndarray):
        problem, assignment = state.problem, state.assignment
        n, subchannel = problem.n_clients, np.arange(len(assignment))
        self.problem, self.used = problem, used
        log_snr, width = problem.log_snr[assignment, subchannel], problem.bandwidth * used
        self.count = np.bincount(assignment, used, n)
        floor = 1.0 / problem.snr[assignment, subchannel]
        self.sums = [np.bincount(assignment, width * x, n) for x in (1.0, log_snr, floor)]
        self.weakest, self.best_dry = np.full(n, np.inf), np.full(n, -np.inf)
        np.minimum.at(self.weakest, assignment[used], log_snr[used])
        np.maximum.at(self.best_dry, assignment[~used], log_snr[~used])

    def updated(
        self,
        client: np.ndarray,
        lost: np.ndarray,
        gained: np.ndarray,
        level_of: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    ) -> tuple[np.ndarray, ...]:
        """Return (n,) Σ w, Σ w log2 snr, Σ w / snr, log2 of the water level, and where these are wrong.

        `level_of` maps the three sums to the level.
        """
        problem = self.problem
        out = (lost >= 0) & self.used[lost]
        width = np.where(out, -problem.bandwidth[lost], 0.0)
        log_snr = problem.log_snr[client, lost]
        sums = [
            base[client] + width * x
            for base, x in zip(self.sums, (1.0, log_snr, 1.0 / problem.snr[client, lost]), strict=True)
        ]
        width, log_snr = problem.bandwidth[gained], problem.log_snr[client, gained]
        more = [width, width * log_snr, width / problem.snr[client, gained]]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            wet = (gained >= 0) & (level_of(*(x + y for x, y in zip(sums, more, strict=True))) + log_snr > 0)
            sums = [x + np.where(wet, y, 0.0) for x, y in zip(sums, more, strict=True)]
            level = level_of(*sums)
            wrong = (level + self.weakest[client] < -1e-12) | (level + self.best_dry[client] > 1e-12)
        wrong |= (self.count[client] - out + wet < 1) | ~np.isfinite(level)
        return *(np.where(wrong, 1.0, x) for x in (*sums, level)), wrong


def _changed(
    state: State, client: np.ndarray, lost: np.ndarray, gained: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (n,) limits, downlink times, least powers at U and their slopes of clients that lose and gain one.

    The water-filling of a client is updated. It is filled anew where an update would be wrong: where more than these
    two subchannels come in or out of use, or so few bits per hertz are carried that sums of logarithms lose them.
    """
    problem, cut, assignment = state.problem, state.cut, state.assignment
    base = np.bincount(assignment, problem.down_rate[assignment, np.arange(len(assignment))], problem.n_clients)[client]
    rate = base - np.where(lost >= 0, problem.down_rate[client, lost], 0.0)
    rate += np.where(gained >= 0, problem.down_rate[client, gained], 0.0)
    down = problem.down_compute[cut, client] + seconds(problem.down_bits[cut], np.maximum(rate, 1e-300))
    compute, bits = problem.up_compute[cut, client], problem.up_bits[cut]
    if bits == 0:
        return compute, down, np.zeros(len(client)), np.zeros(len(client))

    limit, deadline = problem.limit[client], state.step.deadline
    width, logs, _, level, wrong = _Filling(state, state.step.filled).updated(
        client, lost, gained, lambda width, logs, floor: np.log2((limit + floor) / width)
    )
    most = width * level + logs
    wrong |= most < _FAINT * width
    most = np.where(wrong, 1.0, most)  # filled anew below
    rate = bits / np.maximum(deadline - compute, bits / most)
    width, _, floor, level, also_wrong = _Filling(state, state.step.density > 0).updated(
        client, lost, gained, lambda width, logs, floor: np.minimum((rate - logs) / width, 900.0)
    )
    wrong |= also_wrong | (rate < _FAINT * width)
    price = np.exp2(level)
    need = np.maximum(price * width - floor, 0.0)

    if wrong.any():
        at = np.flatnonzero(wrong)
        held = assignment == client[at, None]  # (wrong, K)
        row = np.arange(len(at))
        for changed, value in ((lost[at], False), (gained[at], True)):
            there = changed >= 0
            held[row[there], changed[there]] = value
        group, k = np.nonzero(held)
        who = client[at][group]
        most[at] = most_rate(limit[at], group, problem.snr[who, k], problem.bandwidth[k])
        rate[at] = bits / np.maximum(deadline - compute[at], bits / most[at])
        need[at], slope, _ = least_power(rate[at], group, problem.snr[who, k], problem.bandwidth[k])
        price[at] = slope / LN2
    return compute + bits / most, down, need, LN2 * price * rate * rate / bits


def local_search(problem: RoundProblem, cut: int, assignment: np.ndarray, goal: float = -np.inf) -> State:
    """Improve an assignment by moves and swaps until none helps, or the round time (constant left out) is at `goal`."""
    state = State(problem, cut, assignment)
    while state.time > goal:
        moves = neighbours(state)
        bound = bounds(state, moves)
        promising = np.flatnonzero(bound < state.time * (1 - 1e-10))
        promising = promising[np.argsort(bound[promising], kind="stable")]
        best, changed = state, set()
        for n in promising:
            a, b = int(moves.a[n]), int(moves.b[n])
            if best is not state and (a in changed or b in changed):
                if len(changed) >= problem.n_clients - 1:
                    break
                continue
            trial = best.assignment.copy()
            trial[moves.k[n]] = b
            if moves.back[n] >= 0:
                trial[moves.back[n]] = a
            trial = State(problem, cut, trial)
            if trial.time < best.time * (1 - 1e-10):
                best = trial
                changed |= {a, b}
            elif best is not state:
                break
        if best is state:
            return state
        state = best
    return state
