"""The front door of the pipeline scheduler."""

import dataclasses

import numpy as np
from tqdm.auto import tqdm

from psl.errors import InfeasibleError, check_choice, check_count, expected
from psl.networks.edge_network import EdgeNetwork
from psl.profiles import Profile
from psl.schedulers.pipeline.alternating import START, alternate
from psl.schedulers.pipeline.baselines import random_cuts, random_placement, two_tier
from psl.schedulers.pipeline.choice import Choice
from psl.schedulers.pipeline.joint import best_choice
from psl.schedulers.pipeline.label_setting import MAX_LABELS
from psl.schedulers.pipeline.plan import PipelinePlan
from psl.schedulers.pipeline.problem import LINKS, OBJECTIVES, PipelineProblem, check_micro_batch

METHODS = ("exact", "alternating", "no-pipeline", "random-cuts", "random-placement", "two-tier")


def solve(
    profile: Profile,
    network: EdgeNetwork,
    *,
    batch_size: int = 512,
    micro_batch: int | None = None,
    objective: str = "time",
    links: str = "once",
    method: str = "exact",
    seed: int = 0,
    start: int = START,
    bound: bool = True,
    max_labels: int = MAX_LABELS,
    progress: bool = False,
) -> PipelinePlan:
    """Choose where to cut the model, which node runs which part, the ways between them and the micro-batch size.

    ==================  ============================================================================================
    "exact"             default [B]: the joint optimum over stages, hops and micro-batch size
    "alternating"       placement and micro-batch size in turn, from b = `start` [P, R]
    "no-pipeline"       the best placement with the mini-batch in one piece, b = B [R]
    "random-cuts"       a random division of the model, on the best nodes [R]
    "random-placement"  the optimum's division, on random nodes [R]
    "two-tier"          the best split between the source and one server [R]
    ==================  ============================================================================================

    Args:
        profile: costs of the model's cuts, from operator counts or measured.
        network: the network; its source holds the data.
        batch_size: B, samples per mini-batch.
        micro_batch: b, to fix it; None chooses the best.
        objective: "time": T = T_f + (⌈B/b⌉ − 1) T_i, seconds per mini-batch; "interval": T_i alone, for an endless
            stream of micro-batches as pipeline-parallel partitioners see it. With b free, that means the fewest seconds
            per sample, T_i / b; these never rise with b, and the smallest b that reaches those of b = B is taken.
        links: "once": an undirected link serves at most one hop of the plan; "shared": the hops over a link add up, per
            direction in full duplex; "separate": every hop counts by itself, as published, which promises too much.
        method: see the table.
        seed: of the random baselines; the same seed gives the same plan.
        start: first micro-batch size of "alternating".
        bound: give the plans of the other methods the optimum of "exact" as `lower_bound`; False leaves it NaN and
            saves time.
        max_labels: of the search that keeps nodes and links from being booked twice, per micro-batch size; beyond
            them the best plan known is returned with `exact=False`.
        progress: show a progress bar of improvements.

    Returns:
        The plan; `plan.exact` says whether it is proven optimal, and `plan.gap` how far from it it can be at most.

    Raises:
        ScenarioError: an argument is out of range, or does not go with the method.
        InfeasibleError: the model fits nowhere, or no way leads through nodes that hold it.

    Source: pipelined split learning (arXiv 2505.04368): joint splitting, placement and micro-batch size [P]; see the
        marks above.
    """
    check_choice("method", method, METHODS)
    check_choice("objective", objective, OBJECTIVES)
    check_choice("links", links, LINKS)
    rng = np.random.default_rng(check_count("seed", seed, minimum=0))
    max_labels = check_count("max_labels", max_labels)
    problem = PipelineProblem(profile, network, batch_size)
    if micro_batch is not None:
        micro_batch = check_micro_batch(micro_batch, problem.batch_size)
    _check_method(method, objective, micro_batch, problem.batch_size)
    history: list[dict] = []
    bar = tqdm(desc=f"pipeline {method}", unit=" improvements", disable=not progress)

    def report(event: dict) -> None:
        history.append(event)
        bar.update()
        bar.set_postfix(b=event["micro_batch"], value=f"{event['value']:.4g} s")

    def best(of: PipelineProblem, told=report) -> Choice:
        return best_choice(of, micro_batch, links, objective, max_labels=max_labels, report=told)

    optimum = best(problem, None) if method == "random-placement" else None
    try:
        if method == "exact":
            optimum = chosen = best(problem)
        elif method == "alternating":
            chosen = alternate(problem, links, start=start, max_labels=max_labels, report=report)
        elif method == "no-pipeline":
            options = {"max_labels": max_labels, "report": report}
            chosen = best_choice(problem, problem.batch_size, links, objective, **options)
        elif method == "two-tier":
            chosen = two_tier(problem, best)
        elif method == "random-cuts":
            chosen = random_cuts(problem, best, rng)
        else:
            chosen = random_placement(problem, best, optimum, rng)
    except InfeasibleError:
        best(problem, None)  # if nothing fits at all, that is the error to raise
        raise
    if bound and optimum is None:
        optimum = best(problem, None)
    bar.close()
    plan = PipelinePlan(
        profile,
        network,
        problem.batch_size,
        chosen.micro_batch,
        chosen.stages,
        chosen.hops,
        objective=objective,
        links=links,
        method=method,
        history=tuple(history),
    )
    if optimum is None:
        return plan
    value = _lower_bound(optimum, plan)
    if value >= plan.value * (1 - 1e-12):  # sums in another order: the last bits are no gap
        return dataclasses.replace(plan, lower_bound=plan.value, exact=True)
    return dataclasses.replace(plan, lower_bound=value)


def _lower_bound(optimum: Choice, plan: PipelinePlan) -> float:
    """Return a bound of the plan's objective; an interval at another b is bounded by the least seconds per sample."""
    if plan.objective == "time":
        return optimum.lower_bound
    return optimum.lower_bound * plan.micro_batch / optimum.micro_batch


def _check_method(method: str, objective: str, micro_batch: int | None, batch_size: int) -> None:
    if objective == "interval" and method in ("alternating", "no-pipeline"):
        others = ", ".join(repr(m) for m in METHODS if m not in ("alternating", "no-pipeline"))
        raise expected(
            "method", f"one of {others} for objective='interval'", repr(method),
            "take one of them, or objective='time'",
        )  # fmt: skip
    if method == "alternating" and micro_batch is not None:
        raise expected(
            "micro_batch", "None for method='alternating', which chooses it", micro_batch,
            "say start= for its first size, or method='exact' for a fixed one",
        )  # fmt: skip
    if method == "no-pipeline" and micro_batch not in (None, batch_size):
        fix = "leave micro_batch out, or take another method"
        raise expected("micro_batch", f"batch_size = {batch_size} for method='no-pipeline'", micro_batch, fix)
