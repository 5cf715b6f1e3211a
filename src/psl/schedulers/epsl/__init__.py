"""EPSL in a wireless cell: where to cut the model, which client gets which subchannel, and at what power.

`solve` makes a plan with a lower bound of the round time; `latency` evaluates any plan under any framework.
"""

from psl.schedulers.epsl.latency import FRAMEWORKS, RoundLatency, latency
from psl.schedulers.epsl.micro_latency import MicroBatchLatency
from psl.schedulers.epsl.plan import EPSLPlan
from psl.schedulers.epsl.solve import METHODS, solve, solve_u_shaped
from psl.schedulers.epsl.u_shape import UShapedLatency, UShapedPlan, u_shaped_latency

__all__ = [
    "FRAMEWORKS",
    "METHODS",
    "EPSLPlan",
    "MicroBatchLatency",
    "RoundLatency",
    "UShapedLatency",
    "UShapedPlan",
    "latency",
    "solve",
    "solve_u_shaped",
    "u_shaped_latency",
]
