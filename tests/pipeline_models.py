"""Models that the processes of a pipeline import by name, and a program that launches one."""

import os
import tempfile

import torch.distributed as dist
from torch import nn

from distributed_models import small_model
from psl.distributed import run
from psl.schedulers.pipeline import PipelinePlan

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


def main(arguments):
    """Be a program of its own, though a nursery started it: run a pipeline for a long time.

    Arguments are a folder for temporary files, the file of a plan, and who keeps the rates of links.
    """
    tempfile.tempdir, plan, links = arguments
    del os.environ["PSL_WORKER"]
    many = {"rounds": 100_000, "eval_every": 100_000, "progress": False}
    run("pipeline", plan=PipelinePlan.load(plan), emulate=links, **many)
