"""Micro-batch size and placement together: the placement of every size that could win, and a bound for the others."""

import dataclasses
import heapq
from contextlib import suppress

import numpy as np

from psl.errors import InfeasibleError
from psl.schedulers.pipeline.alternating import alternate
from psl.schedulers.pipeline.checks import ROUNDING
from psl.schedulers.pipeline.label_setting import MAX_LABELS
from psl.schedulers.pipeline.latency import ceil_div, round_time
from psl.schedulers.pipeline.micro_batch import MicroBatchCurve, useful_micro_batches
from psl.schedulers.pipeline.placement import Placement, Report, best_placement, placement_below
from psl.schedulers.pipeline.problem import PipelineProblem
from psl.schedulers.pipeline.shortest_path import least_bottleneck, least_sum

_START_LABELS = 2_000  # a hundredth of MAX_LABELS: the alternation gives a first plan, and need not prove anything


class SizeBounds:
    """Lower bounds of T for every useful m, from shortest paths at only some of them.

    The least fill time S_min(m) is the least of many lines, hence concave: between two known sizes it is above the
    chord. The least interval θ_min(m) is the least of upper envelopes of such lines, none of which falls: it rises
    with m, and θ_min(m)/m falls. So every size that is solved also bounds its neighbours.

    Args:
        problem: the placement problem; the paths behind S_min and θ_min may come back to nodes and links.

    Raises:
        InfeasibleError: no path leads through the model.

    Source: ours [B].
    """

    def __init__(self, problem: PipelineProblem):
        self.problem = problem
        self.sizes = useful_micro_batches(problem.batch_size)  # (sizes,)
        self.counts = ceil_div(problem.batch_size, self.sizes)  # (sizes,) M
        self.fill = np.zeros(len(self.sizes))  # (sizes,) at most S_min
        self.interval = np.zeros(len(self.sizes))  # (sizes,) at most θ_min
        self.known = np.zeros(len(self.sizes), dtype=bool)
        self.learn(0)  # first: a chord with one end must not reach down to smaller sizes
        if len(self.sizes) > 1:
            self.learn(len(self.sizes) - 1)

    @property
    def total(self) -> np.ndarray:
        """(sizes,) s, no plan with that micro-batch size takes less."""
        return round_time(self.fill, self.interval, self.counts)

    def learn(self, k: int) -> None:
        """Compute S_min and θ_min of the k-th size, and raise the bounds of the sizes around it."""
        problem, m = self.problem, self.sizes
        tables = problem.tables(int(m[k]))
        self.known[k] = True
        self.fill[k] = float(least_sum(problem, tables).arrived[0, problem.source])
        self.interval[k] = float(least_bottleneck(problem, tables).arrived[0, problem.source])
        if not np.isfinite(self.fill[k]):
            raise problem.infeasible()
        at = np.flatnonzero(self.known)
        chord = np.interp(m, m[at], self.fill[at])
        risen = np.maximum.accumulate(np.where(self.known, self.interval, 0.0))
        ratio = np.where(self.known, self.interval / m, 0.0)
        fallen = np.maximum.accumulate(ratio[::-1])[::-1] * m
        guess = ~self.known
        self.fill[guess] = np.maximum(self.fill, chord)[guess]
        self.interval[guess] = np.maximum(self.interval, np.maximum(risen, fallen))[guess]


def optimum(
    problem: PipelineProblem,
    micro_batch: int | None,
    links: str,
    objective: str,
    *,
    max_labels: int = MAX_LABELS,
    report: Report | None = None,
) -> Placement:
    """Return the best placement at a given micro-batch size, or with the best size where that is None.

    Args:
        problem: the placement problem.
        micro_batch: m, samples per micro-batch, or None.
        links, objective: see `best_placement`; with m free, "interval" means the least seconds per sample, T_i / m.
        max_labels: of the label setting, per micro-batch size.
        report: is told of every step.

    Raises:
        ScenarioError: an argument is out of range.
        InfeasibleError: there is no placement.
    """
    if micro_batch is None and objective == "time":
        return joint(problem, links, max_labels=max_labels, report=report)
    if micro_batch is None:
        return throughput(problem, links, max_labels=max_labels, report=report)
    return _reported(
        best_placement(problem, micro_batch, links=links, objective=objective, max_labels=max_labels), report
    )


