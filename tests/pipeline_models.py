"""Models that the processes of a pipeline import by name."""

import torch.distributed as dist
from torch import nn

from distributed_models import small_model

#: Functions of torch that pickle what they send, and unpickle what they receive.
PICKLING = [name for name in dir(dist) if "object" in name and callable(getattr(dist, name))]


def model_without_pickle():
    """A small model, in a process that from then on cannot exchange objects."""
    for module in (dist, dist.distributed_c10d):
        for name in PICKLING:
            if hasattr(module, name):
                setattr(module, name, _refuse)
    return small_model()


def wide_chain():
    """Large activations at cut 1 for little computing: 64 × 64 numbers per sample."""
    return nn.Sequential(nn.Conv2d(1, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))


def _refuse(*args, **kwargs):
    raise AssertionError("a call that pickles")
