"""What a process of a run has around it: who started it, where it writes, its links, and what it notes."""

import contextlib
import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import psl
from psl.distributed.checkpoints import Checkpoints
from psl.distributed.edge.emulate import Compute
from psl.distributed.events import EventLog
from psl.distributed.job import OF_SAMPLES, Job
from psl.distributed.names import machine
from psl.distributed.wire.keys import Bundle
from psl.distributed.wire.links import START, Link
from psl.distributed.wire.messages import ChannelError, Kind, Message, ProtocolError
from psl.errors import CheckpointError, expected
from psl.training.config import optimizer_of
from psl.training.fingerprint import outline, program_of
from psl.training.recorder import Recorder

_EVENTS = {
    Kind.ACTIVATION: "activation", Kind.LABELS: "labels", Kind.GRADIENT: "gradient", Kind.BROADCAST: "broadcast",
    Kind.MODEL: "model", Kind.LOSS: "loss",
}  # fmt: skip


# What processes of a run may differ in, and what a checkpoint does not depend on.
_OWN = {"type", *OF_SAMPLES, "device", "timeout", "save_every", "record"}
_NOT_SAVED = _OWN | {"rounds", "eval_every", "emulation", "schedule", "relays", "turns"}
_LONG = 200  # characters; longer values are compared by a hash


class Terminal:
    """For a process that somebody started by hand: it prints, and ends after the round when it is asked to.

    Args:
        servers: "ADDRESS:PORT" of the process to connect to, first of a list that has no others.
    """

    def __init__(self, servers: list[str]):
        self.servers = servers
        self.stopping = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number, frame) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        print("asked to end: after this round", flush=True)
        self.stopping.set()

    def listening(self, port: int) -> None:
        """Take note of the port that this process listens on."""

    def news(self, **news: Any) -> None:
        """Print what there is to read."""
        for line in news.get("lines", ()):
            print(line, flush=True)


