"""Clients in other processes, as the server's round sees them: they answer to the calls of `psl.training.devices`."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from psl.distributed.job import Job
from psl.distributed.wire.links import START, Link
from psl.distributed.wire.messages import ChannelError, Kind, ProtocolError, check_like
from psl.errors import expected, first_line
from psl.training.defences import Defence
from psl.training.devices import Devices, Upload
from psl.training.evaluation import rows_at_a_time
from psl.training.messages import each, entries, numbers_of, part_sizes, rows
from psl.training.scores import Mean

_DEADLINE = 20  # timeouts until a client that is alive must have answered


class RemoteDevice:
    """A client behind its link.

    Args:
        number: of the client.
        job: the run.
        link: to it.
        broadcasts: where broadcasts go; default the same link.
        like: its activations and labels and the server's outputs for two samples, each of which may be None.
        part: tensors of its part of the model that travel.

    Attributes:
        index: of the round.
    """

    def __init__(self, number: int, job: Job, link: Link, broadcasts: Link | None, like: dict[str, Any], part: list):
        self.number, self.job, self.link, self.broadcasts = number, job, link, broadcasts or link
        self.data, self._like, self._part, self.index = link.hello["data"], like, part, 0
        self._step = 0  # of those in micro-batches
        self._size = job.batch_size  # of the next mini-batch
        self._loss, self._patience, self._defence = (
            job.loss_function(),
            _DEADLINE * job.timeout,
            job.defence or Defence(),
        )
        self._packed = None if like["activations"] is None else self._defence.packed(like["activations"])

    @property
    def failure(self) -> Exception | None:
        """Why a link to it has ended; None while both are open."""
        return self.link.failure or self.broadcasts.failure

    def command(self, do: str, step: int, **word: Any) -> None:
        """Tell the client what to do."""
        self.link.send(Kind.COMMAND, step, do=do, **word)

    def receive(self, kind: Kind, step: int, like: Any, n_rows: int | None = None) -> Any:
        """Return the content that must come next, of a form that is known; on the job's device."""
        content = self.link.recv(kind, step, self._patience).content
        try:
            check_like(f"client {self.number}: {kind.name.lower()}", content, like, n_rows)
        except ProtocolError as failure:
            self.close(failure)
            raise
        return each(lambda tensor: tensor.to(self.job.device), content)

    def forward(self, step: int) -> Upload:
        """Let the client start a local step, and return what it sends."""
        number = self.index * self.job.steps + step
        self.command("train", number)
        return self._upload(number, self._size)

    def size(self, step: int) -> int:
        """Ask how many samples the client has in a mini-batch that is drawn from the data of all clients."""
        size, everyone = self.ask("size", self.index * self.job.steps + step).get("size"), sum(self.job.sizes)
        if not isinstance(size, int) or not 0 <= size <= everyone:
            failure = expected(
                f"client {self.number}", f"0 to {everyone} samples", str(size)[:40], "let it run psl", ProtocolError
            )
            self.close(failure)
            raise failure
        self._size = size
        return size

    def _upload(self, number: int, size: int) -> Upload:
        labels = None
        if not self.job.u_shaped:
            labels = self.receive(Kind.LABELS, number, self._like["labels"], size)
            self._try_loss(labels)
        packed = self.receive(Kind.ACTIVATION, number, self._packed, size)
        smashed = self._defence.unpacked(packed, self._like["activations"])
        needed = self.link.recv(Kind.REPORT, number, self._patience).word.get("needed")
        if not isinstance(needed, list) or len(needed) != len(entries(smashed)):
            failure = expected(
                f"client {self.number}", "which gradients it needs", needed, "let it run psl", ProtocolError
            )
            self.close(failure)
            raise failure
        return Upload(smashed, labels, [bool(flag) for flag in needed])

    def turn(self, step: int, features: torch.Tensor, needed: list[bool]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Send features of a U-shaped split, and return the client's loss and the features' gradient."""
        number = self.index * self.job.steps + step
        self.link.send(Kind.ACTIVATION, number, features, needed=needed)
        loss = self.receive(Kind.LOSS, number, torch.zeros((), dtype=torch.float64))
        like = self._like["outputs"] if needed[0] else None
        return loss, self.receive(Kind.GRADIENT, number, like, len(features))

    def backward(self, step: int, shared: Any, own: Any, drawn: torch.Tensor | None = None) -> None:
        """Send the client the gradients: those that all clients share, if any, then its own."""
        self._send_back(self.index * self.job.steps + step, shared, own, drawn)

    def _send_back(self, number: int, shared: Any, own: Any, drawn: torch.Tensor | None = None) -> None:
        n_agg = self.job.n_aggregated
        if shared is None and n_agg:  # one client is left: it aggregates with itself
            shared, own = rows(own, slice(n_agg)), rows(own, slice(n_agg, None))
        if shared is not None:
            self.broadcasts.send(Kind.BROADCAST, number, shared)
            if self.broadcasts is not self.link:  # two links stand for one band: first the one, then the other
                self.broadcasts.recv(Kind.REPORT, number, self._patience)
        self.link.send(Kind.GRADIENT, number, (own, drawn))

    def begin(self, step: int, size: int) -> None:
        """Let the client start a local step in micro-batches, and send them as it has them."""
        self._step = self.index * self.job.steps + step
        self.command("parts", self._step)

    def part(self, k: int) -> Upload:
        """Return what the client sends of micro-batch k."""
        return self._upload(self._step * self.job.parts + k, self.job.samples_of(k))

    def part_backward(self, k: int, shared: Any, own: Any) -> None:
        """Send the client the gradients of micro-batch k, as in `backward`."""
        self._send_back(self._step * self.job.parts + k, shared, own)

    def finish(self) -> None:
        """The client steps by itself, once it has all gradients."""

    def train_alone(self, step: int) -> torch.Tensor:
        """Let the client take a step of the whole model, and return its loss."""
        number = self.index * self.job.steps + step
        self.command("alone", number)
        return self.receive(Kind.LOSS, number, torch.zeros((), dtype=torch.float64))

    def give(self) -> list[torch.Tensor]:
        """Ask for the client's part of the model."""
        self.command("give", self.index)
        return list(self.receive(Kind.MODEL, self.index, tuple(self._part)))

    def take(self, tensors: Sequence[torch.Tensor], *, broadcast: bool = False) -> None:
        """Send the client its part of the model."""
        self.command("take", self.index, broadcast=broadcast)
        link, kind = (self.broadcasts, Kind.BROADCAST) if broadcast else (self.link, Kind.MODEL)
        link.send(kind, self.index, tuple(tensors))

    def score(self, index: int, number: int, server: Callable[[Any], Any], metric: Callable[..., Any]) -> float:
        """Return the test metric of the model of a number; the client sends its test data as activations.

        Args:
            index, number: of the round and of the model.
            server: the server's layers.
            metric: gives one number per row. In a U-shaped split, whose labels stay, the client computes it.
        """
        crossing = ("activations", "outputs") if self.job.u_shaped else ("activations",)
        at_a_time, mean = rows_at_a_time(max(numbers_of(self._like[name]) for name in crossing)), Mean()
        self.command("evaluate", index, number=number, rows=at_a_time)
        for n_samples in part_sizes(self.data["tests"], max(self.data["rows"], 1)):
            for size in part_sizes(n_samples, at_a_time):
                if self.job.u_shaped:
                    self.link.send(Kind.TEST_ACTIVATION, index, server(self._tests(index, size)))
                else:
                    labels = self.receive(Kind.TEST_LABELS, index, self._like["labels"], size)
                    mean.add(metric(server(self._tests(index, size)), labels))
        if not self.job.u_shaped:
            return mean.value
        said = self.link.recv(Kind.REPORT, index, self._patience).word.get("score")
        return said if isinstance(said, float) else float("nan")

    def _tests(self, index: int, size: int) -> Any:
        return self.receive(Kind.TEST_ACTIVATION, index, self._like["activations"], size)

    def ask(self, do: str, index: int, **word: Any) -> dict[str, Any]:
        """Tell the client to do something, and return what it says when it is done."""
        self.command(do, index, **word)
        return self.link.recv(Kind.REPORT, index, max(self._patience, START)).word

    def close(self, reason: Exception | str | None = None) -> None:
        """Tell the client why, and end its links."""
        self.link.close(reason)
        self.broadcasts.close(reason)

    def _try_loss(self, labels: torch.Tensor) -> None:
        """Refuse labels that the loss does not take: in the step of all clients they would end the run."""
        outputs = self._like["outputs"]
        if outputs is None:
            return
        many = each(lambda tensor: tensor[:1].expand(len(labels), *tensor.shape[1:]), outputs)
        try:
            with torch.no_grad():
                self._loss(many, labels)
        except Exception as cause:  # a loss may raise anything
            got, fix = first_line(cause), "let the client's data fit the model and the loss"
            failure = expected(f"client {self.number}", "labels that the loss takes", got, fix, ProtocolError)
            self.close(failure)
            raise failure from cause


class RemoteDevices(Devices):
    """The clients of a server, which act at the same time; one that fails is given up.

    Args:
        n_clients: N.
        note: called with a line about each that was given up.
    """

    def __init__(self, n_clients: int, note: Callable[[str], None]):
        self._pool = ThreadPoolExecutor(n_clients, thread_name_prefix="client")
        self._note, self._lock = note, threading.Lock()
        self.devices: dict[int, RemoteDevice] = {}
        self.lost: set[int] = set()

    @property
    def present(self) -> list[int]:
        """Numbers of the clients that are there, in order."""
        return [i for i in sorted(self.devices) if i not in self.lost]

    def each(self, clients: Iterable[int], action: Callable[[Any], Any]) -> Iterator[tuple[int, Any]]:
        """Do something with several clients at a time; yields the results of those that did not fail, in order."""
        futures = {i: self._pool.submit(action, self.devices[i]) for i in clients if i not in self.lost}
        for i, future in futures.items():
            try:
                result = future.result()
            except (ChannelError, ProtocolError) as failure:
                self.give_up(i, failure)
                continue
            yield i, result

    def give_up(self, client: int, failure: Exception) -> None:
        """Leave a client out until it comes back."""
        with self._lock:
            if client in self.lost:
                return
            self.lost.add(client)
        self.devices[client].close(failure)
        self._note(f"left out {failure}")

    def begin(self, index: int) -> None:
        """Begin a round: those whose link has ended are given up now."""
        for i in self.present:
            device = self.devices[i]
            device.index = index
            if device.failure is not None:
                self.give_up(i, device.failure)

    def close(self) -> None:
        """End all links."""
        for device in self.devices.values():
            device.close()
        self._pool.shutdown()
