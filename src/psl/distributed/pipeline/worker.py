"""One process of pipelined split learning: a stage, or a relay between two."""

import contextlib
import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from psl.distributed.edge.emulate import Compute, settle
from psl.distributed.events import EventLog
from psl.distributed.pipeline.books import Books
from psl.distributed.pipeline.job import PipelineJob, Source
from psl.distributed.pipeline.messages import Order, Partner, agree, begin_round, wait_for
from psl.distributed.pipeline.schedules import SCHEDULES
from psl.distributed.pipeline.stages import EdgeStage
from psl.distributed.state import load_state, newest_round, save_state
from psl.distributed.wire.exchange import receive_model, send_model
from psl.distributed.wire.groups import device_of
from psl.distributed.wire.messages import ChannelError, Kind
from psl.distributed.wire.pulse import Pulse
from psl.distributed.wire.transport import START
from psl.errors import CheckpointError, expected
from psl.training.model_preparation import image_layout
from psl.training.seeds import seed_computation, seed_round

_NEVER = timedelta(days=1)  # a message may take any time while its sender lives; see `Pulse`


@dataclass(frozen=True)
class World:
    """Where the processes of a pipelined run find each other and leave what they know, as plain values.

    Args:
        folder: of results, on each machine its own.
        checkpoint: folder of checkpoints or None.
        store: file of the store; None where somebody else serves one.
        interfaces: (P,) network interface of each process.
        local: numbers of the processes on this machine, by which they share its GPUs.
    """

    folder: str
    checkpoint: str | None
    store: str | None
    interfaces: list
    local: list


def main(arguments: list[str]) -> None:
    """Be a process of a launched run: arguments are the folder with ``job.json`` and ``world.json``, and the rank."""
    folder, rank = Path(arguments[0]), int(arguments[1])
    job = PipelineJob.load(folder / "job.json")
    world = World(**json.loads((folder / "world.json").read_text()))
    work(job, world, rank, dist.FileStore(world.store, job.n_processes))


