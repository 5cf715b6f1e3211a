"""Local search over moves and swaps of subchannels, ranked by a lower bound of what each would give.

A candidate changes the channels of two clients. With those clients' own limits, and one Newton step of the deadline
from the current one, its round time is bounded from below; only candidates whose bound beats the current round time are
evaluated exactly. When no bound does, the assignment is proven locally optimal.

Source: ours [B].
"""

from dataclasses import dataclass

import numpy as np

from psl.schedulers.epsl.power import PowerStep
from psl.schedulers.epsl.problem import RoundProblem, seconds
from psl.schedulers.epsl.water_filling import least_power, most_rate


@dataclass
class State:
    """An assignment at a cut with all that ranking its neighbours needs; `time` leaves out the cut's constant."""

    problem: RoundProblem
    cut: int
    owner: np.ndarray  # (M,)

    def __post_init__(self):
        self.step = PowerStep(self.problem, self.cut, self.owner)
        self.down = self.problem.downlink_time(self.cut, self.owner)
        self.time = self.step.deadline + float(self.down.max())


@dataclass(frozen=True)
class Candidates:
    """N changes: client a gives subchannel k to client b and gets l in return (−1: nothing)."""

    a: np.ndarray
    k: np.ndarray
    b: np.ndarray
    back: np.ndarray


def neighbours(state: State) -> Candidates:
    """Return all moves and swaps that could help; with slack total power only those of the critical clients."""
    owner, n_clients = state.owner, state.problem.n_clients
    m = len(owner)
    counts = np.bincount(owner, minlength=n_clients)
    slack = state.step.need.sum() < state.problem.total * (1 - 1e-9)
    if slack:
        # Only the client that sets U or V can lower T, and only by gaining something.
        critical = np.unique([int(np.argmax(state.step.limits)), int(np.argmax(state.down))])
        mine = np.flatnonzero(np.isin(owner, critical))
        k, back = (grid.ravel() for grid in np.meshgrid(mine, np.arange(m), indexing="ij"))
        gain_k, gain_b = (grid.ravel() for grid in np.meshgrid(np.arange(m), critical, indexing="ij"))
    else:
        k, back = np.triu_indices(m, 1)
        gain_k, gain_b = (grid.ravel() for grid in np.meshgrid(np.arange(m), np.arange(n_clients), indexing="ij"))
    swap = owner[k] != owner[back]
    k, back = k[swap], back[swap]
    move = (counts[owner[gain_k]] > 1) & (owner[gain_k] != gain_b)
    gain_k, gain_b = gain_k[move], gain_b[move]
    return Candidates(
        a=np.concatenate([owner[k], owner[gain_k]]),
        k=np.concatenate([k, gain_k]),
        b=np.concatenate([owner[back], gain_b]),
        back=np.concatenate([back, np.full(len(gain_k), -1)]),
    )


def bounds(state: State, moves: Candidates) -> np.ndarray:
    """Return (N,) lower bounds of each candidate's round time (constant left out)."""
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


def _largest_without(values, a, b):
    """Return (N,) the largest of (C,) values when entries a and b are left out; −inf if none remains."""
    order = np.argsort(-values)[:3]
    top = np.concatenate([values[order], [-np.inf] * 3])[:3]
    first, second = order[0], order[min(1, len(order) - 1)]
    hit_first = (a == first) | (b == first)
    hit_second = (a == second) | (b == second)
    return np.where(~hit_first, top[0], np.where(~hit_second, top[1], top[2]))


def _changed(state: State, client, lost, gained):
    """Return limits, downlink times, least powers at U and their slopes of clients that lose and gain a subchannel.

    Sums over a client's subchannels are updated in O(1) as if all of them carried power. Where a water level
    misses its floor, that is not so, and the client is worked out from its full list.
    """
    problem, cut, owner = state.problem, state.cut, state.owner
    channel = np.arange(len(owner))
    bandwidth, log_snr, snr = problem.bandwidth, problem.log_snr, problem.snr
    log_own = log_snr[owner, channel]

    def total(per_channel):  # per_channel: (C, M); -> (N,)
        base = np.bincount(owner, per_channel[owner, channel], problem.n_clients)[client]
        out = np.where(lost >= 0, per_channel[client, lost], 0.0)
        return base - out + np.where(gained >= 0, per_channel[client, gained], 0.0)

    rate_down = total(problem.down_rate)
    down = problem.down_compute[cut, client] + seconds(problem.down_bits[cut], np.maximum(rate_down, 1e-300))
    compute, bits = problem.up_compute[cut, client], problem.up_bits[cut]
    if bits == 0:
        return compute, down, np.zeros(len(client)), np.zeros(len(client))

    width = total(np.broadcast_to(bandwidth, snr.shape))
    logs = total(bandwidth * log_snr)
    floor = total(bandwidth / snr)
    weakest = _weakest_without(owner, log_own, lost)
    weakest = np.where(lost >= 0, weakest, _group_min(owner, log_own, problem.n_clients)[client])
    weakest = np.minimum(weakest, np.where(gained >= 0, log_snr[client, gained], np.inf))

    level = np.log2((problem.limit[client] + floor) / width)
    most = width * level + logs
    ragged = level + weakest < 0
    most[ragged] = 1.0
    limits = compute + bits / most
    rate = bits / np.maximum(state.step.deadline - compute, bits / most)
    level = np.minimum((rate - logs) / width, 900.0)
    ragged |= level + weakest < 0
    price = np.exp2(level)
    need, slope = price * width - floor, np.log(2.0) * price * rate * rate / bits

    if ragged.any():
        at = np.flatnonzero(ragged)
        held = owner == client[at, None]  # (R, M)
        row = np.arange(len(at))
        for changed, value in ((lost[at], False), (gained[at], True)):
            there = changed >= 0
            held[row[there], changed[there]] = value
        group, k = np.nonzero(held)
        who = client[at][group]
        most = most_rate(problem.limit[client[at]], group, snr[who, k], bandwidth[k])
        rate = bits / np.maximum(state.step.deadline - compute[at], bits / most)
        power, price, _ = least_power(rate, group, log_snr[who, k], bandwidth[k])
        limits[at], need[at], slope[at] = compute[at] + bits / most, power, price * rate * rate / bits
    return limits, down, need, slope


def _group_min(owner, values, n):
    least = np.full(n, np.inf)
    np.minimum.at(least, owner, values)
    return least


def _weakest_without(owner, values, lost):
    """Return (N,) the least of the values of lost[n]'s owner when entry lost[n] is left out."""
    order = np.lexsort((values, owner))
    first = np.flatnonzero(np.diff(owner[order], prepend=-1))
    second = np.minimum(first + 1, len(order) - 1)
    same = owner[order[second]] == owner[order[first]]
    client = owner[order[first]]
    n = int(client.max()) + 1
    least, next_least, place = np.full(n, np.inf), np.full(n, np.inf), np.full(n, -1)
    least[client], place[client] = values[order[first]], order[first]
    next_least[client] = np.where(same & (second > first), values[order[second]], np.inf)
    who = owner[lost]
    return np.where(place[who] == lost, next_least[who], least[who])


def local_search(problem: RoundProblem, cut: int, owner: np.ndarray, goal: float = -np.inf) -> State:
    """Improve an assignment by moves and swaps until none helps, or the round time (constant left out) is at `goal`."""
    state = State(problem, cut, owner)
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
            trial = best.owner.copy()
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
