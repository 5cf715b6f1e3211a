"""Discrete-event simulation of plans, from profile and network alone: it never sees the formulas that it checks."""

from psl.errors import expected
from psl.simulation.edgesplit import edgesplit_jobs
from psl.simulation.epsl import epsl_jobs
from psl.simulation.pipeline import pipeline_jobs
from psl.simulation.timeline import KINDS, Recorder, Timeline

__all__ = ["KINDS", "Timeline", "lower_bound", "simulate"]


def simulate(
    plan, *, order: str = "1f1b", max_in_flight: int | None = None, equal_micro_batches: bool = False
) -> Timeline:
    """Execute one mini-batch of a pipelined plan, or one round of an EPSL or EdgeSplit plan, event by event.

    Durations come from the plan's profile and network, cell or cluster; what happens when comes from the rules in
    `psl.simulation.pipeline`, `.epsl` and `.edgesplit`. The result is deterministic.

    Args:
        plan: from `pipeline.solve`, `epsl.solve` or `edgesplit.solve`.
        order: "1f1b": a node computes backward before forward when both wait; "flush" (GPipe): all forwards, then all
            backwards. Pipelined plans only.
        max_in_flight: micro-batches that the source may have between the start of their forward and the end of their
            backward there; None for no limit. Pipelined plans with order "1f1b" only.
        equal_micro_batches: let the last micro-batch have b samples like the others, as the closed form assumes,
            instead of the B − (M−1) b that are left. Pipelined plans only.

    Returns:
        The `Timeline`: `.makespan`, `.to_frame()`, `.utilisation()`, `.in_flight()`, `.memory()`, `.plot()`.

    Raises:
        ScenarioError: `plan` is no plan, an option is unknown, out of range or does not apply, or something in use
            has no speed or rate.

    Source: ours [B]; the systems are EPSL (arXiv 2303.15991), EdgeSplit (arXiv 2403.15815) and pipelined split
    learning (arXiv 2505.04368).
    """
    options = {"order": order, "max_in_flight": max_in_flight, "equal_micro_batches": equal_micro_batches}
    jobs = _jobs(plan, **options)
    return jobs.timeline(plan.scheduler, order if plan.scheduler == "pipeline" else None)


def lower_bound(plan, *, equal_micro_batches: bool = False) -> float:
    """Return seconds that no order of serving can beat: the longest chain, or a resource's load with head and tail.

    For every resource, all its work fits nowhere but between the earliest moment at which any of it can start and the
    shortest remainder after any of it. Unlike the closed form T_f + (M − 1) T_i this is a bound of what happens.

    Args:
        plan, equal_micro_batches: as in `simulate`.

    Source: ours [B]; a standard bound of scheduling.
    """
    return _jobs(plan, equal_micro_batches=equal_micro_batches).lower_bound()


def _jobs(plan, order="1f1b", max_in_flight=None, equal_micro_batches=False) -> Recorder:
    makers = {"epsl": epsl_jobs, "edgesplit": edgesplit_jobs, "pipeline": pipeline_jobs}
    scheduler = None if isinstance(plan, type) else getattr(plan, "scheduler", None)
    if scheduler not in makers:
        got = plan.__name__ if isinstance(plan, type) else type(plan).__name__
        raise expected(
            "plan", "a plan of epsl.solve, edgesplit.solve or pipeline.solve", got, "pass what solve returned"
        )
    if scheduler == "pipeline":
        return pipeline_jobs(plan, order=order, max_in_flight=max_in_flight, equal=equal_micro_batches)
    defaults = {"order": (order, "1f1b"), "max_in_flight": (max_in_flight, None)}
    defaults["equal_micro_batches"] = (equal_micro_batches, False)
    for name, (value, default) in defaults.items():
        if value != default:
            raise expected(name, f"its default with a plan of {scheduler}", repr(value), "use it with pipelined plans")
    return makers[scheduler](plan)
