"""The training frameworks by name."""

from psl.training.frameworks.base import Framework, Setup
from psl.training.frameworks.edgesplit import EdgeSplit
from psl.training.frameworks.full import Centralised, FedAvg
from psl.training.frameworks.pipeline import Pipeline
from psl.training.frameworks.split_step import EPSL, PSL, SFL, SL

FRAMEWORKS: dict[str, type[Framework]] = {
    c.name: c for c in (Centralised, FedAvg, SL, SFL, PSL, EPSL, EdgeSplit, Pipeline)
}

__all__ = ["FRAMEWORKS", "Framework", "Setup"]
