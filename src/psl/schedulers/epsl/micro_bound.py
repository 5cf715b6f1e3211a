"""Lower bounds of rounds in micro-batches: no plan with these micro-batches, found or not, has a shorter round.

Each client's own micro-batches pass five machines in line, so that for every i the round takes at least

    κ + ω_u U_i / r_i + ω_d D_i / R_i

with U_i and D_i the bits up and down, r_i and R_i the rates, and these (κ, ω_u, ω_d), w_k being the share of
micro-batch k: all uploads and the last of the others; all downloads and the first of the others; all computing of the
client, or of the server for it, with the first or last of the others; on half duplex, uploads and downloads together.
With multipliers ν_ri ≥ 0 of these rows, Σ ν = 1, and λ, μ, π, α, β of rates, power and subchannels as in
`lagrangian_dual`, the dual function is

    Σ_ri ν_ri κ_ri + Σ_i min_{r ≤ r_max} [a_i / r + λ_i r] + Σ_i min_{R ≤ R_max} [b_i / R + μ_i R]
    − Σ_k max_i v_ik − π P_total − Σ_i α_i P_i + Σ_i β_i n_i,    a_i = Σ_r ν_ri ω_u,r U_i,   b_i = Σ_r ν_ri ω_d,r D_i.

Source: ours [B].
"""

import numpy as np
from scipy.optimize import minimize

from psl.schedulers.epsl.lagrangian_dual import LagrangianDual
from psl.schedulers.epsl.micro_problem import MicroProblem

_SAFETY = 1e-9  # relative; covers rounding in the dual function
_ROUNDING = 1e-13  # relative, of the bound without a dual
_SOLVED = 1e-6  # relative distance of bound and target at which raising a bound ends
_SHARP = 30.0  # how much a row's length counts in the first multipliers, by trial
_TRIALS = 3  # targets between bound and incumbent that are tried for the cut that sets the bound


class MicroDual(LagrangianDual):
    """The dual function of one cut in micro-batches, in units of `scale` seconds.

    Args:
        problem, cut: the cut to bound.
        counts: (N,) n_i, the least number of subchannels each client needs.
        scale: s, of the order of a round.
    """

    def __init__(self, problem: MicroProblem, cut: int, counts: np.ndarray, scale: float):
        super().__init__(problem, cut, counts, (0.0, 0.0), scale)
        kappa, up, down = _rows(problem, cut)
        self.kappa, self.weight = kappa / scale, (up, down)  # (rows, N), (rows,)
        most = problem.n_subchannels - counts.sum() + counts - 1
        who = np.arange(self.n)
        bits = problem.up_bits[cut], problem.down_bits[cut]
        reach = problem.uplink_reach[who, most], problem.downlink_reach[who, most]
        self.reach = [rate * scale / b if b > 0 else np.ones(self.n) for rate, b in zip(reach, bits, strict=True)]

    def value(self, x: np.ndarray, smooth: float = 0.0) -> tuple[float, np.ndarray, np.ndarray]:
        """Return (dual value, gradient, (N, K) shares) at x = (log ν, λ, μ, α, β, π); see `LagrangianDual.value`."""
        n, split = self.n, self.kappa.size
        nu = np.exp(x[:split] - x[:split].max())
        nu = (nu / nu.sum()).reshape(self.kappa.shape)
        y = x[split:]
        multipliers = y[:n], y[n : 2 * n]
        start = float((nu * self.kappa).sum())
        value, gradient, share = self.sharing(
            start, *multipliers, y[2 * n : 3 * n], y[3 * n : 4 * n], float(y[4 * n]), smooth
        )
        slope = self.kappa.copy()
        for which in (0, 1):
            if self.sends[which]:
                load = self.weight[which] @ nu  # (N,)
                rate = np.sqrt(load / np.maximum(multipliers[which], 1e-30))
                rate = np.minimum(np.maximum(rate, 1e-30), self.reach[which])
                value += float((load / rate + multipliers[which] * rate).sum())
                slope = slope + self.weight[which][:, None] / rate
                gradient[which * n : (which + 1) * n] += rate
        mean = float((nu * slope).sum())
        return value, np.concatenate([(nu * (slope - mean)).ravel(), gradient]), share

    def bound(self) -> float:
        """Return the largest value found, in seconds."""
        n, rows = self.n, self.kappa.size
        tops = np.concatenate([np.repeat(np.where(self.sends, np.inf, 0.0), n), np.full(2 * n + 1, np.inf)])
        limits = [(-30.0, 30.0)] * rows + list(zip(np.zeros_like(tops), tops, strict=True))
        # The rows that are longest at the best rates in reach, and multipliers at which these rates are the best.
        up, down = (self.weight[w][:, None] / self.reach[w] * self.sends[w] for w in (0, 1))
        longest = self.kappa + up + down
        nu = np.exp(_SHARP * (longest - longest.max()))
        nu /= nu.sum()
        wanted = [np.maximum(self.weight[w] @ nu, 1e-6) / self.reach[w] ** 2 for w in (0, 1)]
        x = np.concatenate([np.log(nu).ravel(), np.minimum(np.concatenate([*wanted, self.start()[2 * n :]]), tops)])
        best = -np.inf
        for smooth in (0.02 / self.snr.shape[1], 0.002 / self.snr.shape[1]):
            options = {"maxiter": 150, "maxcor": 20, "ftol": 1e-8, "gtol": 1e-9}
            x = minimize(self._negated, x, (smooth,), "L-BFGS-B", jac=True, bounds=limits, options=options).x
            best = max(best, self.value(x)[0])
        return best * self.scale


