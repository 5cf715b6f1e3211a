"""`solve`: checks what it is given, plans by the method asked for, and bounds the round time from below."""

import dataclasses
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from psl.errors import check_choice, check_count, expected
from psl.networks.wireless_cell import WirelessCell
from psl.profiles import Profile
from psl.schedulers.checks import check_min_cut
from psl.schedulers.epsl.baselines import BASELINES, baseline
from psl.schedulers.epsl.bcd import block_coordinate_descent
from psl.schedulers.epsl.checks import check_batch, check_cut, check_linearise, check_micro_batched, check_profile
from psl.schedulers.epsl.lower_bound import lower_bound
from psl.schedulers.epsl.micro_solve import plan_in_micro_batches
from psl.schedulers.epsl.plan import EPSLPlan
from psl.schedulers.epsl.power import optimal_power, round_time
from psl.schedulers.epsl.problem import RoundProblem, no_finite_plan
from psl.schedulers.epsl.search import RESTARTS, search
from psl.schedulers.epsl.u_shape import UShapedPlan, front, front_cell, u_shaped
from psl.schedulers.micro_batches import check_duplex, check_numbers

METHODS = ("search", "bcd", *BASELINES)

_FOREVER = 1e100  # s; slower rounds need rates and powers outside the range of floating point


@threadpool_limits.wrap(limits=1, user_api="blas")  # matrices are small: threads only wait for each other
def solve(
    profile: Profile,
    cell: WirelessCell,
    *,
    batch_size: int = 64,
    phi: float = 0.5,
    method: str = "search",
    cut: int | str | None = None,
    min_cut: int | str = 1,
    seed: int = 0,
    restarts: int = RESTARTS,
    bound: bool = True,
    linearise: str = "representative",
    micro_batches: int | str | None = None,
    duplex: str = "full",
    progress: bool = False,
) -> EPSLPlan:
    """Choose cut, subchannels and power that make a round of EPSL short, and bound how short it could be.

    ===============  ================================================================================================
    "search"         default [B]: all cuts that could be best, local search over moves and swaps of subchannels
    "bcd"            block-coordinate descent: greedy subchannels, optimal power, best cut, in turn [P, R]
    "random"         random cut, subchannels round-robin, uniform power [R]
    "power-only"     "random" with optimal power [R]
    "cut-only"       "random" with the best cut [R]
    "channels-only"  "random" with greedy subchannels [R]
    ===============  ================================================================================================

    Args:
        profile: costs of the model's cuts, from operator counts or measured.
        cell: the wireless cell.
        batch_size: b, samples per client and round.
        phi: φ, share of the mini-batch's slots whose last-layer gradients are aggregated, 0..1; 0 is PSL.
        method: see the table.
        cut: fix the cut, by number or name; None considers all of min_cut..L-1 (raw data stay on the clients, the last
            layer on the server).
        min_cut: the shallowest cut allowed, by number or name, such as the floor of a leakage budget. The bound is
            then that of the plans allowed, and `plan.price` compares with the shortest round without it.
        seed: of random cuts and of the search's random swaps; the same seed gives the same plan.
        restarts: of the search with barriers from random swaps of subchannels, per cut, in cells of at most 10 clients.
            More take longer and may find a shorter round: at N = 5, K = 20 with 150 by some thousandths of a per cent.
        bound: compute `lower_bound`; False leaves it NaN and saves time.
        linearise: what a round does with the last-layer gradients: "representative" aggregates them, "sampled" draws as
            many rows [B]; see `latency`.
        micro_batches: M: each client's mini-batch goes through the cell in M micro-batches of ⌈b/M⌉ samples, the last
            with what is left, without barriers between the phases; None for the whole mini-batch with barriers, as in
            the paper; "auto" tries barriers and M = 1, 2, 4, 8, 16, 32, and is never worse than any of
            them. With φ = 0 or 1 and method "search" only [B]. The bound is that of the numbers that were tried.
        duplex: "full", or "half" if a client's uploads and downloads share its subchannels; micro-batches only.
        progress: show a bar that counts improvements.

    Returns:
        The plan; `plan.gap` says how far from the optimum it can be at most.

    Raises:
        ScenarioError: an argument is out of range.
        InfeasibleError: some client has practically no rate, so no plan has a finite round; or `min_cut` is the output.

    Source: EPSL (arXiv 2303.15991): joint optimisation of cut, subchannels and power [P]; see the marks above.
    """
    check_choice("method", method, METHODS)
    seed, restarts = check_count("seed", seed, minimum=0), check_count("restarts", restarts, minimum=0)
    check_profile(profile, cell)
    batch_size, phi = check_batch(batch_size, phi)
    if profile.n_units < 2:
        raise expected("profile", "at least 2 units, one on each side", profile.n_units, "split a deeper model")
    only = None if cut is None else check_cut(profile, cut)
    floor = check_min_cut(profile, min_cut, profile.n_units - 1, "so that the last layer stays on the server")
    if only is not None and only < floor:
        raise expected("cut", f"at least min_cut = {floor}", only, "leave one of them out")
    rule = check_linearise(linearise)
    duplex = check_duplex(duplex)
    numbers = check_numbers(micro_batches, batch_size)
    if numbers:
        check_micro_batched(phi, rule)
        if method != "search":
            raise expected("method", "'search' with micro-batches", repr(method), "leave it out")
    scenario = (profile, cell, batch_size, phi, only, rule, floor)
    problem = RoundProblem(*scenario)
    if not min(map(problem.reach_bound, problem.cuts)) < _FOREVER:
        raise no_finite_plan()
    history: list[dict[str, Any]] = []
    rng, bounds, least = np.random.default_rng(seed), {}, float("nan")
    with tqdm(desc=f"EPSL {method}", unit=" improvements", disable=not progress) as bar:

        def report(event: dict[str, Any]) -> None:
            history.append(event)
            bar.update()
            bar.set_postfix(cut=event["cut"], round_time=f"{event['round_time']:.4g} s")

        if numbers:
            options = {"duplex": duplex, "seed": seed, "bound": bound, "report": report}
            plan = plan_in_micro_batches(scenario, numbers, barriers=micro_batches == "auto", **options)
            return dataclasses.replace(plan, history=tuple(history))
        if method == "search":
            chosen, assignment, bounds = search(problem, rng, report, restarts)
            power = optimal_power(problem, chosen, assignment)
        elif method == "bcd":
            chosen, assignment, power = block_coordinate_descent(problem, report)
        else:
            chosen, assignment, power = baseline(problem, method, rng)
            time = round_time(problem, chosen, assignment, power)
            report({"block": method, "cut": chosen, "round_time": time})
        if bound:
            known = round_time(problem, chosen, assignment, power)
            if method != "search":
                # The bound is tight only if the known round time is short: search for a shorter one.
                other, other_assignment, bounds = search(problem, np.random.default_rng(seed))
                known = min(known, round_time(problem, other, other_assignment))
            least = lower_bound(problem, known, bounds)
        free = float("nan")
        if bound and floor > 1:
            free = round_time(problem, chosen, assignment, power)
            shallow, given, _ = search(
                RoundProblem(profile, cell, batch_size, phi, None, rule), np.random.default_rng(seed)
            )
            free = min(free, round_time(problem, shallow, given))
    return EPSLPlan(
        profile,
        cell,
        batch_size,
        phi,
        method,
        chosen,
        assignment,
        power,
        lower_bound=least,
        history=tuple(history),
        min_cut=floor,
        free_time=free,
        linearise=linearise,
        duplex=duplex,
    )


