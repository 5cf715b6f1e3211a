"""`solve`: every device's cut and bandwidth by one of the methods, with the optimum beside it."""

import dataclasses
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from psl.errors import check_choice, check_count, expected
from psl.networks.edge_cluster import EdgeCluster
from psl.profiles import Profile
from psl.schedulers.edgesplit.alternating import alternate
from psl.schedulers.edgesplit.baselines import BASELINES, baseline
from psl.schedulers.edgesplit.bisection import bisection
from psl.schedulers.edgesplit.enumeration import EnumeratedProblem, make_problem
from psl.schedulers.edgesplit.micro_batches import best_micro_batched
from psl.schedulers.edgesplit.plan import EdgeSplitPlan
from psl.schedulers.edgesplit.policy_iteration import best_split
from psl.schedulers.edgesplit.problem import EdgeSplitProblem
from psl.schedulers.micro_batches import check_numbers, micro_batch_sizes

METHODS = ("exact", "alternating", "bisection", *BASELINES)

_BETTER = 1e-6  # relative; for less, no more micro-batches are made


def solve(
    profile: Profile,
    cluster: EdgeCluster,
    *,
    batch_size: int = 32,
    local_steps: int = 1,
    method: str = "exact",
    min_cut: ArrayLike = 1,
    max_steps: int | None = None,
    seed: int = 0,
    bound: bool = True,
    micro_batches: int | str | None = None,
    progress: bool = False,
) -> EdgeSplitPlan:
    """Choose every device's cut and bandwidth so that the slowest device of a round is as fast as possible.

    ================  ===============================================================================================
    "exact"           default [B]: the global optimum by policy iteration, in whole resource blocks too
    "alternating"     cuts for given bandwidth, bandwidth for given cuts, in turn, from equal bandwidth [P]; the optimum
                      only if every cut sends something, see below [B]
    "bisection"       the optimum by bisection and trying every cut: slow, the reference [B]
    "fedavg"          the whole model on every device, equal bandwidth [R]
    "sfl"             one cut for all, the best; equal bandwidth [R]
    "adaptive-equal"  each device's best cut at equal bandwidth [R]
    "common-optimal"  one cut for all, the best, with optimal bandwidth [R]
    ================  ===============================================================================================

    The alternation ends at the optimum if bandwidth is divisible at will and every cut has something to send.
    A measured profile without `param_bits` violates the second condition: its last cut sends nothing. There, in whole
    resource blocks, and if stopped early, the alternation can end at several times the optimum: `plan.gap` and the
    plan's repr say so, and method="exact" closes the gap.

    With resource blocks every method gives whole blocks; equal then means as even as possible.

    Args:
        profile: costs of the model's cuts, from operator counts or measured.
        cluster: the devices, their band and server.
        batch_size: b, samples per device and mini-batch.
        local_steps: H, mini-batches between two averages.
        method: see the table.
        min_cut: the shallowest cut allowed, by number or name, for all or one per device, such as the floor of a
            leakage budget; 1 keeps raw data on the devices. `plan.price` compares with the optimum without it.
        max_steps: stop the alternation after so many steps, to show what that costs; None goes on to its end.
        seed: taken as in every `solve`; no method here uses random numbers.
        bound: compute the optimum as `lower_bound`; False leaves it NaN and saves time.
        micro_batches: M: in every local step a device's mini-batch goes through its band and its share of the server
            in M micro-batches of ⌈b/M⌉ samples, the last with what is left; both directions share the band. None for
            the whole mini-batch at a time; "auto" tries M = 1, 2, 4, 8, 16, 32 and None. The plan is the optimum over
            cuts, bandwidths and how far downloads lag behind uploads; the bound is that of any order, over the
            numbers that were tried. With method "exact" only [B].
        progress: show a progress bar of improvements.

    Returns:
        The plan; `plan.gap` says how far above the optimum it is.

    Raises:
        ScenarioError: an argument is out of range.
        InfeasibleError: a device has too little memory for every cut allowed, or for FedAvg for the whole model; or
            there are fewer resource blocks than devices.

    Source: EdgeSplit (arXiv 2403.15815): every device its own depth and share of bandwidth [P]; see the marks above.
    """
    check_choice("method", method, METHODS)
    check_count("seed", seed, minimum=0)
    if max_steps is not None:
        max_steps = check_count("max_steps", max_steps, fix="give a number of steps of the alternation, or None")
        if method != "alternating":
            fix = "leave it out, or use method='alternating': only the alternation can be stopped early"
            raise expected("max_steps", f"None for method={method!r}", f"{max_steps}", fix)
    scenario = (profile, cluster, batch_size, local_steps, min_cut)
    if micro_batches is not None:
        if method != "exact":
            raise expected("method", "'exact' with micro-batches", repr(method), "leave it out")
        return _in_micro_batches(scenario, micro_batches, bound)
    history: list[dict[str, Any]] = []
    optimum = float("nan")
    with tqdm(desc=f"EdgeSplit {method}", unit=" improvements") if progress else nullcontext() as bar:

        def report(event: dict[str, Any]) -> None:
            history.append(event)
            if bar is not None:
                bar.update()
                bar.set_postfix(round_time=f"{event['round_time']:.4g} s")

        if method == "bisection":
            problem = EnumeratedProblem(*scenario)
            cuts, bandwidth = bisection(problem, report)
        else:
            problem = make_problem(*scenario)
            if method == "exact":
                cuts, bandwidth, optimum = best_split(problem, report)
            elif method == "alternating":
                cuts, bandwidth = alternate(problem, report, max_steps)
            else:
                cuts, bandwidth = baseline(problem, method)
                report({"step": 0, "round_time": float(problem.times(cuts, bandwidth).max())})
        if bound and method != "exact":
            # Bisection is the reference: its bound must not come from the same table.
            optimum = best_split(EdgeSplitProblem(*scenario) if method == "bisection" else problem)[2]
    free = float("nan")
    if bound and problem.floors.max() > 1:
        unlimited = (profile, cluster, batch_size, local_steps)
        free = best_split(make_problem(*unlimited) if method != "bisection" else EdgeSplitProblem(*unlimited))[2]
    reached = float(problem.times(cuts, bandwidth).max())
    return EdgeSplitPlan(
        profile,
        cluster,
        problem.batch_size,
        problem.local_steps,
        method,
        cuts,
        bandwidth,
        lower_bound=min(optimum, reached) if bound else float("nan"),  # the last bit must not put it above the plan
        history=tuple(history),
        min_cut=problem.min_cut if np.ndim(min_cut) == 0 else problem.floors,
        free_time=min(free, reached),
    )


