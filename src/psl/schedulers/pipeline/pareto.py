"""Fill time against interval: the efficient paths at one micro-batch size."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from psl.schedulers.pipeline.latency import round_time
from psl.schedulers.pipeline.path import Path
from psl.schedulers.pipeline.problem import PipelineProblem, Tables
from psl.schedulers.pipeline.shortest_path import least_sum, shortest_path


class Point(NamedTuple):
    """A path with its fill time and interval; it may come back to a node or a link."""

    fill_time: float  # s
    interval: float  # s
    total: float  # s
    path: Path


def least_fill_time(problem: PipelineProblem, tables: Tables, limit: float = np.inf) -> Point | None:
    """Return the path of least fill time whose occupancies are at most `limit`, or None if there is none."""
    found = least_sum(problem, tables, limit)
    path = shortest_path(problem, found)
    if path is None:
        return None
    fill, interval = float(found.arrived[0, problem.source]), tables.interval(path)
    return Point(fill, interval, round_time(fill, interval, tables.n_micro_batches), path)


def walk(step: Callable[[float], Point | None], least: float, more: int, cutoff: float) -> Point | None:
    """Return the point of least T = S + (M − 1) θ, or None if nothing is below the cutoff.

    Args:
        step: gives the point of least fill time with occupancies up to a limit.
        least: θ_min, s.
        more: M − 1.
        cutoff: s.
    """
    last = step(np.inf)  # before the one at θ_min: alone it may already show that nothing is below the cutoff
    if last is None or last.fill_time + more * least >= cutoff:
        return None
    best = last
    if last.interval > least and more:
        end = step(least)
        if end is not None and end.total < best.total:
            best = end
        limit = last.interval
        while True:
            limit = min(limit, (min(best.total, cutoff) - last.fill_time) / more)
            if limit <= least:
                break
            last = step(np.nextafter(limit, 0.0))
            if last is None or (end is not None and last.fill_time >= end.fill_time):
                break
            limit = last.interval
            if last.total < best.total:
                best = last
    return best if best.total < cutoff else None


def least_total(problem: PipelineProblem, tables: Tables, least: float) -> Point | None:
    """Return the path of least T = S + (M − 1) θ, which may come back to nodes and links, or None if there is none.

    Args:
        problem, tables: the problem at one micro-batch size.
        least: θ_min, s.
    """
    return walk(lambda limit: least_fill_time(problem, tables, limit), least, tables.n_micro_batches - 1, np.inf)


def pareto_front(problem: PipelineProblem, micro_batch: int) -> pd.DataFrame:
    """Return all efficient pairs of fill time and interval at one micro-batch size, s; fill times rise.

    The paths may come back to a node or a link, as in `relax`.

    Args:
        problem: the problem.
        micro_batch: m, samples per micro-batch.

    Returns:
        One row per pair: fill_time, interval, stages and hops (how many), total.

    Raises:
        InfeasibleError: no path leads through the model.

    Source: ours [B].
    """
    tables = problem.tables(micro_batch)
    points: list[Point] = []
    point = least_fill_time(problem, tables)
    while point is not None:
        if points and points[-1].fill_time >= point.fill_time:
            points.pop()  # the same fill time at a smaller interval
        points.append(point)
        point = least_fill_time(problem, tables, np.nextafter(point.interval, 0.0))
    if not points:
        raise problem.infeasible()
    rows = [(p.fill_time, p.interval, len(p.path.stages), len(p.path.hops), p.total) for p in points]
    return pd.DataFrame(rows, columns=["fill_time", "interval", "stages", "hops", "total"])
