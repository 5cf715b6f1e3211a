"""Plans as real processes that exchange real tensors: on one machine from Python, on one or many by torchrun."""

from psl.distributed.comparison import compare, experiment
from psl.distributed.edge.emulate import EdgeEmulation, emulation_for
from psl.distributed.job import Job
from psl.distributed.launch import Launch, Run, run
from psl.distributed.measure import measured_profile
from psl.distributed.nursery import Nursery
from psl.distributed.pipeline.job import PipelineJob
from psl.distributed.wire.messages import ChannelError, ProtocolError

__all__ = [
    "ChannelError",
    "EdgeEmulation",
    "Job",
    "Launch",
    "Nursery",
    "PipelineJob",
    "ProtocolError",
    "Run",
    "compare",
    "emulation_for",
    "experiment",
    "measured_profile",
    "run",
]
