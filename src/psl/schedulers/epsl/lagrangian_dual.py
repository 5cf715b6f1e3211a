"""A lower bound of the round time at one cut: the Lagrangian dual of shared subchannels.

Let client i hold the fraction x_ik of subchannel k, with Σ_i x_ik = 1, Σ_k x_ik ≥ n_i, and minimise U + V subject to

    r_i ≥ D_u / (U − A_i),   r_dl,i ≥ D_d / (V − E_i),   the power limits of clients and cell.

Every whole assignment is such a sharing, so the optimum of this convex problem is a lower bound. With multipliers
λ_i, μ_i ≥ 0 for the rates, π, α_i ≥ 0 for total and own power, and β_i ≥ 0 for the counts, its dual function separates:

    min_U [U + Σ_i λ_i D_u / (U − A_i)] + min_V [V + Σ_i μ_i D_d / (V − E_i)]
    − Σ_k max_i v_ik − π P_total − Σ_i α_i P_i + Σ_i β_i n_i,
    v_ik = max_p [λ_i w_k log2(1 + p g_ik/n_0) − (π + α_i) w_k p] + μ_i w_k log2(1 + p_dl g_ik/n_0) + β_i.

It is a valid bound at *any* multipliers: maximising it well makes it tighter, not more valid.

Source: ours [B].
"""

from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize

from psl.schedulers.epsl.problem import RoundProblem
from psl.schedulers.epsl.water_filling import LN2