def _in_micro_batches(scenario: tuple[Any, ...], micro_batches: int | str, bound: bool) -> EdgeSplitPlan:
    """Return the best plan over numbers of micro-batches, with the bound of all that were tried."""
    problem = make_problem(*scenario)
    profile, cluster, b, steps = problem.profile, problem.cluster, problem.batch_size, problem.local_steps
    min_cut = problem.min_cut if np.ndim(scenario[4]) == 0 else problem.floors
    decided: list[tuple[np.ndarray, np.ndarray, int | None]] = []
    limits = []
    if micro_batches == "auto":
        cuts, bandwidth, optimum = best_split(problem)
        decided.append((cuts, bandwidth, None))
        limits.append(optimum)
    for number in check_numbers(micro_batches, b):
        cuts, bandwidth, low = best_micro_batched(problem, micro_batch_sizes(b, number))
        decided.append((cuts, bandwidth, number))
        limits.append(low)
    plans = [
        EdgeSplitPlan(
            profile, cluster, b, steps, "exact", cuts, bandwidth, min_cut=min_cut, micro_batches=number
        )
        for cuts, bandwidth, number in decided
    ]  # fmt: skip
    history = [{"micro_batches": plan.micro_batches, "round_time": plan.round_time} for plan in plans]
    best = plans[0]
    for plan in plans:
        if plan.round_time < best.round_time * (1 - _BETTER):
            best = plan
    least = free = float("nan")
    if bound:
        least = min(*limits, best.round_time)
        if problem.floors.max() > 1:
            free = min(_in_micro_batches((*scenario[:4], 1), micro_batches, False).round_time, best.round_time)
    return dataclasses.replace(best, lower_bound=least, history=tuple(history), free_time=free)
