"""Placement and micro-batch size in turn, each the best for the other: fast, and it can get stuck."""

from psl.errors import check_count
from psl.schedulers.pipeline.choice import Choice, Report
from psl.schedulers.pipeline.label_setting import MAX_LABELS
from psl.schedulers.pipeline.micro_batch import MicroBatchCurve
from psl.schedulers.pipeline.placement import best_placement
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
) -> Choice:
    """Minimise T over placement and micro-batch size in turn, until neither gets better.

    Args:
        problem: the placement problem.
        links: what a link may do, see `best_placement`.
        start: the first micro-batch size; cut off at B.
        rule: how b follows from the placement, see `MicroBatchCurve`: "scan" is exact, so that T never rises;
            "envelope" and "bottleneck" are closed forms.
        max_labels: of the repair, per placement.
        report: is told of every step.

    Returns:
        The best that was met; its `lower_bound` is 0: the alternation proves nothing.

    Raises:
        ScenarioError: an argument is out of range.
        InfeasibleError: there is no placement.

    Source: pipelined split learning (arXiv 2505.04368): the alternation and the closed form [P]; its start and end [R].
    """
    tell = report or (lambda event: None)
    b = min(check_count("start", start), problem.batch_size)
    best, seen, solved = None, set(), 0
    while b not in seen:
        seen.add(b)
        placement = best_placement(problem, b, links=links, max_labels=max_labels)
        solved += 1
        curve = MicroBatchCurve.of(problem, placement.stages, placement.hops, links)
        tell({"block": "placement", "micro_batch": b, "value": placement.total})
        after = curve.best(rule, b)
        for size, total in ((b, placement.total), (after, float(curve.total(after)))):
            if best is None or total < best.value:
                best = Choice(placement.stages, placement.hops, size, total, 0.0)
        if after != b:
            tell({"block": "micro-batch", "micro_batch": after, "value": float(curve.total(after))})
        b = after
    return Choice(best.stages, best.hops, best.micro_batch, best.value, 0.0, solved)
