"""The best stages and hops for one micro-batch size: the shortest path, repaired where it books something twice."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from psl.errors import InfeasibleError, check_choice, check_count, expected
from psl.schedulers.pipeline.label_setting import MAX_LABELS, PlacementSearch
from psl.schedulers.pipeline.latency import Hops, Stages, assess
from psl.schedulers.pipeline.pareto import walk
from psl.schedulers.pipeline.problem import LINKS, OBJECTIVES, PipelineProblem
from psl.schedulers.pipeline.shortest_path import Path


@dataclass(frozen=True)
class Placement:
    """Stages and hops with their time at one micro-batch size, and what is known about better ones."""

    stages: Stages  # ((node, i, j), ...)
    hops: Hops  # ((cut, u, v), ...)
    micro_batch: int
    objective: str  # "time" or "interval"
    fill_time: float  # T_f, s
    interval: float  # T_i, s
    total: float  # T, s
    lower_bound: float  # s, of the objective: no allowed placement has less
    exact: bool  # whether this one is proven best
    steps: tuple[dict, ...] = ()  # the walk along the Pareto front, one dict per shortest path
    labels: int = 0  # labels the repair made; 0 where the shortest path was clean

    @property
    def value(self) -> float:
        """What was minimised: `total`, or `interval`; s."""
        return self.total if self.objective == "time" else self.interval

    @property
    def repeated_nodes(self) -> tuple:
        """Nodes that host more than one stage."""
        return tuple(node for node, count in Counter(node for node, _, _ in self.stages).items() if count > 1)

    @property
    def repeated_links(self) -> tuple:
        """Undirected links (u, v) that serve more than one hop."""
        used = Counter(tuple(sorted((u, v), key=str)) for _, u, v in self.hops)
        return tuple(link for link, count in used.items() if count > 1)

    @property
    def repeats(self) -> bool:
        """Whether a node or a link is booked twice."""
        return bool(self.repeated_nodes or self.repeated_links)


def relax(
    problem: PipelineProblem, micro_batch: int, objective: str = "time", *, cutoff: float = np.inf
) -> Placement | None:
    """Return the plain shortest path, which may book a node or a link twice; None if nothing is below the cutoff.

    Raises:
        InfeasibleError: no path leads through the model.

    Source: pipelined split learning (arXiv 2505.04368): bottleneck-aware shortest path [P]; the faster search [B].
    """
    check_choice("objective", objective, OBJECTIVES)
    tables = problem.tables(micro_batch)
    walked = walk(problem, tables, objective, cutoff)
    if walked.path is None:
        return None
    return _placement(problem, tables.micro_batch, walked.path, objective, "separate", walked.value, True, walked.steps)


def best_placement(
    problem: PipelineProblem,
    micro_batch: int,
    *,
    links: str = "once",
    objective: str = "time",
    cutoff: float = np.inf,
    max_labels: int = MAX_LABELS,
) -> Placement | None:
    """Return the best placement with one stage per node at most, at one micro-batch size.

    The plain shortest path is optimal where it books nothing twice. Elsewhere labels that remember what was booked are
    set until one is proven best.

    Args:
        problem: the problem.
        micro_batch: b, samples per micro-batch.
        links: "once": an undirected link serves one hop at most; "shared": the hops over a link add up in its
            occupancy, per direction in full duplex; "separate": every hop counts by itself, as published.
        objective: "time", T, or "interval", T_i (ties: the shorter fill time, as far as found).
        cutoff: only placements below it are wanted.
        max_labels: give up proving beyond so many labels: the result then has `exact=False` and may be at or above the
            cutoff.

    Returns:
        The placement, or None if it is proven that nothing is below the cutoff.

    Raises:
        ScenarioError: an argument is out of range.
        InfeasibleError: there is no placement.

    Source: pipelined split learning (arXiv 2505.04368): splitting and placement by a shortest path [P]; the repair [B].
    """
    check_choice("links", links, LINKS)
    max_labels = check_count("max_labels", max_labels)
    relaxed = relax(problem, micro_batch, objective, cutoff=cutoff)
    if relaxed is None:
        return None
    bound, steps = relaxed.value, relaxed.steps
    if not relaxed.repeated_nodes and not (relaxed.repeated_links and links == "once"):
        path = _by_places(problem, relaxed)
        same = _placement(problem, relaxed.micro_batch, path, objective, links, bound, True, steps)
        if same.value <= bound * (1 + 1e-12):
            return same
    if short := problem.shortage():
        raise short
    search = PlacementSearch(problem, problem.tables(micro_batch), links, max_labels)
    path, below, exact = search.run(objective, cutoff, _by_places(problem, relaxed), relaxed.value)
    if path is None and exact and cutoff < np.inf:
        return None
    if path is None and exact:
        raise problem.infeasible(links)
    if path is None:
        got = f"none within max_labels = {max_labels}, though nothing rules one out"
        raise expected("network", "a placement with one stage per node", got, "raise max_labels", InfeasibleError)
    bound = max(bound, below)
    return _placement(problem, relaxed.micro_batch, path, objective, links, bound, exact, steps, search.made)


def _by_places(problem: PipelineProblem, placement: Placement) -> Path:
    network = problem.network
    stages = [(network.index[node], i, j) for node, i, j in placement.stages]
    return stages, [(cut, network.edge_index[u, v]) for cut, u, v in placement.hops]


def _placement(problem, b, path, objective, links, bound, exact, steps, labels=0) -> Placement:
    network = problem.network
    stages = tuple((network.nodes[n], i, j) for n, i, j in path[0])
    hops = tuple((cut, *network.edges[e]) for cut, e in path[1])
    terms = assess(problem.profile, network, stages, hops, b, problem.batch_size, links)
    value = terms.total if objective == "time" else terms.interval
    # Sums in another order: the last bit must not put the bound above the plan.
    return Placement(
        stages,
        hops,
        b,
        objective,
        terms.fill_time,
        terms.interval,
        terms.total,
        min(bound, value),
        exact,
        steps,
        labels,
    )
