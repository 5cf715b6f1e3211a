"""The size of a micro-batch when stages and hops are fixed: two closed forms, and the scan that settles it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from psl.errors import check_choice, check_count
from psl.schedulers.pipeline.latency import ceil_div, link_loads, round_time
from psl.schedulers.pipeline.path import Path
from psl.schedulers.pipeline.plan import PipelinePlan
from psl.schedulers.pipeline.problem import PipelineProblem

#: Ways to choose m for a fixed path, see `MicroBatchCurve`.
RULES = ("scan", "envelope", "bottleneck")


def useful_micro_batches(batch_size: int) -> np.ndarray:
    """Return the sizes m worth trying, ascending: for every number M = ⌈b/m⌉ of micro-batches the smallest m.

    Args:
        batch_size: b, samples per mini-batch.

    Returns:
        About 2 √b sizes from 1 to b; any other m takes longer for the same M.

    Source: ours [B].
    """
    batch_size = check_count("batch_size", batch_size)
    return np.unique(ceil_div(batch_size, np.arange(1, batch_size + 1)))


@dataclass(frozen=True)
class MicroBatchCurve:
    """T(m) = α0 + α m + (⌈b/m⌉ − 1) max_r (β0_r + β_r m) of a fixed path: every resource costs a line in m.

    Args:
        batch_size: b.
        alpha0, alpha: s and s per sample: the fill time T_f is α0 + α m.
        beta0, beta: (R,) s and s per sample: a resource is busy for β0 + β m per micro-batch.

    Source: pipelined split learning (arXiv 2505.04368): closed form at the bottleneck [P], its terms [R]; the upper
        envelope and the scan [B].
    """

    batch_size: int
    alpha0: float
    alpha: float
    beta0: np.ndarray
    beta: np.ndarray

    @classmethod
    def of(cls, problem: PipelineProblem, path: Path, links: str = "once") -> "MicroBatchCurve":
        """Return the curve of a path through a problem."""
        lines: list[tuple[float, float]] = []  # (β0, β)
        alpha0, alpha = float(problem.first_step[path.stages[0][2]]), 0.0
        for n, i, j in path.stages:
            fixed, slope = problem.overhead[n], problem.work[j, n] - problem.work[i, n]
            lines.append((fixed, slope))
            alpha0, alpha = alpha0 + fixed, alpha + slope
        load: Counter = Counter()  # s per sample
        for k, (cut, e) in enumerate(path.hops):
            forward, backward = problem.forward[cut, e], problem.backward[cut, e]
            alpha0, alpha = alpha0 + problem.propagation[e], alpha + forward + backward
            if links == "shared":
                load.update(link_loads(e, int(problem.reverse[e]), forward, backward, problem.full_duplex))
            else:
                load.update(link_loads((k, 0), (k, 1), forward, backward, problem.full_duplex))
        lines += [(0.0, slope) for slope in load.values()]
        beta0, beta = np.array(lines).T
        return cls(problem.batch_size, float(alpha0), float(alpha), beta0, beta)

    @classmethod
    def of_plan(cls, plan: PipelinePlan) -> "MicroBatchCurve":
        """Return the curve of a plan's stages and hops."""
        problem = PipelineProblem(plan.profile, plan.network, plan.batch_size)
        return cls.of(problem, Path.of(plan.network, plan.stages, plan.hops), plan.links)

    def fill_time(self, micro_batch: ArrayLike) -> np.ndarray:
        """Return T_f at m, or at each of an array of m, s."""
        return self.alpha0 + self.alpha * np.asarray(micro_batch)

    def interval(self, micro_batch: ArrayLike) -> np.ndarray:
        """Return T_i at m, or at each of an array of m, s."""
        return (self.beta0 + self.beta * np.asarray(micro_batch)[..., None]).max(axis=-1)

    def total(self, micro_batch: ArrayLike) -> np.ndarray:
        """Return T at m, or at each of an array of m, s."""
        m = np.asarray(micro_batch)
        return round_time(self.fill_time(m), self.interval(m), ceil_div(self.batch_size, m))

    def best(self, rule: str = "scan", start: int = 32) -> int:
        """Return the micro-batch size that a rule chooses: "scan", "envelope" or "bottleneck" (from `start`)."""
        check_choice("rule", rule, RULES)
        if rule == "bottleneck":
            return self.bottleneck(start)
        return self.scan() if rule == "scan" else self.envelope()

    def scan(self) -> int:
        """Return the m of least T, exactly, out of the 2 √b useful ones."""
        return self._better(useful_micro_batches(self.batch_size))

    def closed_form(self, at: int = 32) -> int:
        """Return m* = sqrt(b β0 / (α − β)) of the bottleneck at m = `at`, the better of its floor and ceiling.

        The published closed form. It knows one bottleneck: at m* another resource may be the slowest.
        """
        at = min(check_count("at", at), self.batch_size)
        stationary = self._stationary()[np.argmax(self.beta0 + self.beta * at)]
        return self._better([np.floor(stationary), np.ceil(stationary)])

    def bottleneck(self, start: int = 32) -> int:
        """Return the closed form's m at the bottleneck of m = `start`, then at that of its own result, and so on.

        It stops when a size comes again. Between a bottleneck with fixed costs and one without, several sizes follow
        each other in a circle: the best of them is returned.
        """
        m, seen = min(check_count("start", start), self.batch_size), []
        while m not in seen:
            seen.append(m)
            m = self.closed_form(m)
        return self._better(seen[seen.index(m) :])

    def envelope(self) -> int:
        """Return the m of least T for continuous m and M = b/m, all resources considered, rounded to a whole M.

        For each resource T is convex in m, and so is the largest of them: the minimum is a resource's own m*, or a
        point where two resources are equally busy. Of the two whole M beside b/m the better is taken, each with the
        smallest m that it needs.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            meet = (self.beta0 - self.beta0[:, None]) / (self.beta[:, None] - self.beta)  # (R, R)
        meet = meet[np.isfinite(meet) & (meet > 1) & (meet < self.batch_size)]
        m = np.concatenate([self._stationary(), meet, [1.0, self.batch_size]])
        time = round_time(self.fill_time(m), self.interval(m), self.batch_size / m)
        least = self.batch_size / m[np.argmin(time)]
        counts = np.array([max(np.floor(least), 1), np.ceil(least)], dtype=int)
        return self._better(ceil_div(self.batch_size, counts))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per useful m: number of micro-batches, fill time, interval and total time."""
        m = useful_micro_batches(self.batch_size)
        columns = {"micro_batches": ceil_div(self.batch_size, m), "fill_time_s": self.fill_time(m)}
        columns |= {"interval_s": self.interval(m), "total_s": self.total(m)}
        return pd.DataFrame(columns, index=pd.Index(m, name="micro_batch"))

    def _stationary(self) -> np.ndarray:
        """Return (R,) each resource's m* as if it were the bottleneck throughout, clipped to 1..b."""
        others = np.maximum(self.alpha - self.beta, 0.0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            m = np.sqrt(self.batch_size * self.beta0 / others)
        # Nothing fixed: the smaller the better. Nothing else that grows with m: the larger the better.
        return np.clip(np.where(self.beta0 > 0, m, 1.0), 1.0, self.batch_size)

    def _better(self, sizes: Iterable[float] | np.ndarray) -> int:
        candidates = np.asarray(sizes, dtype=int)
        return int(candidates[np.argmin(self.total(candidates))])
