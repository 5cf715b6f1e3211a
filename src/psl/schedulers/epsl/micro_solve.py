"""Plans in micro-batches: for each number of them the search and its bound, and the best of all.

Source: ours [B].
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from psl.networks.wireless_cell import WirelessCell
from psl.profiles import Profile
from psl.schedulers.epsl.lower_bound import lower_bound
from psl.schedulers.epsl.micro_bound import micro_bound
from psl.schedulers.epsl.micro_problem import MicroProblem
from psl.schedulers.epsl.micro_search import micro_search
from psl.schedulers.epsl.plan import EPSLPlan
from psl.schedulers.epsl.power import optimal_power
from psl.schedulers.epsl.problem import RoundProblem
from psl.schedulers.epsl.search import search
from psl.schedulers.micro_batches import micro_batch_sizes

_BETTER = 1e-6  # relative; for less, no more micro-batches are made

Scenario = tuple[Profile, WirelessCell, int, float, int | None, str, int]  # as `RoundProblem` takes them


def _tell(report: Callable[[dict[str, Any]], None], number: int, event: dict[str, Any]) -> None:
    report(event | {"micro_batches": number})


def plan_in_micro_batches(
    scenario: Scenario,
    numbers: Sequence[int],
    *,
    barriers: bool,
    duplex: str,
    seed: int,
    bound: bool,
    report: Callable[[dict[str, Any]], None] = lambda event: None,
) -> EPSLPlan:
    """Return the best plan over numbers of micro-batches, with the bound of all that were tried.

    Args:
        scenario: profile, cell, batch size, φ, the only cut or None, the rule, the shallowest cut.
        numbers: M, those to try.
        barriers: try the round with barriers as well.
        duplex: "full" or "half".
        seed: of the searches.
        bound: compute `lower_bound`.
        report: called with a dict per improvement: block, cut, micro_batches, round_time.

    Raises:
        InfeasibleError: no plan has a finite round.
    """
    profile, cell, batch_size, phi, _, _, floor = scenario
    problem, rng = RoundProblem(*scenario), np.random.default_rng(seed)
    cut, assignment, bounds = search(problem, rng)

    def plan(*decided: Any, **options: Any) -> EPSLPlan:
        given = {"duplex": duplex, "min_cut": floor} | options
        return EPSLPlan(profile, cell, batch_size, phi, "search", *decided, **given)

    plain = plan(cut, assignment, optimal_power(problem, cut, assignment))
    best, starts, problems = (plain if barriers else None), [plain.assignment], []
    for number in numbers:
        micro = MicroProblem(*scenario, sizes=micro_batch_sizes(batch_size, number), duplex=duplex)
        problems.append(micro)
        state = micro_search(
            micro, problem, starts, rng, partial(_tell, report, number), math.inf if best is None else best.round_time
        )
        found = [plan(plain.cut, plain.assignment, plain.power, micro_batches=number)]  # M = 1: no longer than `plain`
        if state is not None:
            found.append(plan(state.cut, state.assignment, state.density, micro_batches=number))
            starts = [plain.assignment, state.assignment]
        for each in found:
            if best is None or each.round_time < best.round_time * (1 - _BETTER):
                best = each
    assert best is not None
    least = free = math.nan
    if bound:
        known = best.round_time
        limits = [micro_bound(micro, known) for micro in problems]
        if barriers:
            limits.append(min(known, lower_bound(problem, max(known, plain.round_time), bounds)))
        least = min(limits)
        if floor > 1:
            unlimited = (*scenario[:4], None, scenario[5], 1)
            options = {"barriers": barriers, "duplex": duplex, "seed": seed, "bound": False}
            free = min(known, plan_in_micro_batches(unlimited, numbers, **options).round_time)
    decided = best.cut, best.assignment, best.power
    return plan(*decided, micro_batches=best.micro_batches, lower_bound=least, free_time=free)
