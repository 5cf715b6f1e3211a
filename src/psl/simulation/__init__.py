"""Discrete-event simulation of plans, from profile and network alone: it never sees the formulas that it checks."""

from collections.abc import Sequence
from typing import Any

from psl.errors import expected
from psl.networks.edge_network import EdgeNetwork
from psl.plans import Plan
from psl.profiles import Profile
from psl.simulation.edgesplit import edgesplit_jobs
from psl.simulation.epsl import epsl_jobs
from psl.simulation.operations import PipelinedPath
from psl.simulation.pipeline import pipeline_jobs, pipeline_timeline
from psl.simulation.timeline import KINDS, Recorder, Timeline
from psl.simulation.u_shape import u_shaped_jobs

__all__ = ["KINDS", "Timeline", "lower_bound", "simulate", "simulate_path"]


def simulate(
    plan: Plan, *, order: str = "1f1b", max_in_flight: int | None = None, equal_micro_batches: bool = False
) -> Timeline:
    """Execute one mini-batch of a pipelined plan, or one round of an EPSL or EdgeSplit plan, event by event.

    Durations come from the plan's profile and network, cell or cluster; the order of events comes from the rules in
    `psl.simulation.pipeline`, `.epsl`, `.u_shape` and `.edgesplit`, and, for plans in micro-batches, in
    `.micro_batches`. The result is deterministic.

    Args:
        plan: from `pipeline.solve`, `epsl.solve`, `epsl.solve_u_shaped` or `edgesplit.solve`.
        order: "1f1b": a node computes backward before forward when both wait; "flush" (GPipe): all forwards, then all
            backwards. Pipelined plans only.
        max_in_flight: micro-batches that the source may have between the start of their forward and the end of their
            backward there; None for no limit. Pipelined plans with order "1f1b" only.
        equal_micro_batches: let the last micro-batch have m samples like the others, as the closed form assumes,
            instead of the b − (M−1) m that are left. Pipelined plans only.

    Returns:
        The `Timeline`: `.makespan`, `.to_frame()`, `.utilisation()`, `.in_flight()`, `.memory()`, `.plot()`.

    Raises:
        ScenarioError: `plan` is no plan, an option is unknown, out of range or does not apply, or something in use
            has no speed or rate.

    Source: ours [B]; the systems are EPSL (arXiv 2303.15991), EdgeSplit (arXiv 2403.15815) and pipelined split
    learning (arXiv 2505.04368).
    """
    if _scheduler(plan) == "pipeline":
        return pipeline_timeline(plan, order=order, max_in_flight=max_in_flight, equal=equal_micro_batches)
    return _jobs(plan, order, max_in_flight, equal_micro_batches).timeline(plan.scheduler)


def simulate_path(
    profile: Profile,
    network: EdgeNetwork,
    *,
    stages: Sequence[tuple[int | str, int, int]],
    hops: Sequence[tuple[int, int | str, int | str]],
    micro_batch: int,
    batch_size: int,
    order: str = "1f1b",
    max_in_flight: int | None = None,
    equal_micro_batches: bool = False,
) -> Timeline:
    """Execute one mini-batch over stages and hops that need not be a plan: nodes and links may be used repeatedly.

    A node with two stages is one processor, and a link with two hops one link: so this tells what a path really takes
    that `PipelinePlan` refuses.

    Args:
        profile: costs of the model's cuts.
        network: the network.
        stages: (node, i, j) in the order of the path: the node runs units i+1..j.
        hops: (cut, u, v) in the order of the path.
        micro_batch: m, samples per micro-batch.
        batch_size: b, samples per mini-batch.
        order, max_in_flight, equal_micro_batches: as in `simulate`.

    Raises:
        ScenarioError: stages and hops are no path through the model, or an option is unknown or out of range.

    Source: ours [B]; the system is pipelined split learning (arXiv 2505.04368).
    """
    path = PipelinedPath(profile, network, batch_size, micro_batch, stages, hops)
    return pipeline_timeline(path, order=order, max_in_flight=max_in_flight, equal=equal_micro_batches)


def lower_bound(plan: Plan, *, equal_micro_batches: bool = False) -> float:
    """Return seconds that no order of serving can beat: the longest chain, or a resource's load with head and tail.

    For every resource, all its work lies between the earliest moment at which any of it can start and the shortest
    remainder after any of it. Unlike the closed form T_f + (M − 1) T_i this bounds the simulated time.

    Args:
        plan, equal_micro_batches: as in `simulate`.

    Raises:
        ScenarioError: as `simulate`.

    Source: ours [B]; a standard bound of scheduling.
    """
    return _jobs(plan, equal_micro_batches=equal_micro_batches).lower_bound()


def _jobs(
    plan: Any, order: str = "1f1b", max_in_flight: int | None = None, equal_micro_batches: bool = False
) -> Recorder:
    scheduler = _scheduler(plan)
    if scheduler == "pipeline":
        return pipeline_jobs(plan, order=order, max_in_flight=max_in_flight, equal=equal_micro_batches)
    if scheduler not in ("epsl", "edgesplit"):
        got = plan.__name__ if isinstance(plan, type) else type(plan).__name__
        want = "a plan of epsl.solve, edgesplit.solve or pipeline.solve"
        raise expected("plan", want, got, "pass what solve returned")
    given = {"order": order, "max_in_flight": max_in_flight, "equal_micro_batches": equal_micro_batches}
    for name, default in {"order": "1f1b", "max_in_flight": None, "equal_micro_batches": False}.items():
        if given[name] != default:
            want = f"its default with a plan of {scheduler}"
            raise expected(name, want, repr(given[name]), "use it with pipelined plans")
    if scheduler == "edgesplit":
        return edgesplit_jobs(plan)
    return u_shaped_jobs(plan) if hasattr(plan, "tail_cut") else epsl_jobs(plan)


def _scheduler(plan: Any) -> str | None:
    return plan.scheduler if isinstance(plan, Plan) and not isinstance(plan, type) else None
