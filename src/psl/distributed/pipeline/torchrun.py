"""Be one process of a pipeline that torchrun, or somebody by hand, started on this machine or several."""

import os
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from psl.distributed.launch import emulation_of
from psl.distributed.leftovers import run_folder
from psl.distributed.pipeline.job import PipelineJob
from psl.distributed.pipeline.worker import World, work
from psl.distributed.wire.groups import interface_of
from psl.errors import expected
from psl.training.history import History


def attend(
    store: dist.Store, address: str, *, plan=None, emulate=None, checkpoint=None, out=None, tell: Callable = print,
    **options,
) -> History | None:  # fmt: skip
    """Train as the stage, or relay, of this rank; returns the history in the first process, None in the others.

    The first process holds the data; the others learn the shapes of the activations from it through the store.

    Args:
        store: where the processes meet.
        address: of the network interface to use, or its name.
        plan, emulate, checkpoint, options: as for `psl.distributed.run`; links cannot be the kernel's here.
        out: folder for history, model and this process's events; None: they are not kept.
        tell: called in the first process with a line about every round.

    Raises:
        ScenarioError: an argument is out of range, or another number of processes was started.
    """
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    job = PipelineJob.of("pipeline", plan=plan, emulation=emulation_of(emulate, plan), **options)
    if job.n_processes != count:
        fix = f"start {job.n_processes} processes in all, or take other cuts"
        raise expected("processes", f"{job.n_processes}, one per stage and relay", count, fix)
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
