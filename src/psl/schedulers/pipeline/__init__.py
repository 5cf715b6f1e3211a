"""Pipelined split learning over several hops: where to cut, which node runs what, how small the micro-batches are.

`solve` makes a plan and says whether it is optimal; `latency` times any plan by the closed form; `psl.simulate`
executes it event by event.
"""

from psl.schedulers.pipeline.checks import LINKS, OBJECTIVES
from psl.schedulers.pipeline.latency import RoundLatency, latency
from psl.schedulers.pipeline.micro_batch import MicroBatchCurve, useful_micro_batches
from psl.schedulers.pipeline.pareto import pareto_front
from psl.schedulers.pipeline.placement import Placement, best_placement, placement_below, relax
from psl.schedulers.pipeline.plan import PipelinePlan
from psl.schedulers.pipeline.problem import PipelineProblem
from psl.schedulers.pipeline.solve import METHODS, solve

__all__ = [
    "LINKS",
    "METHODS",
    "OBJECTIVES",
    "MicroBatchCurve",
    "PipelinePlan",
    "PipelineProblem",
    "Placement",
    "RoundLatency",
    "best_placement",
    "latency",
    "pareto_front",
    "placement_below",
    "relax",
    "solve",
    "useful_micro_batches",
]
