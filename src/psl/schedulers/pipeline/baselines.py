"""Baselines that isolate one decision each; what they do not decide is still chosen optimally, by the same search.

Source: pipelined split learning (arXiv 2505.04368); baselines [R].
"""

import copy
from collections.abc import Callable

import numpy as np

from psl.errors import InfeasibleError, expected
from psl.schedulers.pipeline.choice import Choice
from psl.schedulers.pipeline.problem import PipelineProblem

#: Solves a placement problem with a micro-batch size given or free.
Solver = Callable[[PipelineProblem], Choice]

_TRIES = 200  # draws, before a random baseline gives up finding one that fits


def restricted(problem: PipelineProblem, allowed: np.ndarray) -> PipelineProblem:
    """Return the problem with only some of its stages: allowed (L+1, L+1, N), units i+1..j on node n."""
    other = copy.copy(problem)
    other.fits = problem.fits & allowed
    other.__dict__.pop("_stage_work", None)  # computed from `fits`
    other._last = None
    other.shortage = lambda: None  # its reasons take for granted that every part of the model is allowed
    return other


def two_tier(problem: PipelineProblem, solve: Solver) -> Choice:
    """Return the best split between the source and one server; nodes between them may relay.

    The whole model on the source counts as well.
    """
    allowed = np.zeros_like(problem.fits)
    allowed[0, :, problem.source] = True
    servers = np.arange(problem.n_nodes) != problem.source
    allowed[1:, -1, servers] = True
    try:
        return solve(restricted(problem, allowed))
    except InfeasibleError as cause:
        raise expected(
            "method 'two-tier'", "a split between the source and one server that fits into their memory", "none",
            "give them more memory, or let method='exact' use more servers", InfeasibleError,
        ) from cause  # fmt: skip


def random_cuts(problem: PipelineProblem, solve: Solver, rng: np.random.Generator) -> Choice:
    """Return the best placement of a random division of the model into a random number of stages, two at least."""
    most = min(problem.n_units, int(problem.network.computes.sum()))

    def draw() -> np.ndarray:
        n_stages = int(rng.integers(min(2, most), most + 1))
        inner = np.sort(rng.choice(np.arange(1, problem.n_units), n_stages - 1, replace=False))
        allowed = np.zeros_like(problem.fits)
        allowed[[0, *inner], [*inner, problem.n_units]] = True
        return allowed

    return _first_that_fits(problem, solve, draw, "random-cuts")


def random_placement(problem: PipelineProblem, solve: Solver, optimum: Choice, rng: np.random.Generator) -> Choice:
    """Return the optimum's cuts on random distinct servers with memory for them, reached over the best ways."""
    spans = [(i, j) for _, i, j in optimum.stages]

    def draw() -> np.ndarray | None:
        allowed, free = np.zeros_like(problem.fits), np.ones(problem.n_nodes, dtype=bool)
        for i, j in spans:
            hosts = np.flatnonzero(free & problem.fits[i, j]) if i else np.array([problem.source])
            if not hosts.size:
                return None
            n = rng.choice(hosts)
            allowed[i, j, n], free[n] = True, False
            free[problem.source] = False
        return allowed

    return _first_that_fits(problem, solve, draw, "random-placement")


def _first_that_fits(problem: PipelineProblem, solve: Solver, draw: Callable, method: str) -> Choice:
    for _ in range(_TRIES):
        allowed = draw()
        if allowed is None:
            continue
        try:
            return solve(restricted(problem, allowed))
        except InfeasibleError:
            continue
    raise expected(
        f"method {method!r}", "a random draw that the network can host", f"none in {_TRIES}",
        "give nodes more memory, add links, or take another method", InfeasibleError,
    )  # fmt: skip
