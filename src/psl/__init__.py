"""Parallel split learning you can read, run and trust.

Cut a model, profile it, plan a round over a network, simulate it, train. The names below are the public face;
schedulers are modules with the same verbs: ``from psl.schedulers import edgesplit, epsl, pipeline``.
"""

from importlib.metadata import version

from psl import data, models, networks, schedulers, simulation
from psl.errors import CheckpointError, CutError, DataError, InfeasibleError, PSLError, ScenarioError
from psl.models import Cut, SplitModel, cuts, measure, partition, profile, split
from psl.networks import EdgeCluster, EdgeNetwork, WirelessCell
from psl.profiles import Profile
from psl.simulation import Timeline, simulate
from psl.training import History, Participation, train

__version__ = version("psl")

__all__ = [
    "CheckpointError",
    "Cut",
    "CutError",
    "DataError",
    "EdgeCluster",
    "EdgeNetwork",
    "History",
    "InfeasibleError",
    "PSLError",
    "Participation",
    "Profile",
    "ScenarioError",
    "SplitModel",
    "Timeline",
    "WirelessCell",
    "cuts",
    "data",
    "measure",
    "models",
    "networks",
    "partition",
    "profile",
    "schedulers",
    "simulate",
    "simulation",
    "split",
    "train",
]
