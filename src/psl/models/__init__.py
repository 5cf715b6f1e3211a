"""Split models: find the cuts of any traceable module, split it there, count or measure its cost."""

from psl.models.flops import profile
from psl.models.splitting import Cut, SplitModel, cuts, partition, split
from psl.models.timing import measure
from psl.models.zoo import cnn, thin_resnet

__all__ = ["Cut", "SplitModel", "cnn", "cuts", "measure", "partition", "profile", "split", "thin_resnet"]
