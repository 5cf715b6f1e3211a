"""A client process: it keeps its data and its part of the model, and does what the server commands."""

import enum
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from psl.distributed.events import EventLog
from psl.distributed.job import Job
from psl.distributed.segments import Segments
from psl.distributed.state import load_state, newest_round, save_state
from psl.distributed.wire.exchange import receive_model, send_model
from psl.distributed.wire.messages import Kind, ProtocolError, dtype_code
from psl.distributed.wire.transport import Channel
from psl.errors import CheckpointError, expected
from psl.training.communication import exchanged
from psl.training.evaluation import test_batches
from psl.training.frameworks.local_training import copy_into
from psl.training.frameworks.split_step import device_backward, device_forward
from psl.training.partition import partition as divide
from psl.training.sampling import Sampler
from psl.training.seeds import seed_computation, seed_evaluation
from psl.training.stage import full_step


class Command(enum.IntEnum):
    """What the server may ask of a client."""

    TRAIN = 1  # argument: the local step, −1 for all
    GIVE = 2  # send the model
    TAKE = 3  # receive the model; argument 1: it comes as a broadcast
    EVALUATE = 4
    REPORT = 5  # say that all is done
    SAVE = 6
    LOAD = 7
    STOP = 8


#: Numbers of a command: what, round, argument.
COMMAND = 3
#: Bytes in which a client says whether it loaded its checkpoint: zeros, or why it did not.
LOADED = 512
#: Numbers that describe a tensor in a hello: dtype, dimensions, sizes.
DESCRIBED = 8
#: Numbers of a hello; see `Client.hello`.
HELLO = 2 + 2 * DESCRIBED + 4


