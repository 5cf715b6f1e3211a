"""Be one process of a pipeline that torchrun started, on this machine or on several."""

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from psl.distributed.launch import emulation_of
from psl.distributed.leftovers import run_folder
from psl.distributed.pipeline.job import PipelineJob
from psl.distributed.pipeline.worker import World, work
from psl.errors import expected
from psl.training.history import History

_SIOCGIFADDR = 0x8915


def attend(
    store: dist.Store, address: str, *, plan=None, emulate=None, checkpoint=None, out=None, tell: Callable = print,
    **options,
) -> History | None:  # fmt: skip
    """Train as the stage, or relay, of this rank; returns the history in the first process, None in the others.

    The first process holds the data; the others learn the shapes of the activations from it through the store.

    Args:
        store: of torchrun's rendezvous.
        address: of the network interface to use, or its name.
        plan, emulate, checkpoint, options: as for `psl.distributed.run`; links cannot be the kernel's here.
        out: folder for history, model and this process's events; None: they are not kept.
        tell: called in the first process with a line about every round.

    Raises:
        ScenarioError: an argument is out of range, or torchrun started another number of processes.
    """
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    job = PipelineJob.of("pipeline", plan=plan, emulation=emulation_of(emulate, plan), **options)
    if job.n_processes != count:
        fix = f"torchrun with {job.n_processes} processes in all, or other cuts"
        raise expected("torchrun", f"{job.n_processes} processes, one per stage and relay", count, fix)
    n_local = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    first = rank - int(os.environ.get("LOCAL_RANK", rank))
    place = None if checkpoint is None else str(Path(checkpoint).absolute())
    with run_folder() as own:
        folder = str(own if out is None else Path(out).absolute())
        world = World(folder, place, None, [interface_of(address)] * count, list(range(first, first + n_local)))
        if rank == 0:
            links = "none" if job.emulation is None else job.emulation.links
            tell(f"pipeline: {job.n_processes - sum(job.relays)} stages, {sum(job.relays)} relays, "
                 f"links emulated by: {links}")  # fmt: skip
        work(job, world, rank, store, tell)
        return History.load(Path(folder) / "history.json") if rank == 0 else None


def interface_of(address: str) -> str:
    """Return the name of the network interface with an IPv4 address, or that has this name itself.

    Raises:
        ScenarioError: there is none.
    """
    names = [name for _, name in socket.if_nameindex()]
    if address in names:
        return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for name in names:
            try:
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    raise expected(
        "--bind", f"an interface or an address of one: {', '.join(names)}", repr(address), "name one of them"
    )