def _rows(problem: MicroProblem, cut: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return κ (rows, N) in seconds, and ω_u and ω_d (rows,) of the rows above."""
    n = problem.n_clients
    none = np.full(n, np.inf)
    found = problem.round(cut, none, none)  # what is left of a message without its bits
    f, e, p = found.forward, found.backward, found.server
    answer = found.down if found.broadcast is None else np.broadcast_to(found.broadcast, found.down.shape)
    up, first, last = found.up, problem.shares[0], problem.shares[-1]
    ends, all_up, all_down = f[:, 0] + e[:, -1], up.sum(axis=1), answer.sum(axis=1)
    rows = [
        (ends + all_up + p[-1] + answer[:, -1], 1.0, last),
        (ends + up[:, 0] + p[0] + all_down, first, 1.0),
        (f.sum(axis=1) + up[:, -1] + p[-1] + answer[:, -1] + e[:, -1], last, last),
        (f[:, 0] + up[:, 0] + p[0] + answer[:, 0] + e.sum(axis=1), first, first),
        (ends + up[:, 0] + p.sum() + answer[:, -1], first, last),
    ]
    if problem.duplex == "half":
        rows.append((ends + all_up + all_down, 1.0, 1.0))
    kappa = np.array([row[0] for row in rows]) + found.client_step + found.begin
    return kappa, np.array([row[1] for row in rows]), np.array([row[2] for row in rows])


def cut_bound(problem: MicroProblem, cut: int, target: float) -> float:
    """Return a lower bound of the rounds at a cut that are shorter than `target`; at most `target`."""
    counts = problem.least_counts(cut, target)
    if counts is None:
        return target
    least = problem.reach_bound(cut, counts) * (1 - _ROUNDING)
    if least < target:
        least = max(least, MicroDual(problem, cut, counts, target).bound() * (1 - _SAFETY))
    return min(least, target)


def micro_bound(problem: MicroProblem, incumbent: float) -> float:
    """Return a lower bound of the round time over all candidate cuts; at most `incumbent`, a known round time."""
    bounds = {cut: min(problem.reach_bound(cut) * (1 - _ROUNDING), incumbent) for cut in problem.candidates}
    stage = dict.fromkeys(bounds, 0)
    while True:
        lowest = min(bounds, key=bounds.__getitem__)
        if bounds[lowest] >= incumbent * (1 - _SOLVED) or stage[lowest] > _TRIALS:
            return bounds[lowest]
        # First for all shorter rounds, then for those shorter than a target: they need more subchannels.
        target = incumbent if stage[lowest] == 0 else 0.5 * (bounds[lowest] + incumbent)
        bounds[lowest] = max(bounds[lowest], cut_bound(problem, lowest, target))
        stage[lowest] += 1
