"""What a process of a run does, by its rank: the server, a client, a stage or a relay."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from psl.distributed.edge.emulate import keep_memory, settle
from psl.distributed.job import Job
from psl.distributed.names import device_of
from psl.distributed.pipeline.member import Member
from psl.distributed.place import Launcher, Place
from psl.distributed.star.client import attend
from psl.distributed.star.server import Server
from psl.distributed.wire.keys import Bundle


def launched(connection, order: dict[str, Any]) -> None:
    """Be a process of a run that `psl.distributed.run` launches; `order` says which."""
    host = Launcher(connection)
    keys = None if order["keys"] is None else Bundle(**order["keys"])
    checkpoint = None if order["checkpoint"] is None else Path(order["checkpoint"])
    job = Job.from_dict(order["job"])
    device = device_of(job.device, order["rank"])
    torch.set_default_dtype(getattr(torch, order["dtype"]))
    job = dataclasses.replace(job, device=device)
    work(Place(job, order["rank"], host, Path(order["folder"]), checkpoint, order["listen"], keys))


def work(place: Place) -> Any:
    """Do the work of a rank; leave events, and what was recorded, in its folder. Returns a server's history.

    Raises:
        PSLError: another process failed, or arguments do not fit.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what happens is said by psl's own messages
    torch.set_num_threads(1)
    if torch.device(place.job.device).type == "cuda":
        torch.cuda.set_device(place.job.device)
    if place.job.emulation is None:
        keep_memory()
    else:
        settle()
    try:
        if place.job.framework == "pipeline":
            return Member(place).run()
        return Server(place).run() if place.rank == 0 else attend(place)
    finally:
        place.save()
