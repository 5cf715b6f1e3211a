"""The training frameworks by name."""

from psl.training.frameworks.base import Framework, Setup
from psl.training.frameworks.full import Centralised, FedAvg
from psl.training.frameworks.split import EPSL, PSL, SFL, SL

FRAMEWORKS: dict[str, type[Framework]] = {c.name: c for c in (Centralised, FedAvg, SL, SFL, PSL, EPSL)}

__all__ = ["FRAMEWORKS", "Framework", "Setup"]
