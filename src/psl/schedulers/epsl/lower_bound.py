"""Lower bounds of the round time: no plan, found or not, has a shorter round.

The bound of a cut is the larger of two bounds of the plans that are shorter than a known round time, the incumbent.
Such a plan needs at least n_i subchannels for client i. Other plans are not shorter than the incumbent, so
min(incumbent, bound) holds for all plans. With very little total power the bound is loose: in a small cell with a gap
of 1 % otherwise, the gap is a few per cent at 1e-6 W and tens of per cent at 1e-9 W.

Source: ours [B].
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from psl.schedulers.checks import seconds
from psl.schedulers.epsl.lagrangian_dual import LagrangianDual
from psl.schedulers.epsl.problem import RoundProblem
from psl.schedulers.epsl.water_filling import most_rate

_SAFETY = 1e-9  # relative; covers rounding in the dual function
_STRIPS = 12  # intervals of the uplink deadline that the matching bound tries: more make it tighter, and slower
_SPARE = 3  # most subchannels per client for the matching bound: with more it excludes next to nothing
_SOLVED = 1e-6  # relative distance of bound and target at which raising a bound ends


@dataclass(frozen=True)
class Needs:
    """What every plan with U + V below a budget gives each client."""

    counts: np.ndarray  # (N,) n_i, least number of subchannels
    most: np.ndarray  # (N,) largest number of subchannels, as the other clients need theirs
    earliest: tuple[float, float]  # s; U and V cannot be smaller


def needs(problem: RoundProblem, cut: int, budget: float) -> Needs | None:
    """Return what a plan with U + V < budget gives each client, or None if no such plan can exist."""
    n_clients, n_subchannels = problem.n_clients, problem.n_subchannels
    up = problem.up_compute[cut][:, None] + seconds(problem.up_bits[cut], problem.uplink_reach)  # (N, K) with n best
    down = problem.down_compute[cut][:, None] + seconds(problem.down_bits[cut], problem.downlink_reach)
    counts, client = np.ones(n_clients, dtype=int), np.arange(n_clients)
    while True:
        most = n_subchannels - counts.sum() + counts
        if most.min() < 1 or (most < counts).any():
            return None
        earliest = float(up[client, most - 1].max()), float(down[client, most - 1].max())
        enough = np.maximum(up, earliest[0]) + np.maximum(down, earliest[1]) < budget
        if not enough[:, -1].all():
            return None
        least = np.argmax(enough, axis=1) + 1
        if (least <= counts).all():
            return Needs(counts, most, earliest)
        counts = np.maximum(counts, least)


@dataclass
class CutBound:
    """The best bound known for one cut, and where the dual function was largest.

    Attributes:
        value: s, no plan at this cut has a round that is shorter than this and than the incumbent.
        shares: (N, K) fractional shares of the subchannels there, or None if no plan can beat the incumbent.
        multipliers: (4 N + 1,) Lagrange multipliers there, or None.
    """

    value: float
    shares: np.ndarray | None = None
    multipliers: np.ndarray | None = None


def dual_bound(problem: RoundProblem, cut: int, incumbent: float, start: CutBound | None = None) -> CutBound:
    """Bound the round time at a cut by the dual of shared subchannels; at most `incumbent`."""
    constant = float(problem.constant[cut])
    needed = needs(problem, cut, incumbent - constant)
    if needed is None:
        return CutBound(incumbent)
    dual = LagrangianDual(problem, cut, needed.counts, needed.earliest, max(sum(needed.earliest), 1e-300))
    x = dual.start() if start is None or start.multipliers is None else start.multipliers
    value, x, shares = dual.maximise(x)
    value = max(value, sum(needed.earliest)) + constant
    return CutBound(min(value * (1 - _SAFETY), incumbent), shares, x)


def tightened(problem: RoundProblem, cut: int, known: CutBound, incumbent: float, trials: int = 3) -> CutBound:
    """Return a higher bound of a cut if there is one, by bisection on a target of the round time.

    A plan that beats a shorter target needs more subchannels, which raises its dual bound; if the bound is above the
    target, no plan beats the target. For subchannels of equal width the matching bound is tried too.
    """
    constant = float(problem.constant[cut])
    fresh = dual_bound(problem, cut, incumbent, known)  # the incumbent may have come down since
    known = max(known, fresh, key=lambda bound: bound.value)
    low = known.value
    matching = Matching(problem, cut, incumbent - constant)
    matched = matching.largest_infeasible(low - constant, incumbent - constant) + constant
    low = max(low, matched * (1 - _SAFETY))
    high, before = incumbent, needs(problem, cut, incumbent - constant)
    for _ in range(trials):
        target = 0.5 * (low + high)
        after = needs(problem, cut, target - constant)
        if high - low < _SOLVED * high:
            break
        if after is not None and before is not None and (after.counts == before.counts).all():
            high = target  # needs no more than before: the dual bound would be the same
            continue
        bound = dual_bound(problem, cut, target, known)
        if bound.value >= target:
            low = target
        else:
            high, low = target, max(low, bound.value)
    return CutBound(max(low, known.value), known.shares, known.multipliers)


class Matching:
    """Necessary conditions on whole subchannels of equal width, for any pair of deadlines (U, V).

    If client i holds at most most_i subchannels, its n-th best must be good enough that its n − 1 best of all and
    most_i − n + 1 like the n-th suffice. So client i has n_i places, each with a set of subchannels that can fill it,
    and all places of all clients must be filled at once.
    """

    def __init__(self, problem: RoundProblem, cut: int, budget: float):
        needed = needs(problem, cut, budget)
        equal = np.ptp(problem.bandwidth) <= 1e-9 * problem.bandwidth.max()  # but for rounding
        self.applies = needed is not None and equal and problem.n_subchannels <= _SPARE * problem.n_clients
        if needed is None or not self.applies:
            return
        counts, most, self.earliest = needed.counts, needed.most, needed.earliest
        n_subchannels = problem.n_subchannels
        order = np.argsort(-problem.snr, axis=1)
        snr = np.take_along_axis(problem.snr, order, axis=1)  # (N, K) best first
        widest = problem.bandwidth.max()  # equal but for rounding, which must not make a bound too high
        rate = np.take_along_axis(problem.down_rate / problem.bandwidth, order, axis=1) * widest
        ups, downs, columns = [], [], []
        for n in range(1, int(counts.max()) + 1):
            who = np.flatnonzero(counts >= n)
            copies = most[who] - n + 1
            best = np.repeat(snr[who, None, : n - 1], n_subchannels, axis=1)  # (clients, K, n-1)
            entries = np.concatenate([best, snr[who][:, :, None]], axis=2)
            width = np.ones_like(entries)
            width[:, :, -1] = copies[:, None]
            group = np.repeat(np.arange(len(who) * n_subchannels), n)
            limit = np.repeat(problem.limit[who], n_subchannels)
            uplink = most_rate(limit, group, entries.ravel(), width.ravel() * widest).reshape(-1, n_subchannels)
            downlink = rate[who, : n - 1].sum(axis=1)[:, None] + copies[:, None] * rate[who]
            ups.append(problem.up_compute[cut][who, None] + seconds(problem.up_bits[cut], uplink))
            downs.append(problem.down_compute[cut][who, None] + seconds(problem.down_bits[cut], downlink))
            columns.append(order[who])
        self.up, self.down, self.column = (np.concatenate(part) for part in (ups, downs, columns))  # (places, K)

    def feasible(self, up: float, down: float) -> bool:
        """Return False only if no plan can have U ≤ up and V ≤ down."""
        good = (self.up <= up) & (self.down <= down)
        if not good.any(axis=1).all():
            return False
        place, rank = np.nonzero(good)
        edges = csr_array((np.ones(len(place)), (place, self.column[place, rank])), shape=self.up.shape)
        return bool((maximum_bipartite_matching(edges, perm_type="column") >= 0).all())

    def excludes(self, budget: float) -> bool:
        """Return whether no plan with U + V ≤ budget can exist."""
        first, second = self.earliest
        edges = np.linspace(first, max(budget - second, first), _STRIPS + 1)
        return not any(self.feasible(high, budget - low) for low, high in pairwise(edges))

    def largest_infeasible(self, low: float, high: float, trials: int = 10) -> float:
        """Return the largest budget in [low, high] found to be out of reach, or −inf."""
        if not self.applies or not self.excludes(low):
            return -np.inf
        for _ in range(trials):
            middle = 0.5 * (low + high)
            if self.excludes(middle):
                low = middle
            else:
                high = middle
        return low


def lower_bound(problem: RoundProblem, incumbent: float, known: dict[int, CutBound] | None = None) -> float:
    """Return a lower bound of the round time over all candidate cuts; at most `incumbent`, a known round time.

    Args:
        problem: the joint problem.
        incumbent: s, the round time of any plan; a good one makes a better bound.
        known: bounds of some cuts from a search, to start from.
    """
    bounds = dict(known or {})
    for cut in problem.candidates:
        if cut not in bounds:
            cheap = problem.reach_bound(cut) * (1 - _SAFETY)
            bounds[cut] = CutBound(incumbent) if cheap >= incumbent else dual_bound(problem, cut, incumbent)
    # Only the lowest cut sets the bound: raise it until another is lowest or it cannot be raised.
    done = set()
    while True:
        lowest = min(bounds, key=lambda cut: bounds[cut].value)
        if lowest in done or bounds[lowest].value >= incumbent:
            return min(bounds[lowest].value, incumbent)
        done.add(lowest)
        bounds[lowest] = tightened(problem, lowest, bounds[lowest], incumbent)
