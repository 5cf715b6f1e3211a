"""Micro-batch size and placement together: the placement of every size that could win, and a bound for the others."""

import heapq

import numpy as np

from psl.errors import InfeasibleError
from psl.schedulers.pipeline.alternating import alternate
from psl.schedulers.pipeline.choice import Choice, Report
from psl.schedulers.pipeline.label_setting import MAX_LABELS
from psl.schedulers.pipeline.micro_batch import MicroBatchCurve, useful_micro_batches
from psl.schedulers.pipeline.placement import best_placement
from psl.schedulers.pipeline.problem import PipelineProblem, ceil_div
from psl.schedulers.pipeline.shortest_path import least_bottleneck, least_sum

_START_LABELS = 2_000  # the alternation only gives the first incumbent: it need not prove its placements
_SLACK = 1 + 1e-12  # sums in another order


class SizeBounds:
    """Lower bounds of T for every useful b, from shortest paths at only some of them.

    The least fill time S_min(b) is the lowest of many lines, hence concave: between two known sizes it is above the
    chord. The least interval θ_min(b) is the lowest of upper envelopes of such lines, none of which falls: it rises
    with b, and θ_min(b)/b falls. So every size that is solved also bounds its neighbours.

    Args:
        problem: the placement problem; its S_min and θ_min may book nodes and links twice.

    Source: ours [B].
    """

    def __init__(self, problem: PipelineProblem):
        self.problem = problem
        self.sizes = useful_micro_batches(problem.batch_size)  # (K,)
        self.weight = ceil_div(problem.batch_size, self.sizes) - 1  # (K,) M − 1
        self.fill = np.zeros(len(self.sizes))  # (K,) at least S_min
        self.interval = np.zeros(len(self.sizes))  # (K,) at least θ_min
        self.known = np.zeros(len(self.sizes), dtype=bool)
        self.learn(0)  # first: a chord with one end must not reach down to smaller sizes
        if len(self.sizes) > 1:
            self.learn(len(self.sizes) - 1)

    @property
    def total(self) -> np.ndarray:
        """(K,) s, no plan with that micro-batch size takes less."""
        return self.fill + self.weight * self.interval

    def learn(self, k: int) -> None:
        """Compute S_min and θ_min of the k-th size, and raise the bounds of the sizes around it."""
        problem, b = self.problem, self.sizes
        tables = problem.tables(int(b[k]))
        self.known[k] = True
        self.fill[k] = float(least_sum(problem, tables).arrived[0, problem.source])
        self.interval[k] = float(least_bottleneck(problem, tables).arrived[0, problem.source])
        if not np.isfinite(self.fill[k]):
            raise problem.infeasible()
        at = np.flatnonzero(self.known)
        chord = np.interp(b, b[at], self.fill[at])
        risen = np.maximum.accumulate(np.where(self.known, self.interval, 0.0))
        ratio = np.where(self.known, self.interval / b, 0.0)
        fallen = np.maximum.accumulate(ratio[::-1])[::-1] * b
        guess = ~self.known
        self.fill[guess] = np.maximum(self.fill, chord)[guess]
        self.interval[guess] = np.maximum(self.interval, np.maximum(risen, fallen))[guess]


def best_choice(
    problem: PipelineProblem,
    micro_batch: int | None,
    links: str,
    objective: str,
    *,
    max_labels: int = MAX_LABELS,
    report: Report | None = None,
) -> Choice:
    """Return the best placement at a given micro-batch size, or with the best size where it is None."""
    if micro_batch is None and objective == "time":
        return joint(problem, links, max_labels=max_labels, report=report)
    if micro_batch is None:
        return throughput(problem, links, max_labels=max_labels, report=report)
    options = {"links": links, "objective": objective, "max_labels": max_labels}
    choice = Choice.of(best_placement(problem, micro_batch, **options))
    if report is not None:
        report({"block": "placement", "micro_batch": choice.micro_batch, "value": choice.value})
    return choice


