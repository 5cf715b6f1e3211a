"""`solve`: every device's cut and bandwidth by one of the methods, with the optimum beside it."""

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
from psl.schedulers.edgesplit.plan import EdgeSplitPlan
from psl.schedulers.edgesplit.policy_iteration import best_split
from psl.schedulers.edgesplit.problem import EdgeSplitProblem

METHODS = ("exact", "alternating", "bisection", *BASELINES)


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