class LagrangianDual:
    """The dual function of one cut, scaled so that its variables are of order 1.

    Args:
        problem, cut: the cut to bound.
        counts: (N,) n_i, the least number of subchannels each client needs.
        earliest: (U, V) s, the deadlines cannot be shorter.
        scale: s, of the order of U + V.
    """

    def __init__(self, problem: RoundProblem, cut: int, counts: ArrayLike, earliest: tuple[float, float], scale: float):
        self.n, self.scale = problem.n_clients, scale
        self.counts = np.asarray(counts, dtype=float)
        self.earliest = np.asarray(earliest) / scale
        self.compute = problem.up_compute[cut] / scale, problem.down_compute[cut] / scale
        # Rates in the unit that carries all bits of a client in one unit of time; without bits there is no rate.
        up_bits, down_bits = problem.up_bits[cut], problem.down_bits[cut]
        self.sends = up_bits > 0, down_bits > 0
        self.up_per_hertz = scale / up_bits / LN2 if up_bits > 0 else 0.0  # for natural logarithms
        self.down_rate = problem.down_rate * (scale / down_bits if down_bits > 0 else 0.0)
        # Power in units of the total.
        self.bandwidth = problem.bandwidth
        self.snr = problem.snr * problem.total
        self.limit = problem.limit / problem.total
        self.peak = self.limit[:, None] / self.bandwidth  # no client can exceed it on any subchannel

    @cached_property
    def floor(self) -> np.ndarray:
        """(N, K) 1 / snr: the level above which a subchannel carries power."""
        return 1.0 / self.snr

    def value(self, x: np.ndarray, smooth: float = 0.0) -> tuple[float, np.ndarray, np.ndarray]:
        """Return (dual value, gradient, (N, K) shares) at multipliers x = (λ, μ, α, β, π).

        With `smooth` > 0 the maximum over clients is a smooth function; the value is lower then, and still a bound.
        """
        n = self.n
        up, down, own, count, total = x[:n], x[n : 2 * n], x[2 * n : 3 * n], x[3 * n : 4 * n], x[4 * n]
        first, first_gradient = self._deadline(0, up)
        second, second_gradient = self._deadline(1, down)
        value, gradient, share = self.sharing(first + second, up, down, own, count, float(total), smooth)
        gradient[:n] += first_gradient
        gradient[n : 2 * n] += second_gradient
        return value, gradient, share

    def sharing(
        self,
        start: float,
        up: np.ndarray,
        down: np.ndarray,
        own: np.ndarray,
        count: np.ndarray,
        total: float,
        smooth: float,
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Return start − Σ_k max_i v_ik − π P_total − Σ_i α_i P_i + Σ_i β_i n_i, its gradient, and the (N, K) shares.

        Args:
            start: what the rest of the dual function adds up to.
            up, down, own, count: (N,) λ, μ, α and β.
            total: π.
            smooth: as in `value`.
        """
        price = np.maximum(own + total, 1e-15)  # without a price, power would be infinite
        level = self.up_per_hertz * up / price
        density = np.minimum(np.maximum(level[:, None] - self.floor, 0.0), self.peak)  # (N, K)
        power = self.bandwidth * density
        rate = (self.up_per_hertz * self.bandwidth) * np.log1p(density * self.snr)
        worth = up[:, None] * rate - price[:, None] * power + down[:, None] * self.down_rate + count[:, None]
        best = worth.max(axis=0)
        if smooth > 0:
            share = np.exp((worth - best) / smooth)
            mass = share.sum(axis=0)
            share /= mass
            best = best + smooth * np.log(mass)
        else:
            share = np.zeros_like(worth)
            share[worth.argmax(axis=0), np.arange(worth.shape[1])] = 1.0
        spent = (share * power).sum(axis=1)
        value = start - best.sum() - total - own @ self.limit + count @ self.counts
        gradient = np.concatenate(
            [
                -(share * rate).sum(axis=1),
                -(share * self.down_rate).sum(axis=1),
                spent - self.limit,
                self.counts - share.sum(axis=1),
                [spent.sum() - 1.0],
            ]
        )
        return value, gradient, share

    def _deadline(self, which: int, weight: np.ndarray) -> tuple[float, np.ndarray]:
        """Return min over t ≥ earliest of t + Σ_i weight_i / (t − compute_i), and its gradient."""
        compute, earliest = self.compute[which], self.earliest[which]
        if not self.sends[which]:
            return max(float(compute.max()), earliest), np.zeros(self.n)
        # The derivative is 0 where Σ weight / (t − compute)² = 1: convex and decreasing, so Newton's steps come from
        # the left. Few are needed; the limit of 50 ends a loop that rounding might keep going.
        t = max(float((compute + np.sqrt(weight)).max()), earliest, float(compute.max()) + 1e-12)
        for _ in range(50):
            inverse = 1.0 / (t - compute)
            terms = weight * inverse * inverse
            slack = terms.sum() - 1.0
            if slack <= 1e-13:
                break
            t += slack / (2.0 * float(terms @ inverse))
        inverse = 1.0 / (t - compute)
        return t + float(weight @ inverse), inverse

    def maximise(self, x: np.ndarray, steps: int = 80) -> tuple[float, np.ndarray, np.ndarray]:
        """Maximise from multipliers x; return (bound in seconds, multipliers, (N, K) shares there)."""
        n = self.n
        tops = np.concatenate([np.repeat(np.where(self.sends, np.inf, 0.0), n), np.full(2 * n + 1, np.inf)])
        limits = list(zip(np.zeros_like(tops), tops, strict=True))
        x = np.minimum(x, tops)
        best, best_x = -np.inf, x
        # The smooth value is below the true one by at most smooth · K · ln N: 2 % of the scale times ln N in a first
        # round, which goes far, and 0.2 % in a second, which is exact enough. `value(x)` below has no such loss.
        for smooth in (0.02 / self.snr.shape[1], 0.002 / self.snr.shape[1]):
            options = {"maxiter": steps, "maxcor": 20, "ftol": 1e-7, "gtol": 1e-9}
            found = minimize(self._negated, x, (smooth,), "L-BFGS-B", jac=True, bounds=limits, options=options)
            x = found.x
            value, _, _ = self.value(x)
            if value > best:
                best, best_x = value, x
        _, _, share = self.value(best_x, smooth)
        return float(best) * self.scale, best_x, share

    def _negated(self, x: np.ndarray, smooth: float) -> tuple[float, np.ndarray]:
        value, gradient, _ = self.value(x, smooth)
        return -value, -gradient

    def start(self) -> np.ndarray:
        """Return multipliers to begin with: all clients alike, a price on total power, none on counts and own power."""
        n = self.n
        x = np.zeros(4 * n + 1)
        x[: 2 * n] = 0.1 / n  # by trial, in units of `scale`: any start gives a valid bound
        x[4 * n] = 0.05
        return x
