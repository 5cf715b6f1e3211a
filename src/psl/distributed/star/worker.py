"""One process of a run: the server, rank 0, or client rank − 1."""

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.distributed import Store

from psl.distributed.edge.emulate import Compute, settle
from psl.distributed.events import EventLog
from psl.distributed.job import Job
from psl.distributed.star.client import Client
from psl.distributed.star.peer import Peer
from psl.distributed.star.server import Server
from psl.distributed.wire.groups import backend_for, device_of
from psl.distributed.wire.messages import Kind
from psl.distributed.wire.transport import LOOPBACK, START, Channel, open_store, serve_store

_POLL = 0.02
_EVENTS = {
    Kind.ACTIVATION: "activation", Kind.LABELS: "labels", Kind.GRADIENT: "gradient", Kind.BROADCAST: "broadcast",
    Kind.MODEL: "model", Kind.LOSS: "labels",
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """Where the processes of a run find each other and leave what they know, as plain values.

    Args:
        folder: of results, on each machine its own.
        checkpoint: folder of checkpoints or None.
        store: address that the server's store listens on; None where somebody else serves one.
        ends: (N,) pairs of addresses, the server's and the client's end of each channel.
        broadcast_ends: the same for channels of their own for broadcasts, None for none.
        ranks: of the processes on this machine, None for all.
    """

    folder: str
    checkpoint: str | None
    store: str | None
    ends: list
    broadcast_ends: list | None = None
    ranks: list | None = None

    @classmethod
    def here(cls, folder: Path, checkpoint: Path | None, n_clients: int, bind: str = LOOPBACK, ranks=None) -> "World":
        """Return the world in which every process listens on one address, by default this machine's loopback."""
        place = None if checkpoint is None else str(checkpoint)
        return cls(str(folder), place, bind, [[bind, bind]] * n_clients, ranks=ranks)

    def equip(self, job: Job, rank: int) -> Job:
        """Return the job for the process of a rank, with its own device and the backend that it can offer."""
        ranks = list(range(job.n_clients + 1)) if self.ranks is None else self.ranks
        backend = backend_for(job.device, len(ranks), job.backend)
        return replace(job, device=str(device_of(job.device, ranks.index(rank))), backend=backend)


def main(arguments: list[str]) -> None:
    """Be a process of a launched run: arguments are the folder with ``job.json`` and ``world.json``, and the rank."""
    folder, rank = Path(arguments[0]), int(arguments[1])
    job = Job.load(folder / "job.json")
    world = World(**json.loads((folder / "world.json").read_text()))
    port = folder / "port"
    if rank == 0:
        store, number = serve_store(world.store)
        part = port.with_suffix(".part")
        part.write_text(str(number))
        part.replace(port)
    else:
        end = time.monotonic() + START
        while not port.exists() and time.monotonic() < end:
            time.sleep(_POLL)
        server_address, _ = world.ends[rank - 1]
        store = open_store(server_address, int(port.read_text()) if port.exists() else 0, START)
    work(job, world, rank, store)


def work(job: Job, world: World, rank: int, store: Store, tell: Callable[[str], None] | None = None) -> None:
    """Do the work of a rank and leave events, and what was recorded, in the folder.

    Args:
        job, world, rank: what, where and who.
        store: where ends meet.
        tell: called with a line about every round, at the server.

    Raises:
        PSLError: the other end failed, or arguments do not fit.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # waits in C++ would hold Ctrl-C back
    torch.set_num_threads(1)
    job = world.equip(job, rank)
    if torch.device(job.device).type == "cuda":
        torch.cuda.set_device(job.device)
    if job.emulation is not None:
        settle()
    folder, log, recorded = Path(world.folder), EventLog(), []
    folder.mkdir(parents=True, exist_ok=True)
    if world.checkpoint is not None:
        Path(world.checkpoint).mkdir(parents=True, exist_ok=True)

    def record(way, kind, step, tensor):
        recorded.append((way, kind.name.lower(), step, tensor.clone()))

    try:
        recorder = record if job.record else None
        if rank == 0:
            _serve(job, world, store, log, recorder, tell)
        else:
            _attend(job, world, rank, store, log, recorder)
    finally:
        log.save(folder / f"events-{rank}.json")
        if job.record:
            torch.save(recorded, folder / f"messages-{rank}.pt")


def _serve(job: Job, world: World, store: Store, log: EventLog, record: Callable | None, tell) -> None:
    known = dict.fromkeys(range(job.n_clients), 0)

    def meet(number: int, patience: float) -> Peer | None:
        end = time.monotonic() + patience
        while (generation := store.add(f"client {number}", 0)) == known[number]:
            if time.monotonic() >= end:
                return None
            time.sleep(_POLL)
        known[number] = generation
        return Peer(number, job, *_channels(job, world, number, 0, generation, store, log, record))

    def compute(client: int) -> Callable:
        resource = f"server for client {client}" if job.framework == "edgesplit" else "server"
        return _compute(job, world, 0, log, resource, client)

    folder = Path(world.folder)
    server = Server(job, meet, compute, log, folder, None if world.checkpoint is None else Path(world.checkpoint))
    server.run(START, stop=lambda: (folder / "stop").exists(), tell=tell)


def _attend(job: Job, world: World, rank: int, store: Store, log: EventLog, record: Callable | None) -> None:
    number = rank - 1
    compute = _compute(job, world, rank, log, f"client {number}", number)
    checkpoint = None if world.checkpoint is None else Path(world.checkpoint)
    client = Client(job, number, compute, log, checkpoint)
    generation = store.add(f"client {number}", 1)
    if generation > 1:
        client.recover()
    channel, *broadcasts = _channels(job, world, number, 1, generation, store, log, record)
    log.offset = channel.offset
    client.serve(channel, broadcasts[0] if broadcasts else None, Path(world.folder) / f"client-{number}.pt")


def _channels(job, world, number, member, generation, store, log, record) -> list[Channel]:
    """Meet the other end of a client's channel; of two, where broadcasts have one of their own."""
    emulation, way = job.emulation, ("backward", "forward")[member]

    def transferred(_, kind, step, start, end):
        if kind in _EVENTS:
            direction = {Kind.BROADCAST: "broadcast to"}.get(kind, ("uplink of", "downlink of")[member])
            resource = f"{direction} client {number}"
            local = -1 if _EVENTS[kind] == "model" else step % job.steps
            log.add(resource, _EVENTS[kind], local, number, 0, start, end)

    channels = []
    for name, ends in (("channel", world.ends), ("broadcasts", world.broadcast_ends)):
        if ends is None:
            continue
        line = None if emulation is None else emulation.line(number, way)
        rate = emulation.broadcast if emulation is not None and emulation.links == "pacing" else None
        channels.append(
            Channel.connect(
                store, f"{name} {number}/{generation}", member, address=ends[number][member],
                patience=job.timeout if member == 0 else START, name=("server", f"client {number}")[1 - member],
                timeout=job.timeout if member == 0 else job.patience, backend=job.backend,
                line=line, broadcast_rate=rate,
                on_message=record, on_transfer=transferred,
            )
        )  # fmt: skip
    return channels


def _compute(job: Job, world: World, rank: int, log: EventLog, resource: str, client: int) -> Callable:
    def record(kind, number, start, end, cpu):
        log.add(resource, kind, number, client, job.batch_size, start + log.offset, end + log.offset, cpu)

    if job.emulation is None:
        return Compute(record=record)
    compute = job.emulation.compute(rank, record, Path(world.folder) / "turn")
    log.computes.append(compute)
    return compute