def joint(
    problem: PipelineProblem, links: str = "once", *, max_labels: int = MAX_LABELS, report: Report | None = None
) -> Placement:
    """Minimise T over micro-batch size and placement together.

    The alternation gives a first plan. Then sizes are taken in the order of their lower bounds. If the bound of a size
    comes from its neighbours, its own is computed first. Then its placement problem is solved, for values below the
    best so far only, and the placement that is found is tried with all sizes. The search ends when no bound is below
    the best.

    Args:
        problem: the placement problem.
        links: how hops may use the links, see `best_placement`.
        max_labels: of the label setting, per micro-batch size.
        report: is told of every improvement.

    Returns:
        The best placement; `lower_bound` holds for all micro-batch sizes.

    Raises:
        InfeasibleError: there is no placement.

    Source: ours [B]; pipelined split learning (arXiv 2505.04368) alternates [P].
    """
    bounds = SizeBounds(problem)
    best: Placement | None = None
    solved = 0
    with suppress(InfeasibleError):  # there may be a placement that takes more labels to find
        best = alternate(problem, links, max_labels=min(max_labels, _START_LABELS), report=report)
        solved = best.solved
    open_bound = np.inf  # the least bound among sizes that were given up without a proof
    heap = [(value, k) for k, value in enumerate(bounds.total.tolist())]
    heapq.heapify(heap)
    while heap:
        value, k = heapq.heappop(heap)
        cutoff = np.inf if best is None else best.total
        if value >= cutoff:
            break  # the least of all
        current = float(bounds.total[k])
        if current > value:
            heapq.heappush(heap, (current, k))  # a neighbour raised it
            continue
        if not bounds.known[k]:
            bounds.learn(k)
            heapq.heappush(heap, (float(bounds.total[k]), k))
            continue
        m = int(bounds.sizes[k])
        solved += 1
        try:
            placement = placement_below(problem, m, cutoff, links=links, max_labels=max_labels)
        except InfeasibleError:
            if best is None:
                raise  # what fits does not depend on m
            placement, open_bound = None, min(open_bound, current)
        if placement is None:
            continue
        if not placement.exact:
            open_bound = min(open_bound, max(placement.lower_bound, current))
        curve = MicroBatchCurve.of(problem, placement.path, links)
        for candidate in (placement, placement.resized(curve, curve.scan())):
            if best is None or candidate.total < best.total:
                best = candidate
                if report is not None:
                    block = "placement" if candidate.micro_batch == m else "micro-batch"
                    report({"block": block, "micro_batch": candidate.micro_batch, "round_time": candidate.total})
    if best is None:
        raise problem.infeasible(links)
    exact = open_bound >= best.total
    return dataclasses.replace(best, lower_bound=min(best.total, open_bound), exact=exact, solved=solved)


def throughput(
    problem: PipelineProblem, links: str = "once", *, max_labels: int = MAX_LABELS, report: Report | None = None
) -> Placement:
    """Minimise T_i / m, the seconds per sample of an endless stream, over micro-batch size and placement together.

    The fixed costs of a micro-batch are shared by its samples, so T_i / m never rises with m and no size beats m = b.
    Where the bottleneck has no fixed cost, smaller sizes are as good: the smallest useful one of them is returned.

    Args:
        problem, links, max_labels: as for `joint`.
        report: is told of the placement at every size that was tried.

    Raises:
        InfeasibleError: there is no placement.

    Source: ours [B]; the objective is that of pipeline-parallel partitioners such as PipeDream (arXiv 1806.03377).
    """
    sizes = useful_micro_batches(problem.batch_size).tolist()

    def at(k: int) -> Placement:
        options = {"links": links, "objective": "interval", "max_labels": max_labels}
        return _reported(best_placement(problem, sizes[k], **options), report)

    low, high = 0, len(sizes) - 1
    largest = chosen = at(high)
    while low < high:
        k = (low + high) // 2
        placement = at(k)
        per_sample = placement.interval / placement.micro_batch
        if per_sample <= largest.interval / largest.micro_batch * (1 + ROUNDING):
            high, chosen = k, placement
        else:
            low = k + 1
    bound = max(chosen.lower_bound, largest.lower_bound / largest.micro_batch * chosen.micro_batch)
    return dataclasses.replace(chosen, lower_bound=min(bound, chosen.interval), exact=bound >= chosen.interval)


def _reported(placement: Placement, report: Report | None) -> Placement:
    if report is not None:
        report({"block": "placement", "micro_batch": placement.micro_batch, "round_time": placement.value})
    return placement
