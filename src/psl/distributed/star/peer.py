"""One client as the server sees it: commands, and the messages of a step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from psl.distributed.job import Job
from psl.distributed.star.client import DESCRIBED, HELLO, LOADED, Command
from psl.distributed.wire.exchange import receive_model, send_model
from psl.distributed.wire.messages import Kind, ProtocolError, dtype_of
from psl.distributed.wire.transport import Channel
from psl.errors import CheckpointError, expected
from psl.models.runs import meta_copy
from psl.training.evaluation import test_batches

_MOST = 2**31  # samples, and numbers in a sample: who claims more would exhaust the memory


@dataclass(frozen=True)
class Hello:
    """What a client says of its data: numbers and sizes, no data.

    Args:
        n_samples, n_tests: samples to train on and to test with.
        input_dtype, example, label_dtype, label_shape: of one sample.
    """

    n_samples: int
    n_tests: int
    input_dtype: torch.dtype
    example: tuple[int, ...]
    label_dtype: torch.dtype
    label_shape: tuple[int, ...]

    @classmethod
    def read(cls, numbers: Sequence[int], job: Job, name: str) -> "Hello":
        """Return what the numbers say.

        Raises:
            ProtocolError: impossible sizes, or a client that was started with other arguments.
        """
        n_samples, n_tests, *rest = numbers
        *described, a, b, c, d = rest
        if [a, b, c, d] != job.digest():
            fix = "start server and clients with the same arguments"
            raise expected(name, "a client of this run", "one with other arguments", fix, ProtocolError)
        values = []
        for code, n_dims, *sizes in (described[:DESCRIBED], described[DESCRIBED:]):
            possible = 0 <= n_dims <= len(sizes) and min(n_samples, n_tests, *sizes) >= 0 and n_samples > 0
            if not possible or max(n_samples, n_tests, math.prod(sizes[:n_dims])) > _MOST:
                raise expected(name, "sizes of its data", list(numbers), "let both ends run psl", ProtocolError)
            values += [dtype_of(code), tuple(sizes[:n_dims])]
        return cls(n_samples, n_tests, *values)


class Peer:
    """A client behind its channel.

    Args:
        number: of the client.
        job: the run.
        channel: to it.
        broadcasts: where broadcasts go, default the same channel.

    Attributes:
        hello: what it said of its data.
        failed: why it was given up, None if it was not.
    """

    def __init__(self, number: int, job: Job, channel: Channel, broadcasts: Channel | None = None):
        self.number, self.job, self.channel, self.broadcasts = number, job, channel, broadcasts or channel
        self.failed: Exception | None = None
        numbers = channel.recv(Kind.HELLO, 0, (HELLO,), torch.int64).tolist()
        try:
            self.hello = Hello.read(numbers, job, f"client {number}")
        except ProtocolError:
            self.close()
            raise
        self._row: tuple[tuple[int, ...], torch.dtype] | None = None  # of the activations
        self._outputs: tuple[int, ...] | None = None  # shape of a row of the server's
        self._loss = job.loss_function()

    def expect(self, device: torch.nn.Module, server: torch.nn.Module | None) -> None:
        """Find shapes and dtype of a row of activations and of outputs, by the layers on the meta device.

        Args:
            device, server: their layers; None where the device has them all.

        Raises:
            ProtocolError: the model does not take samples of the shape that the client said.
        """
        hello = self.hello
        try:
            with torch.no_grad():
                row = torch.empty(2, *hello.example, dtype=hello.input_dtype, device="meta")
                row = meta_copy(device).eval()(row)
                self._row = tuple(row.shape[1:]), row.dtype
                if server is not None:
                    self._outputs = tuple(meta_copy(server).eval()(row).shape[1:])
        except Exception as cause:  # a model may raise anything
            got = f"{hello.input_dtype} of shape {hello.example}: {str(cause)[:160]}"
            fix = "let the client's data fit the model"
            raise expected(f"client {self.number}", "samples that the model takes", got, fix, ProtocolError) from cause

    def command(self, what: Command, index: int, argument: int = 0) -> None:
        """Tell the client what to do."""
        self.channel.send(Kind.COMMAND, 0, torch.tensor([what, index, argument], dtype=torch.int64))

    def batch(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Receive activations and labels of step `number`; labels that the loss does not take are refused here."""
        return self._batch(Kind.LABELS, Kind.ACTIVATION, number, self.job.batch_size, self._try_loss)

    def gradients(self, number: int, shared: torch.Tensor | None, own: torch.Tensor) -> None:
        """Send the gradients of step `number`: those that all clients share, if any, then its own."""
        if shared is not None:
            self.broadcasts.send(Kind.BROADCAST, number, shared)
            if self.broadcasts is not self.channel:  # two links stand for one band: first the one, then the other
                self.broadcasts.recv(Kind.REPORT, number, (1,))
        self.channel.send(Kind.GRADIENT, number, own)

    def losses(self, index: int) -> torch.Tensor:
        """Receive the losses of a round's local steps from a device that holds the whole model."""
        return self.channel.recv(Kind.LOSS, index, (self.job.steps,), None)

    def give(self, index: int, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Ask for the client's part of the model."""
        self.command(Command.GIVE, index)
        return receive_model(self.channel, Kind.MODEL, index, like)

    def take(self, index: int, tensors: Sequence[torch.Tensor], broadcast: bool = False) -> None:
        """Send the client its part of the model."""
        self.command(Command.TAKE, index, int(broadcast))
        channel, kind = (self.broadcasts, Kind.BROADCAST) if broadcast else (self.channel, Kind.MODEL)
        send_model(channel, kind, index, tensors)

    def test_batches(self, index: int):
        """Ask for the test data as activations; yields them with their labels."""
        self.command(Command.EVALUATE, index)
        for rows in test_batches(self.hello.n_tests):
            yield self._batch(Kind.TEST_LABELS, Kind.TEST_ACTIVATION, index, len(rows))

    def report(self, index: int) -> None:
        """Wait until the client has done everything it was told."""
        self.command(Command.REPORT, index)
        self.acknowledged(index)

    def acknowledged(self, index: int) -> None:
        """Receive the client's word that it is done."""
        self.channel.recv(Kind.REPORT, index, (1,))

    def load(self, index: int) -> None:
        """Let the client continue from its checkpoint after round `index`.

        Raises:
            CheckpointError: it cannot; with its reason.
        """
        self.command(Command.LOAD, index)
        words = bytes(self.channel.recv(Kind.REPORT, index, (LOADED,), torch.uint8).tolist()).rstrip(b"\0")
        if words:
            said = "".join(c if c.isprintable() else " " for c in words.decode(errors="replace"))
            raise CheckpointError(f"client {self.number}: {said}")

    def close(self) -> None:
        """Close its channels."""
        self.channel.close()
        self.broadcasts.close()

    def _try_loss(self, labels: torch.Tensor) -> None:
        try:
            self._loss(torch.zeros(len(labels), *self._outputs), labels)
        except Exception as cause:  # in the step of all clients it would end them all
            self.close()
            got, fix = str(cause)[:160], "let the client's data fit the model and the loss"
            raise expected(f"client {self.number}", "labels that the loss takes", got, fix, ProtocolError) from cause

    def _batch(self, labels_kind, kind, number, n_rows, check=None):
        shape, dtype = self._row
        hello, device = self.hello, self.job.device
        labels = self.channel.recv(labels_kind, number, (n_rows, *hello.label_shape), hello.label_dtype)
        if check is not None:
            check(labels)
        smashed = self.channel.recv(kind, number, (n_rows, *shape), dtype)
        return smashed.to(device), labels.to(device)
