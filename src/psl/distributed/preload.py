"""Imported once by the process that workers are forked from, so that they start at once."""

import contextlib
import json
import os
import signal
import sys

import torch

from psl.distributed.job import Job
from psl.distributed.workers import FIRST_JOBS
from psl.models.tracing import trace
from psl.models.zoo import cnn

_launcher = os.getppid()


def _end_with_launcher(*_) -> None:
    """End when the launcher has; the standard library's sign of that fails while a worker is stopped."""
    if os.getppid() != _launcher:
        os._exit(0)


signal.signal(signal.SIGALRM, _end_with_launcher)
signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)  # which a fork does not inherit
torch.set_num_threads(1)
told = json.loads(os.environ.pop(FIRST_JOBS, "{}"))  # nothing, if the standard library starts it anew by itself
sys.path[:] = told.get("path", sys.path)  # the standard library leaves this to the workers
for job in told.get("jobs", ()):
    with contextlib.suppress(Exception):  # its worker will say what is wrong with it
        Job.from_dict(job).prepare()
if not told.get("jobs"):
    trace(cnn(), (1, 8, 8))  # the first export imports half of torch
