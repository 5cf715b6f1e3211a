"""Parallel split learning you can read, run and trust.

Cut a model, profile it, plan a round over a network, train. The names below are the public face;
schedulers are modules with the same verbs: ``from psl.schedulers import epsl``.
"""

from importlib.metadata import version

from psl import data, models, networks, schedulers
from psl.errors import CheckpointError, CutError, DataError, InfeasibleError, PSLError, ScenarioError
from psl.models import Cut, SplitModel, cuts, measure, partition, profile, split
from psl.networks import WirelessCell
from psl.profiles import Profile
from psl.training import History, train

__version__ = version("psl")

__all__ = [
    "CheckpointError",
    "Cut",
    "CutError",
    "DataError",
    "History",
    "InfeasibleError",
    "PSLError",
    "Profile",
    "ScenarioError",
    "SplitModel",
    "WirelessCell",
    "cuts",
    "data",
    "measure",
    "models",
    "networks",
    "partition",
    "profile",
    "schedulers",
    "split",
    "train",
]
