"""Plans as real processes that exchange real tensors over encrypted streams: on one machine from Python, or on many."""

from psl.distributed.comparison import compare
from psl.distributed.edge.emulate import EdgeEmulation, emulation_for
from psl.distributed.job import Job
from psl.distributed.launch import Launch, Run, run
from psl.distributed.measure import measured_profile
from psl.distributed.wire.keys import write_keys
from psl.distributed.wire.messages import ChannelError, ProtocolError

__all__ = [
    "ChannelError",
    "EdgeEmulation",
    "Job",
    "Launch",
    "ProtocolError",
    "Run",
    "compare",
    "emulation_for",
    "measured_profile",
    "run",
    "write_keys",
]