class Launcher:
    """For a process that `psl.distributed.run` started: news go there, and it ends when the launcher does.

    Args:
        connection: to the launcher, of `multiprocessing`; JSON crosses it.
    """

    def __init__(self, connection):
        self._connection, self._servers = connection, []
        self._lock, self._told = threading.Lock(), threading.Event()
        self.stopping = threading.Event()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the launcher
        threading.Thread(target=self._listen, name="launcher", daemon=True).start()

    @property
    def servers(self) -> list[str]:
        """Where to connect to, as soon as the launcher knows.

        Raises:
            ChannelError: the process to connect to does not listen in time.
        """
        if not self._told.wait(2 * START):
            fix = "see what the server, or the stage before, waits for"
            raise expected("launcher", f"somebody who listens within {2 * START:g} s", "nobody", fix, ChannelError)
        return self._servers

    def listening(self, port: int) -> None:
        """Tell the launcher the port that this process listens on."""
        self.news(port=port)

    def news(self, **news: Any) -> None:
        """Tell the launcher."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.send_bytes(json.dumps(news).encode())

    def _listen(self) -> None:
        try:
            while True:
                order = json.loads(self._connection.recv_bytes())
                if "servers" in order:
                    self._servers = order["servers"]
                    self._told.set()
                if order.get("stop"):
                    self.stopping.set()
        except (EOFError, OSError):
            os._exit(1)  # nobody is left to work for


@dataclass
class Place:
    """A process of a run.

    Args:
        job: the run; `rank`: who this is.
        host: who started it.
        folder: where its results go.
        checkpoint: folder of checkpoints, None for none.
        listen: "ADDRESS:PORT", one for each network plane, where this process listens if others connect to it.
        keys: of this rank; None for plain text.

    Attributes:
        name: of this process.
        faults: what went wrong, one line each.
        log: of events.
        recorded: everything that crossed, with ``job.record``.
    """

    job: Job
    rank: int
    host: Terminal | Launcher
    folder: Path
    checkpoint: Path | None = None
    listen: list[str] = field(default_factory=list)
    keys: Bundle | None = None

    def __post_init__(self):
        self.name, self.log, self.recorded = self.job.names[self.rank], EventLog(), []
        self.faults: list[str] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        self._agreed = agreed(self.job)
        if isinstance(self.host, Terminal):  # hosts have files of their own behind the same names
            model = self.job.build_model()
            self._agreed |= outline(model, optimizer_of(model, self.job.optimizer_maker()))

    def compute(self, resource: str, stage: int, samples: Callable[[str, int], int]) -> Compute:
        """Return what slows computations down and notes them as events.

        Args:
            resource, stage: of the events.
            samples: from kind and number of a computation to its samples.
        """

        def record(kind, number, start, end, cpu):
            offset = self.log.offset
            self.log.add(resource, kind, number, stage, samples(kind, number), start + offset, end + offset, cpu)

        emulation = self.job.emulation
        if emulation is None or emulation.slowdown[self.rank] == 0:
            return Compute(record=record)
        made = emulation.compute(self.rank, record, self.folder / "turn")
        self.log.computes.append(made)
        return made

    def link(self, other: int, on_transfer: Callable[[Message, float], None] | None = None, **options: Any) -> Link:
        """Return a link to another process, not connected yet."""
        emulation, line, rate = self.job.emulation, None, None
        if emulation is not None and self.job.framework == "pipeline":
            line = emulation.line(min(self.rank, other), "forward" if other > self.rank else "backward")
        elif emulation is not None:
            line = emulation.line(max(self.rank, other) - 1, "backward" if self.rank == 0 else "forward")
            rate = emulation.broadcast if emulation.links == "pacing" else None

        def record(way, kind, step, content):
            self.recorded.append((way, kind.name.lower(), step, _detached(content)))

        return Link(
            self.job.names[other], line=line, broadcast_rate=rate, limit=self.job.limit, secure=self.keys is not None,
            on_message=record if self.job.record else None, on_transfer=on_transfer, **options,
        )  # fmt: skip

    def star_transfer(self, client: int) -> Callable[[Message, float], None]:
        """Return what notes the transfers that arrive here, between the server and a client."""

        def transferred(message, end):
            if message.kind in _EVENTS:
                way = "uplink of" if self.rank == 0 else "downlink of"
                way = "broadcast to" if message.kind == Kind.BROADCAST else way
                kind = _EVENTS[message.kind]
                number = -1 if kind == "model" else message.step % (self.job.steps * self.job.parts)
                self.log.add(f"{way} client {client}", kind, number, client, 0, message.sent, end)

        return transferred

    def hello(self, **more: Any) -> dict[str, Any]:
        """Return what this process says when it connects."""
        own = {"version": psl.__version__, "rank": self.rank, "machine": machine(), "job": self._agreed}
        return own | more

    def check_hello(self, word: dict[str, Any]) -> None:
        """Refuse a process of another version or another run.

        Raises:
            ProtocolError: with what differs.
        """
        name, fix = f"rank {word.get('rank')}", "start all processes with the same arguments and the same files"
        if word.get("version") != psl.__version__:
            got, same = str(word.get("version"))[:20], "install the same version of psl everywhere"
            raise expected(name, f"psl {psl.__version__}", got, same, ProtocolError)
        own, theirs = self._agreed, word.get("job")
        for key in own:
            got = theirs.get(key) if isinstance(theirs, dict) else None
            if got != own[key]:
                raise expected(f"{name}: {key}", own[key], str(got)[:80], fix, ProtocolError)

    def checkpoints(self, who: str, **more: str) -> Checkpoints | None:
        """Return the checkpoints of this process, None without a folder; `more` must agree too."""
        if self.checkpoint is None:
            return None
        return Checkpoints(self.checkpoint, who, agreed(self.job, saved=True) | _program(self.job) | more)

    def note(self, *lines: str) -> None:
        """Keep lines about what went wrong, and tell them."""
        self.faults += [line[:400] for line in lines]
        if lines:
            self.host.news(faults=self.faults[-100:], lines=list(lines))

    def tell(self, recorder: Recorder, done: bool = False, **more: Any) -> None:
        """Tell how far the run is, with a line about the round that is `done`."""
        shown, times = recorder.curves.shown() if recorder.rounds else {}, recorder.round_times
        words = ", ".join(f"{name} {value}" for name, value in shown.items())
        line = [f"round {recorder.rounds}/{self.job.rounds}: {words}, {times[-1]:.3g} s"] if done else []
        known = {"participants": recorder.participants, "round_times": times, "lines": line}
        self.host.news(rounds=recorder.rounds, shown=shown, **known, **more)

    def save_state(self, checkpoints: Checkpoints, index: int, state: dict[str, Any]) -> None:
        """Write a checkpoint after round `index`, or note why not."""
        try:
            checkpoints.save(index, state)
        except CheckpointError as failure:
            self.note(f"{self.name} did not save round {index + 1}: {failure}")
        else:
            self.host.news(saved=index + 1)

    def save(self) -> None:
        """Write events, and what was recorded."""
        self.log.save(self.folder / f"events-{self.rank}.json")
        if self.job.record:
            torch.save(self.recorded, self.folder / f"messages-{self.rank}.pt")


def _detached(content: Any) -> Any:
    """Return a content's first tensor, or all of them, as they were when they crossed."""
    if isinstance(content, torch.Tensor):
        return content.detach().cpu().clone()
    if isinstance(content, dict):
        content = tuple(content.values())
    return tuple(map(_detached, content)) if isinstance(content, tuple | list) else None


def agreed(job: Job, *, saved: bool = False) -> dict[str, str]:
    """Return what all processes of a run must have been started with, or it and what it `saved`, as short texts."""
    own = _NOT_SAVED if saved else _OWN
    return {name: _short(value) for name, value in job.to_dict().items() if name not in own}


def _program(job: Job) -> dict[str, Any]:
    """Return what stands behind the names of model, optimizer and loss, see `program_of`."""
    model = job.build_model()
    return program_of(model, {job.optimizer: optimizer_of(model, job.optimizer_maker())}, job.loss_function())


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= _LONG else hashlib.sha256(text.encode()).hexdigest()[:16]
