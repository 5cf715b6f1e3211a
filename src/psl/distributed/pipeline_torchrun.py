"""Be one process of a pipeline that torchrun started, on this machine or on several."""

import fcntl
import json
import os
import socket
import struct
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from psl.distributed.emulate import settle
from psl.distributed.pipeline import bits_per_round
from psl.distributed.pipeline_job import PipelineJob, emulation_of, relays_of, specify
from psl.distributed.pipeline_worker import work
from psl.errors import expected
from psl.training.curves import Curves
from psl.training.evaluate import evaluate
from psl.training.fingerprint import settings_of
from psl.training.history import History
from psl.training.setup import check_plan

_SIOCGIFADDR = 0x8915


def attend(
    store: dist.Store, address: str, *, plan=None, emulate=None, tell: Callable = print, **options
) -> History | None:
    """Train as the stage, or relay, of this rank; returns the history in the first process, None in the others.

    The first process holds the data. The others learn the shapes of the activations from it through the store, and
    send it their weights where it is to evaluate.

    Args:
        store: of torchrun's rendezvous.
        address: of the network interface to use.
        plan, emulate, options: as for `psl.distributed.run_pipeline`; links cannot be the kernel's here.
        tell: called in the first process with a line about every round.

    Raises:
        ScenarioError: an argument is out of range, or torchrun started another number of processes.
    """
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    spec = specify(plan=plan, **options)
    if rank == 0:
        job = PipelineJob(spec)
        store.set("ends", json.dumps(job.ends))
    else:
        spec["ends"] = json.loads(store.get("ends"))
        job = PipelineJob(spec, data=False)
    relays = relays_of(plan, len(job.run.stages))
    if len(relays) != count:
        fix = f"torchrun with {len(relays)} processes in all, or other cuts"
        raise expected("torchrun", f"{len(relays)} processes, one per stage and relay", count, fix)
    emulation = emulation_of(emulate, plan, relays)
    if emulate is not None:
        settle()
    curves, stages = Curves(), [k for k, relay in enumerate(relays) if not relay]

    def after(index, losses, place, module):
        loss = torch.tensor([losses[-1]])
        if count > 1 and rank == count - 1:
            dist.send(loss, 0)
        elif count > 1 and rank == 0:
            dist.recv(loss, count - 1)
        if job.due(index) and rank > 0 and module is not None:
            for tensor in module.state_dict().values():
                dist.send(tensor.contiguous(), 0)
        if rank > 0:
            return
        if job.due(index):
            for owner, stage in zip(stages[1:], job.run.stages[1:], strict=True):
                for tensor in stage.module.state_dict().values():
                    received = torch.empty_like(tensor, memory_format=torch.contiguous_format)
                    dist.recv(received, owner)
                    tensor.copy_(received)
        up, down = bits_per_round(job)
        job.run.link.uplink_bits += up
        job.run.link.downlink_bits += down
        curves.add(float(loss), evaluate(job.run, job.test) if job.due(index) else None, job.run.link)
        tell(f"round {index + 1}/{spec['rounds']}: " + ", ".join(f"{k} {v}" for k, v in curves.shown().items()))

    os.environ["GLOO_SOCKET_IFNAME"] = interface_of(address)
    wait = timedelta(seconds=spec["timeout"])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=wait)
    try:
        if rank == 0:
            tell(f"pipeline: {len(stages)} stages, {count - len(stages)} relays, links emulated by: {emulation.links}")
        work(job, emulation, relays, after, spec["timeout"])
        dist.barrier()  # nobody leaves while another still talks to it
    finally:
        dist.destroy_process_group()
    if rank > 0:
        return None
    settings = settings_of(job.run, spec["seed"], options.get("partition", "iid"), None)
    history = curves.history("pipeline", settings, check_plan(plan, "pipeline", 1))
    history.models.append(job.run.modules["model"].eval())
    return history


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
