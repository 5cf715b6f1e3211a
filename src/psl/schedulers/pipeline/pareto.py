"""Fill time against interval: the efficient paths at one micro-batch size."""

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
