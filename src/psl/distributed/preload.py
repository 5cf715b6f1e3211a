"""Imported once by the process that workers are forked from, so that they start at once."""

import json
import os
import sys

import torch

from psl.distributed.job import Job
from psl.distributed.workers import FIRST_JOB
from psl.models.tracing import trace
from psl.models.zoo import cnn

torch.set_num_threads(1)
try:
    told = json.loads(os.environ.pop(FIRST_JOB))
    sys.path[:] = told["path"]  # the standard library leaves this to the workers
    Job.from_dict(told["job"]).prepare()
except Exception:  # no job is told, or its worker will say what is wrong with it
    trace(cnn(), (1, 8, 8))  # the first export imports half of torch