def joint(
    problem: PipelineProblem, links: str = "once", *, max_labels: int = MAX_LABELS, report: Report | None = None
) -> Choice:
    """Minimise T over micro-batch size and placement together.

    The alternation gives a first plan. Then sizes are taken in the order of their lower bounds. One whose bound is only
    borrowed from its neighbours first gets its own; then its placement problem is solved, for values below the best so
    far only. A placement that is found is tried with all sizes. Done when no bound is below the best.

    Args:
        problem: the placement problem.
        links: what a link may do, see `best_placement`.
        max_labels: of the repair, per micro-batch size.
        report: is told of every improvement.

    Raises:
        InfeasibleError: there is no placement.

    Source: ours [B]; pipelined split learning (arXiv 2505.04368) alternates [P].
    """
    bounds = SizeBounds(problem)
    try:
        first = alternate(problem, links, max_labels=min(max_labels, _START_LABELS), report=report)
    except InfeasibleError:  # or only not found with so few labels
        best, chosen, solved = np.inf, None, 0
    else:
        best, chosen, solved = first.value, (first.stages, first.hops, first.micro_batch), first.solved
    open_bound = np.inf  # the least bound among sizes that were given up without a proof
    heap = [(value, k) for k, value in enumerate(bounds.total.tolist())]
    heapq.heapify(heap)
    while heap:
        value, k = heapq.heappop(heap)
        if value >= best:
            break  # the smallest of all
        current = float(bounds.total[k])
        if current > value:
            heapq.heappush(heap, (current, k))  # a neighbour raised it
            continue
        if not bounds.known[k]:
            bounds.learn(k)
            heapq.heappush(heap, (float(bounds.total[k]), k))
            continue
        b = int(bounds.sizes[k])
        solved += 1
        try:
            placement = best_placement(problem, b, links=links, cutoff=best, max_labels=max_labels)
        except InfeasibleError:
            if chosen is None:
                raise  # what fits does not depend on b
            placement, open_bound = None, min(open_bound, current)
        if placement is None:
            continue
        if not placement.exact:
            open_bound = min(open_bound, max(placement.lower_bound, current))
        curve = MicroBatchCurve.of(problem, placement.stages, placement.hops, links)
        again = curve.scan()
        for size, total in ((b, placement.total), (again, float(curve.total(again)))):
            if total < best:
                best, chosen = total, (placement.stages, placement.hops, size)
                if report is not None:
                    report({"block": "placement" if size == b else "micro-batch", "micro_batch": size, "value": total})
    return Choice(*chosen, best, min(best, open_bound), solved)


def throughput(
    problem: PipelineProblem, links: str = "once", *, max_labels: int = MAX_LABELS, report: Report | None = None
) -> Choice:
    """Minimise T_i / b, the seconds per sample of an endless stream, over micro-batch size and placement together.

    The fixed costs of a micro-batch are shared by its samples, so T_i / b never rises with b and no size beats b = B.
    Where the bottleneck has no fixed cost, smaller ones do as well: the smallest useful size that does is returned.

    Raises:
        InfeasibleError: there is no placement.

    Source: ours [B]; the objective is that of pipeline-parallel partitioners such as PipeDream (arXiv 1806.03377).
    """
    sizes = useful_micro_batches(problem.batch_size)

    def at(k: int) -> Choice:
        options = {"links": links, "objective": "interval", "max_labels": max_labels}
        choice = Choice.of(best_placement(problem, int(sizes[k]), **options))
        if report is not None:
            report({"block": "placement", "micro_batch": choice.micro_batch, "value": choice.value})
        return choice

    low, high = 0, len(sizes) - 1
    last = chosen = at(high)
    while low < high:
        k = (low + high) // 2
        choice = at(k)
        if choice.value / choice.micro_batch <= last.value / last.micro_batch * _SLACK:
            high, chosen = k, choice
        else:
            low = k + 1
    bound = max(chosen.lower_bound, last.lower_bound / last.micro_batch * chosen.micro_batch)
    return Choice(chosen.stages, chosen.hops, chosen.micro_batch, chosen.value, min(bound, chosen.value))
