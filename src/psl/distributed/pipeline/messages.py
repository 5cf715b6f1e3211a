"""What the processes of a pipeline tell each other around a mini-batch, each message with a checked header."""

import enum
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from psl.distributed.pipeline.job import PipelineJob
from psl.distributed.wire.messages import (
    HEADER,
    ChannelError,
    Header,
    Kind,
    Layout,
    ProtocolError,
    check_header,
    checksum,
)
from psl.errors import expected

_TAG = 1  # micro-batches have torch's own
_LONG = 200  # characters; longer values are compared by a hash


class Order(enum.IntFlag):
    """What all processes do after a round, as the first one says in the round's header."""

    NOTHING = 0
    SHOW = 1  # send the first process your layers
    SAVE = 2
    END = 4


class Partner:
    """Another process of the run, as the default group reaches it; sends and receives as `Channel` does.

    Tensors cross in the CPU's memory, whatever the device. Nothing is unpickled.

    Args:
        rank: of the other process.
        record: called with "out" or "in", the kind's name, the step and the tensor of everything that crosses.
    """

    def __init__(self, rank: int, record: Callable | None = None):
        self.rank = rank
        self._record = record or (lambda way, kind, step, tensor: None)

    def send(self, kind: Kind, step: int, tensor: torch.Tensor) -> None:
        """Send a tensor."""
        payload = tensor.detach().cpu().contiguous()
        self._announce(kind, step, payload.dtype, tuple(payload.shape), checksum(payload))
        if payload.numel():
            dist.send(payload, self.rank, tag=_TAG)
        self._record("out", kind.name.lower(), step, payload)

    def recv(self, kind: Kind, step: int, shape: tuple[int | None, ...], dtype=torch.float32) -> torch.Tensor:
        """Receive the tensor that must come next; raises `ProtocolError` if its header says something else."""
        header, _ = self.hear(kind, step, shape, dtype)
        payload = torch.empty(header.shape, dtype=header.dtype)
        if payload.numel():
            dist.recv(payload, self.rank, tag=_TAG)
        header.check_payload(payload)
        self._record("in", kind.name.lower(), step, payload)
        return payload

    def tell(self, kind: Kind, step: int, shape: tuple[int, ...], word: int = 0) -> None:
        """Send a header alone, of what is going to cross as float32, and a word with it."""
        self._announce(kind, step, torch.float32, shape, word)

    def hear(self, kind: Kind, step: int, shape: tuple[int | None, ...], dtype=torch.float32) -> tuple[Header, int]:
        """Receive a header and check it; returns it with the word that came with it."""
        numbers = torch.empty(HEADER, dtype=torch.int64)
        dist.recv(numbers, self.rank, tag=_TAG)
        self._record("in", "header", step, numbers)
        header = check_header(numbers, kind, step, shape, dtype)
        return header, header.checksum

    def _announce(self, kind, step, dtype, shape, word):
        numbers = Header(
            kind=kind, step=step, sent=time.monotonic_ns(), checksum=word, dtype=dtype, layout=Layout.CONTIGUOUS,
            shape=shape,
        ).pack()  # fmt: skip
        dist.send(numbers, self.rank, tag=_TAG)
        self._record("out", "header", step, numbers)


def begin_round(
    index: int, order: Order, sizes: Sequence[int], ends: Sequence[tuple[int, ...]], before: Partner | None,
    behind: Partner | None,
) -> Order:  # fmt: skip
    """Agree with both neighbours on what a round will send, and hear the first process's order.

    A header goes from the first process to the last and back, so that when this returns in the first one, all are
    ready. It says how many micro-batches there will be, of how many samples, and the shape and type of a sample.

    Args:
        index: of the round.
        order: of the first process; the others' is not used.
        sizes: samples of each micro-batch.
        ends: shapes of a sample that comes in and that goes out.
        before, behind: the neighbours, None at the ends of the path.

    Raises:
        ProtocolError: a neighbour is about to send or to expect something else.
    """
    come, go = ((len(sizes), sizes[0], sizes[-1], *end) for end in ends)
    if before is not None:
        _, word = before.hear(Kind.ACTIVATION, index, come)
        order = Order(word)
    if behind is not None:
        behind.tell(Kind.ACTIVATION, index, go, order)
        behind.hear(Kind.GRADIENT, index, go)
    if before is not None:
        before.tell(Kind.GRADIENT, index, come)
    return order


def agree(store: dist.Store, job: PipelineJob, rank: int, patience: float) -> None:
    """Tell all processes of the run what this one was started with, and refuse to run beside one with something else.

    Args:
        store: where they meet.
        job: the run, as this process knows it.
        rank: of this process.
        patience: s to wait for the others.

    Raises:
        ProtocolError: another process has another run, with what differs.
        ChannelError: one did not come.
    """
    own = {name: _short(value) for name, value in job.agreed().items()}
    store.set(f"job {rank}", json.dumps(own))
    for other, name in enumerate(job.names):
        theirs = json.loads(wait_for(store, f"job {other}", name, patience))
        for key in own | theirs:
            if own.get(key) != theirs.get(key):
                fix = "start all processes with the same arguments"
                want, got = f"{key} {own.get(key)}", f"{theirs.get(key)}"
                raise expected(name, f"{want} as in {job.names[rank]}", got, fix, ProtocolError)


def wait_for(store: dist.Store, key: str, name: str, patience: float) -> bytes:
    """Return what another process left in the store; raises `ChannelError` with its name if nothing comes."""
    try:
        store.wait([key], timedelta(seconds=patience))
        return store.get(key)
    except RuntimeError as cause:
        fix = "start it, and let all processes reach each other"
        raise expected(name, f"a process within {patience:g} s", "none", fix, ChannelError) from cause


def _short(value) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= _LONG else hashlib.sha256(text.encode()).hexdigest()
