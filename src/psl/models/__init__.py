"""Split models: find the cuts of any traceable module, split it there, count or measure its cost."""

from psl.models.counting import profile
from psl.models.cuts import Cut, SplitModel, cuts, partition, split
from psl.models.measuring import measure
from psl.models.small import cnn, thin_resnet

__all__ = ["Cut", "SplitModel", "cnn", "cuts", "measure", "partition", "profile", "split", "thin_resnet"]
