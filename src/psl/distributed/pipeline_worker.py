"""One process of pipelined split learning: a stage, or a relay between two."""

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from psl.distributed.emulate import Compute, EdgeEmulation, settle
from psl.distributed.pipeline_job import PipelineJob
from psl.distributed.stages import SCHEDULES, EdgeStage


def work(
    job: PipelineJob, emulation: EdgeEmulation, relays: list[bool], after: Callable, timeout: float, turn=None
) -> dict:
    """Be one process of the run: train with the group that the caller has joined.

    Args:
        job: what to train.
        emulation: of a chain with as many processes as the group.
        relays: (P,) which processes only pass on.
        after: called after every round with its index, the losses so far (of the last process; others have zeros),
            and the number of the stage and its layers, both None in a relay.
        timeout: s to wait for a neighbour.
        turn: file of `Compute`.

    Returns:
        events (round, kind, number, start, end, CPU seconds), rounds (start, end) and overrun.
    """
    rank, count = dist.get_rank(), dist.get_world_size()
    place = sum(not relay for relay in relays[: rank + 1]) - 1  # of this stage, or of the one before this relay
    own = None if relays[rank] else job.run.stages[place]
    ends = (job.ends[place + 1],) * 2 if own is None else (job.ends[place], job.ends[place + 1])
    events: list[tuple] = []

    def record(kind, number, start, end, cpu=0.0):
        events.append((index, kind, number, start, end, cpu))

    compute = Compute(record=record) if own is None else emulation.compute(rank, record, turn)
    stage = EdgeStage(
        None if own is None else own.module, rank, count, *((job.sizes[0], *shape) for shape in ends),
        layout=job.layout, compute=compute,
        lines=(
            emulation.line(rank, "forward") if rank < count - 1 else None,
            emulation.line(rank - 1, "backward") if rank > 0 else None,
        ),
        arrived=lambda kind, number, when: record(f"{kind} arrived", number, when, when),
    )  # fmt: skip
    schedule = SCHEDULES[job.spec["schedule"]](stage, job.sizes, job.run.setup.loss)
    losses, rounds = [], []
    try:
        for index in range(job.spec["rounds"]):
            torch.manual_seed(int(np.random.default_rng([job.spec["seed"], 2, index]).integers(2**63)))
            inputs, labels = mini_batch(job, index, rank, count)
            if own is not None:
                own.zero_grad()
            dist.barrier()
            start = time.monotonic()
            value = schedule.mini_batch(inputs if rank == 0 else None, labels if rank == count - 1 else None)
            stage.flush(timeout)
            if own is not None:
                with compute("step"):
                    own.step()
            rounds.append((start, time.monotonic()))
            losses.append(float(value))
            after(index, losses, *(None, None) if own is None else (place, own.module))
    finally:
        stage.close()
    return {"events": events, "rounds": rounds, "overrun": compute.overrun}


def mini_batch(job: PipelineJob, index: int, rank: int, count: int):
    """Return inputs and labels of a round where they belong: only the first process touches the data.

    The labels go straight to the last process, once per round.
    """
    inputs = labels = None
    if rank == 0:
        inputs, labels = job.train.fetch(job.sampler.batch(index))
        if count > 1:
            dist.send(labels, count - 1)
    elif rank == count - 1:
        labels = torch.empty(job.mini_batch, dtype=torch.int64)
        dist.recv(labels, 0)
    return inputs, labels


def main(arguments: list[str]) -> None:
    """Run as one process that `run_pipeline` started: path of the file that says what to do, and rank."""
    torch.set_num_threads(1)
    settle()
    spec, rank = json.loads(Path(arguments[0]).read_text()), int(arguments[1])
    folder, timeout = Path(spec["folder"]), spec["timeout"]
    emulation = EdgeEmulation.from_dict(spec["emulation"])
    os.environ["GLOO_SOCKET_IFNAME"] = spec["interfaces"][rank]
    count = emulation.n_processes
    job = PipelineJob(spec, data=rank == 0)

    def after(index, losses, place, module):
        if module is not None and job.due(index):
            torch.save(module.state_dict(), folder / f"new-{rank}")
            (folder / f"new-{rank}").rename(folder / f"weights-{index}-{place}.pt")  # whole or not there
        if rank == count - 1:
            (folder / "progress").write_text(json.dumps(losses))

    store = dist.FileStore(str(folder / "store"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=timeout))
    try:
        report = work(job, emulation, spec["relays"], after, timeout, folder / "turn")
        (folder / f"events-{rank}.json").write_text(json.dumps(report))
        dist.barrier()  # nobody leaves while another still talks to it
    finally:
        dist.destroy_process_group()
