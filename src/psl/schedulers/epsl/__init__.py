"""EPSL in a wireless cell: where to cut, who gets which subchannel, at what power; and how long a round takes.

`solve` makes a plan with a certificate; `latency` evaluates any plan under any framework.
"""

from psl.schedulers.epsl.latency import FRAMEWORKS, RoundLatency, latency
from psl.schedulers.epsl.plan import EPSLPlan
from psl.schedulers.epsl.solve import METHODS, solve

__all__ = ["FRAMEWORKS", "METHODS", "EPSLPlan", "RoundLatency", "latency", "solve"]
