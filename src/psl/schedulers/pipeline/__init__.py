"""Pipelined split learning over several hops: where to cut, which node runs what, how small the micro-batches are.

`solve` makes a plan and says whether it is optimal; `latency` evaluates any plan by the closed form; `psl.simulate`
shows what really happens.
"""

from psl.schedulers.pipeline.latency import PipelineLatency, latency
from psl.schedulers.pipeline.micro_batch import MicroBatchCurve, useful_micro_batches
from psl.schedulers.pipeline.pareto import pareto_front
from psl.schedulers.pipeline.placement import Placement, best_placement, relax
from psl.schedulers.pipeline.plan import PipelinePlan
from psl.schedulers.pipeline.problem import LINKS, OBJECTIVES, PipelineProblem
from psl.schedulers.pipeline.solve import METHODS, solve

__all__ = [
    "LINKS",
    "METHODS",
    "OBJECTIVES",
    "MicroBatchCurve",
    "PipelineLatency",
    "PipelinePlan",
    "PipelineProblem",
    "Placement",
    "best_placement",
    "latency",
    "pareto_front",
    "relax",
    "solve",
    "useful_micro_batches",
]
