"""Baselines that isolate one decision each; what they do not decide is still chosen optimally, by the same search.

Source: pipelined split learning (arXiv 2505.04368); baselines [R].
"""

from collections.abc import Callable

import numpy as np

from psl.errors import InfeasibleError, expected
from psl.schedulers.pipeline.placement import Placement
from psl.schedulers.pipeline.problem import PipelineProblem

#: Solves a placement problem with a micro-batch size given or free.
Solver = Callable[[PipelineProblem], Placement]

_TRIES = 200  # draws, before a random baseline gives up finding one that fits


def two_tier(problem: PipelineProblem, solve: Solver) -> Placement:
    """Return the best split between the source and one server; nodes between them may relay.

    The whole model on the source counts as well.

    Args:
        problem: the placement problem.
        solve: solves it.

    Raises:
        InfeasibleError: no such split fits into memory.
    """
    allowed = np.zeros_like(problem.fits)
    allowed[0, :, problem.source] = True
    servers = np.arange(problem.n_nodes) != problem.source
    allowed[1:, -1, servers] = True
    try:
        return solve(problem.restricted(allowed))
    except InfeasibleError as cause:
        want = "a split between the source and one server that fits into their memory"
        fix = "give them more memory, or let method='exact' use more servers"
        raise expected("method 'two-tier'", want, "none", fix, InfeasibleError) from cause


def random_cuts(problem: PipelineProblem, solve: Solver, rng: np.random.Generator) -> Placement:
    """Return the best placement of a random division of the model into a random number of stages, two at least.

    Args:
        problem, solve: as for `two_tier`.
        rng: draws the divisions.

    Raises:
        InfeasibleError: no division that was drawn fits into memory.
    """
    most = min(problem.n_units, int(problem.network.computes.sum()))

    def draw() -> np.ndarray:
        n_stages = int(rng.integers(min(2, most), most + 1))
        inner = np.sort(rng.choice(np.arange(1, problem.n_units), n_stages - 1, replace=False))
        allowed = np.zeros_like(problem.fits)
        allowed[[0, *inner], [*inner, problem.n_units]] = True
        return allowed

    return _first_that_fits(problem, solve, draw, "random-cuts")


def random_placement(
    problem: PipelineProblem, solve: Solver, optimum: Placement, rng: np.random.Generator
) -> Placement:
    """Return the optimum's cuts on random distinct servers with memory for them; the links between them are the best.

    Args:
        problem, solve: as for `two_tier`.
        optimum: gives the cuts.
        rng: draws the servers.

    Raises:
        InfeasibleError: no servers that were drawn can be joined.
    """

    def draw() -> np.ndarray | None:
        allowed, free = np.zeros_like(problem.fits), np.ones(problem.n_nodes, dtype=bool)
        for _, i, j in optimum.path.stages:
            hosts = np.flatnonzero(free & problem.fits[i, j]) if i else np.array([problem.source])
            if not hosts.size:
                return None
            n = rng.choice(hosts)
            allowed[i, j, n], free[n] = True, False
            free[problem.source] = False
        return allowed

    return _first_that_fits(problem, solve, draw, "random-placement")


def _first_that_fits(
    problem: PipelineProblem, solve: Solver, draw: Callable[[], np.ndarray | None], method: str
) -> Placement:
    for _ in range(_TRIES):
        allowed = draw()
        if allowed is None:
            continue
        try:
            return solve(problem.restricted(allowed))
        except InfeasibleError:
            continue
    want, got = "a random draw that the network can host", f"none in {_TRIES}"
    fix = "give nodes more memory, add links, or take another method"
    raise expected(f"method {method!r}", want, got, fix, InfeasibleError)
