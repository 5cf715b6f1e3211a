"""`solve`: the methods of the pipeline scheduler, and the plan that each of them makes."""

from typing import Any

import numpy as np
from tqdm.auto import tqdm

from psl.errors import InfeasibleError, check_choice, check_count, expected
from psl.networks.edge_network import EdgeNetwork
from psl.profiles import Profile
from psl.schedulers.checks import check_min_cut
from psl.schedulers.pipeline.alternating import START, alternate
from psl.schedulers.pipeline.baselines import random_cuts, random_placement, two_tier
from psl.schedulers.pipeline.checks import LINKS, OBJECTIVES, ROUNDING, check_micro_batch
from psl.schedulers.pipeline.joint import optimum
from psl.schedulers.pipeline.label_setting import MAX_LABELS
from psl.schedulers.pipeline.placement import Placement
from psl.schedulers.pipeline.plan import PipelinePlan
from psl.schedulers.pipeline.problem import PipelineProblem

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
    min_cut: int | str = 1,
    bound: bool = True,
    max_labels: int = MAX_LABELS,
    progress: bool = False,
) -> PipelinePlan:
    """Choose where to cut the model, which node runs which stage, the hops between them and the micro-batch size.

    ==================  ============================================================================================
    "exact"             default [B]: the joint optimum over stages, hops and micro-batch size
    "alternating"       placement and micro-batch size in turn, from m = `start` [P, R]
    "no-pipeline"       the best placement with the mini-batch in one piece, m = b [R]
    "random-cuts"       a random division of the model, on the best nodes [R]
    "random-placement"  the optimum's division, on random nodes [R]
    "two-tier"          the best split between the source and one server [R]
    ==================  ============================================================================================

    Args:
        profile: costs of the model's cuts, from operator counts or measured.
        network: the network; its source holds the data.
        batch_size: b, samples per mini-batch.
        micro_batch: m, to fix it; None chooses the best.
        objective: "time": T = T_f + (⌈b/m⌉ − 1) T_i, seconds per mini-batch; "interval": T_i alone, for an endless
            stream of micro-batches as pipeline-parallel partitioners see it. With m free, that means the fewest seconds
            per sample, T_i / m; T_i / m never increases with m, and the smallest m with the T_i / m of m = b is taken.
        links: "once": an undirected link serves at most one hop of the plan; "shared": the hops over a link add up, per
            direction in full duplex; "separate": every hop counts by itself, as published, and T may be far too short.
        method: see the table.
        seed: of the random baselines; the same seed gives the same plan.
        start: first micro-batch size of "alternating".
        min_cut: the shallowest cut at which the source may hand on, by number or name, such as the floor of a leakage
            budget. The bound is then that of the plans allowed, and `plan.price` compares with the optimum without it.
        bound: give the plans of the other methods the optimum of "exact" as `lower_bound`; False leaves it NaN and
            saves time.
        max_labels: most labels per micro-batch size in the search that keeps a plan from using a node or link twice.
            Beyond them the best plan known is returned with `exact=False`.
        progress: show a progress bar of improvements.

    Returns:
        The plan; `plan.exact` says whether it is proven optimal, `plan.gap` how far from the optimum it is at most. Its
        `history` has a step's "round_time" in seconds; for objective="interval" that is the interval.

    Raises:
        ScenarioError: an argument is out of range, or does not go with the method.
        InfeasibleError: the model fits nowhere, or no path leads through nodes that hold it; the source does not hold
            the units up to `min_cut`.

    Source: pipelined split learning (arXiv 2505.04368): joint splitting, placement and micro-batch size [P]; see the
        marks above.
    """
    check_choice("method", method, METHODS)
    check_choice("objective", objective, OBJECTIVES)
    check_choice("links", links, LINKS)
    rng = np.random.default_rng(check_count("seed", seed, minimum=0))
    max_labels = check_count("max_labels", max_labels)
    unlimited = PipelineProblem(profile, network, batch_size)
    problem, floor = _floored(unlimited, min_cut)
    if micro_batch is not None:
        micro_batch = check_micro_batch(micro_batch, problem.batch_size)
    _check_method(method, objective, micro_batch, problem.batch_size)
    size = problem.batch_size if method == "no-pipeline" else micro_batch
    history: list[dict[str, Any]] = []

    def best(of: PipelineProblem) -> Placement:
        return optimum(of, micro_batch, links, objective, max_labels=max_labels)

    with tqdm(desc=f"pipeline {method}", unit=" improvements", disable=not progress) as bar:

        def report(event: dict[str, Any]) -> None:
            history.append(event)
            bar.update()
            bar.set_postfix(m=event["micro_batch"], round_time=f"{event['round_time']:.4g} s")

        def search(of: PipelineProblem) -> Placement:
            return optimum(of, size, links, objective, max_labels=max_labels, report=report)

        known: Placement | None = None  # the optimum
        try:
            if method == "exact":
                known = chosen = search(problem)
            elif method == "alternating":
                chosen = alternate(problem, links, start=start, max_labels=max_labels, report=report)
            elif method == "no-pipeline":
                chosen = search(problem)
            elif method == "two-tier":
                chosen = two_tier(problem, search)
            elif method == "random-cuts":
                chosen = random_cuts(problem, search, rng)
            else:
                known = best(problem)
                chosen = random_placement(problem, search, known, rng)
        except InfeasibleError:
            if method != "exact" and known is None:
                best(problem)  # if nothing fits at all, that is the error to raise
            raise
        if bound and known is None:
            known = best(problem)
        free = best(unlimited) if bound and floor > 1 else None
    value = _value(problem, chosen, objective, links)
    lower_bound = float("nan") if known is None else _lower_bound(known, chosen.micro_batch)
    proven = lower_bound >= value * (1 - ROUNDING)  # not with NaN
    return PipelinePlan(
        profile,
        network,
        problem.batch_size,
        chosen.micro_batch,
        chosen.stages,
        chosen.hops,
        objective=objective,
        links=links,
        method=method,
        lower_bound=value if proven else lower_bound,
        history=tuple(history),
        min_cut=floor,
        free_value=float("nan") if free is None else _free_value(unlimited, free, chosen, objective, links, value),
    )


