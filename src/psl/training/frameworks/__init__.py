"""The training frameworks by name."""

import numpy as np
from torch import nn

from psl.errors import check_choice
from psl.training.config import TrainingConfig
from psl.training.frameworks.base import Framework
from psl.training.frameworks.centralised import Centralised
from psl.training.frameworks.edgesplit import EdgeSplit
from psl.training.frameworks.epsl import EPSL
from psl.training.frameworks.fedavg import FedAvg
from psl.training.frameworks.pipeline import Pipeline
from psl.training.frameworks.psl import PSL
from psl.training.frameworks.sfl import SFL
from psl.training.frameworks.sl import SL
from psl.training.frameworks.u_shape import U_SHAPED

FRAMEWORKS: dict[str, type[Framework]] = {
    c.name: c for c in (Centralised, FedAvg, SL, SFL, PSL, EPSL, EdgeSplit, Pipeline)
}


def framework_class(name: str) -> type[Framework]:
    """Return the class of a framework.

    Raises:
        ScenarioError: there is none of that name.
    """
    return FRAMEWORKS[check_choice("framework", name, FRAMEWORKS)]


def build_framework(model: nn.Module, config: TrainingConfig, weights: np.ndarray | None = None) -> Framework:
    """Return the framework that a configuration names; arguments as those of `Framework`."""
    kind = framework_class(config.framework)
    if kind.u_shaped and isinstance(config.cut, list):
        kind = U_SHAPED[kind.name]
    return kind(model, config, weights)


__all__ = ["FRAMEWORKS", "Framework", "build_framework", "framework_class"]