def solve_u_shaped(profile: Profile, cell: WirelessCell, *, tail_cut: int | str, **options: Any) -> UShapedPlan:
    """Plan a U-shaped round of PSL: the server computes from the cut that is chosen to `tail_cut`, which is given.

    The plan is that of PSL for the units up to `tail_cut`, with all power used; `plan.gap` says how far from the
    optimum over first cuts, subchannels and powers it can be at most, the tail's time included.

    Args:
        profile: costs of the whole model's cuts.
        cell: the wireless cell.
        tail_cut: k, number or name of the second cut, 2..L-1; the layers behind it and the labels stay on the clients.
        options: of `solve`, but for `phi`, which is 0: the server has no last layer whose gradients it could aggregate.

    Raises:
        ScenarioError, InfeasibleError: as `solve`.

    Source: ours [B], for the round of `u_shaped_latency` [R].
    """
    check_profile(profile, cell)
    k = check_cut(profile, tail_cut)
    if k < 2:
        raise expected("tail_cut", "2 or more, so that the server has a layer", k, "choose a later cut")
    if options.pop("phi", 0) != 0:
        raise expected("phi", "0 for a U-shaped split", "another", "leave it out: nothing can be aggregated")
    if options.get("micro_batches") is not None:
        got, fix = "another", "leave it out: three phases of a U-shaped round are not modelled in micro-batches"
        raise expected("micro_batches", "None for a U-shaped split", got, fix)
    return u_shaped(solve(front(profile, k), front_cell(cell, k), phi=0.0, **options), profile, cell, k)