class Client:
    """The device's half of a framework, behind a channel.

    Args:
        job: the run.
        number: of this client.
        compute: context of computations, called with kind and number; `psl.distributed.edge.emulate.Compute`.
        log: where events go.
        checkpoint: folder of its checkpoints, None for none.
    """

    def __init__(self, job: Job, number: int, compute, log: EventLog, checkpoint: Path | None = None):
        self.job, self.number, self.log, self.checkpoint = job, number, log, checkpoint
        self.segments = Segments(compute)
        self.run = job.prepare(number, self.segments)
        (self.device,) = self.run.devices
        self.samples, self.tests = job.open_samples(self.run.model, torch.device(job.device), self.run.config)
        shares = divide(
            job.partition, len(self.samples), job.n_clients, labels=self.samples.labels, minimum=job.batch_size,
            seed=job.seed,
        )  # fmt: skip
        self.sampler = Sampler(shares[number], job.batch_size, job.seed, number)
        self.whole = job.holds_all(self.run)
        self.part = exchanged(self.device.module)
        self.n_agg = job.n_aggregated

    def hello(self) -> torch.Tensor:
        """Return what the server must know of this client, as (HELLO,) whole numbers.

        Its number of samples and of test samples, dtype and shape of inputs and labels, and the job's digest.
        """
        inputs, labels = self.samples.fetch(np.array([0]))
        numbers = [len(self.sampler.indices), len(self.tests), *_described(inputs), *_described(labels)]
        return torch.tensor([*numbers, *self.job.digest()], dtype=torch.int64)

    def serve(self, channel: Channel, broadcasts: Channel | None, result: Path) -> None:
        """Say hello, then obey until the server says stop.

        Args:
            channel: to the server.
            broadcasts: where broadcasts arrive, None for the same channel.
            result: file for this client's part of the trained model.

        Raises:
            ChannelError, ProtocolError: the server is gone, or says something unexpected.
        """
        self.channel, self.broadcasts = channel, broadcasts or channel
        channel.send(Kind.HELLO, 0, self.hello())
        obey = {
            Command.TRAIN: self.train, Command.GIVE: self.give, Command.TAKE: self.take,
            Command.EVALUATE: self.evaluate, Command.REPORT: self.report, Command.SAVE: self.save,
            Command.LOAD: self.load,
        }  # fmt: skip
        while True:
            what, index, argument = channel.recv(Kind.COMMAND, 0, (COMMAND,), torch.int64).tolist()
            if what == Command.STOP:
                torch.save(self.device.module.state_dict(), result)
                self.report(index, argument)
                channel.flush()
                return
            if what not in obey:
                fix = "let both ends run the same version of psl"
                raise expected("command", f"one of 1..{len(Command)}", what, fix, ProtocolError)
            self.log.round = index if what in (Command.TRAIN, Command.GIVE, Command.TAKE) else -1
            obey[what](index, argument)

    def train(self, index: int, step: int) -> None:
        """Take one local step of a round; all of them if `step` is negative."""
        losses = [self.step(index, k) for k in (range(self.job.steps) if step < 0 else [step])]
        if self.whole:
            self.channel.send(Kind.LOSS, index, torch.stack(losses))

    def step(self, index: int, k: int) -> torch.Tensor | None:
        """Take one local step; returns its loss if this device holds the whole model, else None."""
        job, channel, number = self.job, self.channel, index * self.job.steps + k
        seed_computation(job.seed, index, torch.device(job.device), "device", self.number, k)
        inputs, labels = self.samples.fetch(self.sampler.batch(number))
        if self.whole:
            with self.segments("forward", k):
                return full_step(self.device, (inputs, labels), self.run.config.loss)
        with self.segments("forward", k):
            smashed = device_forward(self.device, inputs)
        channel.send(Kind.LABELS, number, labels)
        channel.send(Kind.ACTIVATION, number, smashed)
        rows, *rest = smashed.shape
        shared = None
        if self.n_agg:
            shared = self.broadcasts.recv(Kind.BROADCAST, number, (self.n_agg, *rest), smashed.dtype).to(job.device)
            if self.broadcasts is not channel:  # the server's word to this client alone comes after, in the same band
                self.broadcasts.send(Kind.REPORT, number, torch.zeros(1))
        own = channel.recv(Kind.GRADIENT, number, (rows - self.n_agg, *rest), smashed.dtype).to(job.device)
        with self.segments("backward", k):
            device_backward(self.device, shared, own)
        return None

    def give(self, index: int, argument: int) -> None:
        """Send this device's part of the model."""
        send_model(self.channel, Kind.MODEL, index, self.part)

    def take(self, index: int, argument: int) -> None:
        """Receive this device's part of the model; as a broadcast with argument 1."""
        channel, kind = (self.broadcasts, Kind.BROADCAST) if argument else (self.channel, Kind.MODEL)
        copy_into(self.part, receive_model(channel, kind, index, self.part))

    def evaluate(self, index: int, argument: int) -> None:
        """Send the test data through this device's part to the server."""
        self.run.train(False)
        seed_evaluation(self.job.seed, index, torch.device(self.job.device))
        with torch.inference_mode():
            for rows in test_batches(len(self.tests)):
                inputs, labels = self.tests.fetch(rows)
                self.channel.send(Kind.TEST_LABELS, index, labels)
                self.channel.send(Kind.TEST_ACTIVATION, index, self.device.module(inputs))
        self.run.train(True)

    def report(self, index: int, argument: int) -> None:
        """Tell the server that everything before is done."""
        self.channel.send(Kind.REPORT, index, torch.zeros(1))

    def save(self, index: int, argument: int) -> None:
        """Write a checkpoint after round `index`, keep the one before, and report."""
        state = self.run.state_dict()
        save_state(self.checkpoint, f"client-{self.number}", index, self.job, state, self._digest)
        self.report(index, 0)

    def load(self, index: int, argument: int) -> None:
        """Continue from the checkpoint after round `index`, and say so.

        Raises:
            CheckpointError: it cannot, and has told the server why.
        """
        failure = None
        try:
            self._load(index)
        except CheckpointError as cause:
            failure = cause
        words = str(failure or "").encode()[:LOADED].ljust(LOADED, b"\0")
        self.channel.send(Kind.REPORT, index, torch.frombuffer(bytearray(words), dtype=torch.uint8))
        if failure is not None:
            self.channel.flush()
            raise failure

    def recover(self) -> None:
        """Continue from this client's newest checkpoint, if it has one."""
        newest = newest_round(self.checkpoint, f"client-{self.number}")
        if newest is not None:
            self._load(newest)

    def _load(self, index):
        state = load_state(self.checkpoint, f"client-{self.number}", index, self.job, self._digest)
        self.run.load_state_dict(state)

    @cached_property
    def _digest(self):
        return f"{self.samples.digest()} training, {self.tests.digest()} test"


def _described(tensor: torch.Tensor) -> list[int]:
    """Dtype and shape without the batch dimension, as DESCRIBED numbers."""
    shape = tensor.shape[1:]
    return [dtype_code(tensor.dtype), len(shape), *shape, *[0] * (DESCRIBED - 2 - len(shape))]
