"""Split models: find the cuts of any module, split it there, verify the parts, count or measure what they cost."""

from psl.models.flops import profile
from psl.models.splitting import Cut, SplitModel, cuts, partition, split
from psl.models.timing import measure
from psl.models.verification import verify
from psl.models.zoo import cnn, thin_resnet

__all__ = ["Cut", "SplitModel", "cnn", "cuts", "measure", "partition", "profile", "split", "thin_resnet", "verify"]
