"""Parallel split learning you can read, run and trust.

Cut a model, profile it, plan a round over a network, train. The names below are the public face;
schedulers are modules with the same verbs: ``from psl.schedulers import epsl``.
"""

from psl import models, networks
from psl.models import Cut, SplitModel, cuts, measure, partition, profile, split
from psl.networks import WirelessCell
from psl.profile import Profile

__all__ = ["Cut", "Profile", "SplitModel", "WirelessCell", "cuts", "measure", "models", "networks", "partition",
           "profile", "split"]  # fmt: skip
