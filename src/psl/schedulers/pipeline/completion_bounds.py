"""What remains from a label to the end of the model at least: the bounds that guide label setting (A*).

Shortest paths back from the end, once for each of a dozen limits of the occupancy, and for every set of hosts that the
label has used already.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from psl.schedulers.pipeline.checks import ROUNDING
from psl.schedulers.pipeline.problem import PipelineProblem, Tables
from psl.schedulers.pipeline.shortest_path import completions_by_hosts

# More entries and a lower end mean fewer labels and more time for the tables. In the trials of `label_setting` a tenth
# of the entries took half the time and a quarter more labels, ten times as many twice the time; 1.1 and 1.5 made little
# difference, 2 took half as many labels again.
_TABLE = 1e7  # entries of a table; it takes about 0.02 s
_ABOVE = 1.25  # the limits end where a plan would cost a quarter more than the bound


@dataclass(frozen=True)
class Goal:
    """What is minimised: S where `fill` is 1, plus a weight times θ, with no occupancy above the limit."""

    fill: int
    weight: float
    limit: float = np.inf


@dataclass(frozen=True)
class CompletionBounds:
    """For every vertex and set of used hosts, what remains at least, per class of the completion's interval.

    Source: ours [B].
    """

    goal: Goal
    fill: np.ndarray  # (2, classes, L+1, V, sets) S (0 if it does not matter) with interval at most limit k
    interval: np.ndarray  # (2, classes, L+1, V, sets) θ of completions in class k, at least; computed, then arrived
    known: int  # bit mask of the hosts that the sets are made of; a label may remember more

    @classmethod
    def of(
        cls,
        problem: PipelineProblem,
        tables: Tables,
        stage: np.ndarray,
        linear: np.ndarray,
        hop_linear: np.ndarray,
        goal: Goal,
        hosts: tuple[int, ...],
        bound: float,
        classes: int,
    ) -> Self:
        """Return the bounds for one goal.

        Args:
            problem, tables: the problem at one micro-batch size.
            stage, linear: (L+1, L+1, V) occupancy and linear cost of a stage, inf for stages that no path may have.
            hop_linear: (L+1, E) linear cost of a hop; linear costs may contain `Prices`.
            goal: what is minimised.
            hosts: nodes that may host one stage only; the first of them are taken, as many as the tables may be large.
            bound: a lower bound of the goal, with all prices.
            classes: number of classes of the completion's interval.
        """
        hosts = hosts[: max(int(np.log2(_TABLE / stage.size)), 0)]

        def least_sum(limit: float) -> np.ndarray:
            allowed = np.where(stage <= limit, linear, np.inf)
            hop = np.where(tables.hop_occupancy <= limit, hop_linear, np.inf)
            return completions_by_hosts(problem, allowed, hop, hosts)

        least = completions_by_hosts(problem, stage, tables.hop_occupancy, hosts, np.maximum)
        if not goal.fill:
            fill, floors = [np.where(np.isfinite(least), 0.0, np.inf)], [0.0]
        elif not goal.weight:
            fill, floors = [least_sum(goal.limit)], [0.0]
        else:
            fill, floors = [least_sum(np.inf)], [0.0]
            low = float(least[1, 0, problem.source, 0])
            high = (_ABOVE * bound - float(fill[0][1, 0, problem.source, 0])) / goal.weight
            if np.isfinite(low):
                limits = np.linspace(low, max(high, low), classes - 1).tolist()
                fill, floors = [*(least_sum(limit * (1 + ROUNDING)) for limit in limits), *fill], [0.0, *limits]
        floor = np.array(floors)[:, None, None, None]
        return cls(goal, np.stack(fill, axis=1), np.maximum(least[:, None], floor), (1 << len(hosts)) - 1)

    def values(
        self,
        arrived: int,
        cut: int | slice,
        node: int | np.ndarray,
        hosts: int,
        fill: np.ndarray,
        interval: float | np.ndarray,
    ) -> np.ndarray:
        """Return lower bounds of the goal for labels at vertices, s.

        Args:
            arrived: 1 for labels that a hop has brought, 0 for computed ones.
            cut, node: their vertices.
            hosts: bit mask of the hosts they have used.
            fill, interval: their own fill times and intervals, s; with prices, fill times less what they get back.
        """
        known = hosts & self.known
        remaining = self.fill[arrived][:, cut, node, known]  # (classes, labels)
        if not self.goal.weight:
            return fill + remaining.min(axis=0)
        worst = np.maximum(interval, self.interval[arrived][:, cut, node, known])
        return fill + (remaining + self.goal.weight * worst).min(axis=0)
