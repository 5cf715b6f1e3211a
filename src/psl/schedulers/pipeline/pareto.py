"""Fill time against interval: the Pareto front of paths, and the search that walks only the part that can win."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from psl.errors import check_choice
from psl.schedulers.pipeline.problem import OBJECTIVES, PipelineProblem, Tables
from psl.schedulers.pipeline.shortest_path import Path, least_bottleneck, least_sum, shortest_path


@dataclass(frozen=True)
class Walk:
    """The best path of the state graph and the steps that led to it.

    A path may book a node or a link twice here, as the published search does.
    """

    path: Path | None  # None: stopped because nothing below the cutoff exists
    value: float  # of the objective, or a lower bound of it that is at least the cutoff
    least_interval: float  # θ_min
    steps: tuple[dict, ...]  # one dict per shortest path: limit, fill_time, interval, total


def walk(problem: PipelineProblem, tables: Tables, objective: str = "time", cutoff: float = np.inf) -> Walk:
    """Minimise T_f + (M − 1) T_i, or T_i alone, over the paths of the state graph; exact.

    One minimax pass gives θ_min; the least-sum path at θ_min is the first incumbent. Then least-sum paths with all
    edges, with edges of occupancy below min(θ_k, (best − S_k)/(M − 1)), and so on: since S_k never falls again, a path
    with a larger occupancy cannot win.

    Args:
        problem, tables: the problem at one micro-batch size.
        objective: "time" or "interval" (ties: the shorter fill time).
        cutoff: stop as soon as nothing below it can exist.

    Raises:
        InfeasibleError: no path leads through the model.

    Source: pipelined split learning (arXiv 2505.04368): bottleneck-aware shortest path [P]; this search [B].
    """
    check_choice("objective", objective, OBJECTIVES)
    weight = tables.n_micro_batches - 1
    least = float(least_bottleneck(problem, tables).arrived[0, problem.source])
    if not np.isfinite(least):
        raise problem.infeasible()
    steps: list[dict] = []

    def step(limit: float) -> tuple[float, float, Path | None]:
        path = shortest_path(problem, found := least_sum(problem, tables, limit))
        if path is None:
            return np.inf, np.inf, None
        fill = float(found.arrived[0, problem.source])
        interval = tables.interval(*path)
        total = fill + weight * interval
        steps.append({"limit": float(limit), "fill_time": fill, "interval": interval, "total": total})
        return fill, interval, path

    if objective == "interval":
        if least >= cutoff:
            return Walk(None, least, least, ())
        _, interval, path = step(least)
        return Walk(path, interval, least, tuple(steps))

    fill, interval, path = step(np.inf)  # before the one at θ_min: alone it may already prove the cutoff
    if fill + weight * least >= cutoff:
        return Walk(None, fill + weight * least, least, tuple(steps))
    best, chosen = fill + weight * interval, path
    if interval > least and weight:
        first, limit = step(least), interval
        if first[0] + weight * first[1] < best:
            best, chosen = first[0] + weight * first[1], first[2]
        while (limit := min(limit, (min(best, cutoff) - fill) / weight)) > least:
            fill, limit, path = step(np.nextafter(limit, 0.0))
            if path is None or fill >= first[0]:
                break
            if fill + weight * limit < best:
                best, chosen = fill + weight * limit, path
    if best >= cutoff:
        return Walk(None, cutoff, least, tuple(steps))
    return Walk(chosen, best, least, tuple(steps))


def pareto_front(problem: PipelineProblem, micro_batch: int) -> pd.DataFrame:
    """Return all efficient pairs of fill time and interval at one micro-batch size, s; fill times rise.

    Paths may book a node or a link twice, as in `walk`.

    Args:
        problem: the problem.
        micro_batch: b, samples per micro-batch.

    Raises:
        InfeasibleError: no path leads through the model.

    Source: ours [B].
    """
    tables = problem.tables(micro_batch)
    points, limit = [], np.inf
    while True:
        path = shortest_path(problem, found := least_sum(problem, tables, limit))
        if path is None:
            break
        interval = tables.interval(*path)
        fill = float(found.arrived[0, problem.source])
        if points and points[-1][0] >= fill:
            points.pop()  # the same fill time at a smaller interval
        points.append((fill, interval, len(path[0]), len(path[1])))
        limit = np.nextafter(interval, 0.0)
    if not points:
        raise problem.infeasible()
    frame = pd.DataFrame(points, columns=["fill_time", "interval", "stages", "hops"])
    frame["total"] = frame["fill_time"] + (tables.n_micro_batches - 1) * frame["interval"]
    return frame