def _floored(problem: PipelineProblem, min_cut: int | str) -> tuple[PipelineProblem, int]:
    """Return the problem in which the source computes at least the units up to a cut, and that cut's number."""
    held = np.flatnonzero(problem.fits[0, :, problem.source])  # ends of a first stage
    deepest = int(held.max(initial=1))
    floor = check_min_cut(problem.profile, min_cut, deepest, f"all that the source {problem.network.source!r} holds")
    if floor == 1:
        return problem, floor
    allowed = np.ones_like(problem.fits)
    allowed[0, :floor, problem.source] = False
    return problem.restricted(allowed), floor


def _free_value(
    problem: PipelineProblem, free: Placement, chosen: Placement, objective: str, links: str, value: float
) -> float:
    """Return the least objective known without a floor; an interval at the size of the plan's micro-batches."""
    least = _value(problem, free, objective, links)
    if objective == "interval":
        least *= chosen.micro_batch / free.micro_batch
    return min(least, value)


def _value(problem: PipelineProblem, placement: Placement, objective: str, links: str) -> float:
    """Return T or T_i of the plan, s, added up as the plan does: in another order the last bits would be a gap."""
    terms = problem.latency(placement.path, placement.micro_batch, links)
    return terms.total if objective == "time" else terms.interval


def _lower_bound(known: Placement, micro_batch: int) -> float:
    """Return a bound of the objective; an interval at another size is bounded by the least seconds per sample."""
    if known.objective == "time":
        return known.lower_bound
    return known.lower_bound * micro_batch / known.micro_batch


def _check_method(method: str, objective: str, micro_batch: int | None, batch_size: int) -> None:
    if objective == "interval" and method in ("alternating", "no-pipeline"):
        others = ", ".join(repr(m) for m in METHODS if m not in ("alternating", "no-pipeline"))
        fix = "take one of them, or objective='time'"
        raise expected("method", f"one of {others} for objective='interval'", repr(method), fix)
    if method == "alternating" and micro_batch is not None:
        fix = "say start= for its first size, or method='exact' for a fixed one"
        raise expected("micro_batch", "None for method='alternating', which chooses it", micro_batch, fix)
    if method == "no-pipeline" and micro_batch not in (None, batch_size):
        fix = "leave micro_batch out, or take another method"
        raise expected("micro_batch", f"batch_size = {batch_size} for method='no-pipeline'", micro_batch, fix)