def work(job: PipelineJob, world: World, rank: int, store: dist.Store, tell: Callable | None = None) -> None:
    """Do the work of a rank and leave events, and what was recorded, in the folder.

    Args:
        job, world, rank: what, where and who.
        store: where processes meet.
        tell: called with a line about every round, in the first process.

    Raises:
        PSLError: another process failed, or arguments do not fit.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # waits in C++ would hold Ctrl-C back
    torch.set_num_threads(1)
    if job.emulation is not None:
        settle()
    folder, log, recorded = Path(world.folder), EventLog(), []
    folder.mkdir(parents=True, exist_ok=True)

    def record(way, kind, step, tensor):
        recorded.append((way, kind, step, tensor.detach().cpu().clone()))

    try:
        member = Member(job, world, rank, store, log, record if job.record else None, tell)
        with Pulse(store.clone(), rank, job.names, job.timeout), _group(job, world, rank, store):
            member.run()
            dist.barrier()  # nobody leaves while another still talks to it
    finally:
        log.save(folder / f"events-{rank}.json")
        if job.record:
            torch.save(recorded, folder / f"messages-{rank}.pt")


class Member:
    """A process of the run: its layers, its neighbours, and in the first one the data and the books.

    Args:
        job, world, rank, store, tell: as for `work`.
        log: where events go.
        record: called with "out" or "in", the kind's name, the step and the tensor of everything that crosses.

    Raises:
        ChannelError, ProtocolError: another process did not come, or is of another run.
        CheckpointError: checkpoints are missing, or of another run.
    """

    def __init__(self, job: PipelineJob, world: World, rank: int, store: dist.Store, log: EventLog, record, tell=None):
        self.rank, self.count, self._log, self._record = rank, job.n_processes, log, record
        self._world, self.name = world, job.names[rank]
        self.device = device_of(job.device, world.local.index(rank))
        if rank == 0:
            self._source = Source(job, self.device)
        agree(store, job, rank, START)
        self.job = job = _with_ends(store, job, rank, self._source.ends if rank == 0 else None)
        self.framework = job.prepare(self.device)
        self.place = job.place(rank)
        self.layers = None if job.relays[rank] else self.framework.stages[self.place]
        if rank == 0:
            saves = world.checkpoint is not None
            self._books = Books(job, self.framework, self._source, Path(world.folder), saves, tell)
        self.first_round = self._resume(store)
        self.partners = {k: Partner(k, record) for k in range(self.count)}

    def run(self) -> None:
        """Run all rounds that are left, with the group that the caller has joined."""
        job = self.job
        stage = self._stage()
        schedule = SCHEDULES[job.schedule](stage, job.sizes, self.framework.config.loss)
        order = Order.SHOW if self.first_round == job.rounds else Order.NOTHING
        try:
            for index in range(self.first_round, job.rounds):
                order = self._round(index, stage, schedule)
                if order & Order.END:
                    break
        finally:
            stage.close()
        if order == Order.SHOW:  # a checkpoint of the whole run
            self._show(job.rounds)
        if self.rank == 0:
            self._books.close()

    def _round(self, index: int, stage: EdgeStage, schedule) -> Order:
        job, rank, log = self.job, self.rank, self._log
        last = self.count - 1
        inputs = labels = None
        seed_round(job.seed, index, self.device)
        if self.layers is not None:
            self.layers.zero_grad()
        order = self._books.order(index) if rank == 0 else Order.NOTHING
        order = begin_round(
            index, order, job.sizes, stage.ends, self.partners.get(rank - 1), self.partners.get(rank + 1)
        )  # fmt: skip
        if rank == 0:
            inputs, labels = self._source.batch(index)
            if last > 0:
                self.partners[last].send(Kind.LABELS, index, labels)
        if rank == last > 0:
            labels = self.partners[0].recv(Kind.LABELS, index, (job.mini_batch,), torch.int64).to(self.device)
        log.round, stage.round = index, index
        start = time.monotonic()
        value = schedule.mini_batch(inputs, labels if rank == last else None)
        seconds = time.monotonic() - start
        stage.flush(None)
        if self.layers is not None:
            with stage.compute("step"):
                self.layers.step()
        log.round = -1
        if rank == last > 0:
            self.partners[0].send(Kind.LOSS, index, value.reshape(1))
        if rank == 0 < last:
            value = self.partners[last].recv(Kind.LOSS, index, (1,), None)
        if order & Order.SHOW:
            self._show(index)
        if rank == 0:
            self._books.enter(float(value), seconds)
        if order & Order.SAVE:
            self._save(index)
        return order

    def _stage(self) -> EdgeStage:
        job, rank, emulation = self.job, self.rank, self.job.emulation
        place = self.place
        ends = (job.ends[place], job.ends[place + 1]) if self.layers is not None else (job.ends[place + 1],) * 2

        def computed(kind, number, start, end, cpu):
            samples = job.sizes[number] if kind in ("forward", "backward") else job.mini_batch
            self._log.add(self.name, kind, number, place, samples, start, end, cpu)

        def arrived(kind, number, when):
            other, what = (rank - 1, "activation") if kind == "forward" else (rank + 1, "gradient")
            link = min(place, job.place(other))
            self._log.add(f"link {other}→{rank}", what, number, link, job.sizes[number], when, when)

        layout = image_layout(self.framework.model, self.device)
        compute, lines = Compute(record=computed), (None, None)
        if emulation is not None:
            if self.layers is not None:
                compute = emulation.compute(rank, computed, Path(self._world.folder) / "turn")
                self._log.computes.append(compute)
            lines = (
                emulation.line(rank, "forward") if rank < self.count - 1 else None,
                emulation.line(rank - 1, "backward") if rank > 0 else None,
            )
        return EdgeStage(
            None if self.layers is None else self.layers.module, rank, self.count,
            *((job.sizes[0], *shape) for shape in ends), layout=layout, compute=compute, lines=lines,
            seed_for=lambda index, number: seed_computation(
                self.job.seed, index, self.device, "stage", self.place, number
            ),
            arrived=arrived, record=self._record, device=self.device,
        )  # fmt: skip

    def _show(self, index: int) -> None:
        """Send the layers to the first process, which puts them into its model.

        It asks for them when it has ended its round, so that they do not hold the round's last gradients up.
        """
        if self.rank > 0:
            if self.layers is not None:
                self.partners[0].hear(Kind.COMMAND, index, ())
                send_model(self.partners[0], Kind.MODEL, index, list(self.layers.module.state_dict().values()))
            return
        for rank in range(1, self.count):
            if not self.job.relays[rank]:
                module = self.framework.stages[self.job.place(rank)].module
                own = list(module.state_dict().values())
                self.partners[rank].tell(Kind.COMMAND, index, ())
                come = receive_model(self.partners[rank], Kind.MODEL, index, own)
                with torch.no_grad():
                    for tensor, new in zip(own, come, strict=True):
                        tensor.copy_(new)

    def _save(self, index: int) -> None:
        if self.layers is None:
            return
        optimizer = self.layers.optimizer
        state = {"module": dict(self.layers.module.state_dict())}
        state["optimizer"] = None if optimizer is None else optimizer.state_dict()
        if self.rank == 0:
            state["books"] = self._books.state()
        save_state(Path(self._world.checkpoint), f"stage-{self.place}", index, self.job, state)

    def _resume(self, store: dist.Store) -> int:
        """Load the newest round that all stages have saved, and return the number of the one to begin with."""
        if self._world.checkpoint is None:
            newest = None
        else:
            folder, who = Path(self._world.checkpoint), f"stage-{self.place}"
            newest = None if self.layers is None else newest_round(folder, who)
        store.set(f"saved {self.rank}", json.dumps(newest))
        stages = [k for k, relay in enumerate(self.job.relays) if not relay]
        saved = {k: json.loads(wait_for(store, f"saved {k}", self.job.names[k], START)) for k in stages}
        if all(index is None for index in saved.values()):
            return 0
        if None in saved.values():
            missing = ", ".join(self.job.names[k] for k, index in saved.items() if index is None)
            fix = "bring the files of all stages, or delete the folder to start anew"
            raise expected("checkpoint", "a file of every stage", f"none of {missing}", fix, CheckpointError)
        common = min(saved.values())  # each keeps two, and all save after the same rounds
        if self.layers is not None:
            state = load_state(folder, who, common, self.job)
            self.layers.module.load_state_dict(state["module"])
            if self.layers.optimizer is not None:
                self.layers.optimizer.load_state_dict(state["optimizer"])
            if self.rank == 0:
                self._books.restore(state["books"])
        return common + 1


def _with_ends(store: dist.Store, job: PipelineJob, rank: int, ends: list | None) -> PipelineJob:
    """Return the job with the shapes around the stages, which the process with the data tells the others."""
    if ends is not None:
        store.set("ends", json.dumps(ends))
    told = json.loads(wait_for(store, "ends", job.names[0], START))
    return dataclasses.replace(job, ends=tuple(tuple(end) for end in told))


@contextlib.contextmanager
def _group(job: PipelineJob, world: World, rank: int, store: dist.Store):
    """Join the processes of the run in torch's default group."""
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = world.interfaces[rank]
    engine = job.engine(len(world.local))
    try:
        dist.init_process_group(engine, store=store, rank=rank, world_size=job.n_processes, timeout=_NEVER)
        yield
    except RuntimeError as cause:
        if "gloo" not in str(cause):
            raise
        reason = str(cause).splitlines()[0].rpartition("] ")[2]
        fix = "see what it says itself"
        raise expected("a neighbour", "messages", reason, fix, ChannelError) from cause
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
