"""Placement and micro-batch size in turn, each the best for the other: fast, and it can get stuck."""

import dataclasses

from psl.errors import check_count
from psl.schedulers.pipeline.label_setting import MAX_LABELS
from psl.schedulers.pipeline.micro_batch import MicroBatchCurve
from psl.schedulers.pipeline.placement import Placement, Report, best_placement
from psl.schedulers.pipeline.problem import PipelineProblem

START = 32  # samples per micro-batch at first


def alternate(
    problem: PipelineProblem,
    links: str = "once",
    *,
    start: int = START,
    rule: str = "scan",
    max_labels: int = MAX_LABELS,
    report: Report | None = None,
) -> Placement:
    """Minimise T over placement and micro-batch size in turn, until neither gets better.

    Args:
        problem: the placement problem.
        links: how hops may use the links, see `best_placement`.
        start: the first micro-batch size; b if that is smaller.
        rule: how m follows from the placement, see `MicroBatchCurve`: "scan" is exact, so that T never rises;
            "envelope" and "bottleneck" are closed forms.
        max_labels: of the label setting, per placement.
        report: is told of every step.

    Returns:
        The best that was met; its `lower_bound` is 0: the alternation proves nothing.

    Raises:
        ScenarioError: an argument is out of range.
        InfeasibleError: there is no placement.

    Source: pipelined split learning (arXiv 2505.04368): the alternation and the closed form [P]; its start and end [R].
    """
    m = min(check_count("start", start), problem.batch_size)
    candidates: list[Placement] = []
    seen: set[int] = set()
    while m not in seen:
        seen.add(m)
        placement = best_placement(problem, m, links=links, max_labels=max_labels)
        curve = MicroBatchCurve.of(problem, placement.path, links)
        resized = placement.resized(curve, curve.best(rule, m))
        candidates += [placement, resized]
        if report is not None:
            report({"block": "placement", "micro_batch": m, "round_time": placement.total})
            if resized.micro_batch != m:
                report({"block": "micro-batch", "micro_batch": resized.micro_batch, "round_time": resized.total})
        m = resized.micro_batch
    best = min(candidates, key=lambda candidate: candidate.total)  # of equals the first
    return dataclasses.replace(best, lower_bound=0.0, exact=False, solved=len(seen))
