"""EdgeSplit in a heterogeneous cluster: how deep each device trains, and how much of the band it gets.

`solve` makes a plan, with the optimum beside it; `latency` evaluates any cuts and bandwidths.
"""

from psl.schedulers.edgesplit.latency import RoundLatency, latency
from psl.schedulers.edgesplit.plan import FRAMEWORKS, EdgeSplitPlan
from psl.schedulers.edgesplit.solve import METHODS, solve

__all__ = ["FRAMEWORKS", "METHODS", "EdgeSplitPlan", "RoundLatency", "latency", "solve"]
