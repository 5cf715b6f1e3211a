"""A client process: it keeps its data and its part of the model, and does what the server commands."""

from functools import cached_property
from typing import Any

import numpy as np
import torch

from psl.distributed.job import OF_SAMPLES
from psl.distributed.place import Place
from psl.distributed.segments import Segments
from psl.distributed.wire.links import START
from psl.distributed.wire.messages import Kind, ProtocolError, described
from psl.distributed.wire.streams import connect
from psl.errors import CheckpointError, expected
from psl.models.values import call
from psl.training.defences import Defence
from psl.training.devices import Upload
from psl.training.evaluation import rows_at_a_time, test_batches
from psl.training.messages import split_rows
from psl.training.scores import Mean
from psl.training.seeds import seed_computation, seed_evaluation


class Client:
    """The device's half of a framework, behind a link to the server.

    Args:
        place: this process.
    """

    def __init__(self, place: Place):
        self.place, self.number = place, place.rank - 1
        job = self.job = place.job
        self.segments = Segments(place.compute(place.name, self.number, lambda kind, number: self._n_samples(number)))
        self.run = job.prepare(self.number, self.segments)
        self.torch_device = torch.device(job.device)
        self.samples, self.tests = job.open_samples(self.run.model, self.torch_device, self.run.config)
        self.sampler = job.samplers(self.samples)[self.number]
        self.defence = job.defence or Defence()
        self.device: Any = self.run.device(0, self.number, self._draw, self._seed)
        self.index = 0
        self.checkpoints = place.checkpoints(f"client-{self.number}", **{"hash of the data": self.digest})
        transferred = place.star_transfer(self.number)
        self.link = place.link(0, transferred)
        own_band = job.emulation is not None and job.emulation.broadcast is not None and job.emulation.links == "kernel"
        self.broadcasts = place.link(0, transferred) if own_band else self.link

    def attend(self) -> None:
        """Connect, then obey until the server says stop.

        Raises:
            ChannelError, ProtocolError: the server is gone, refuses, or says something unexpected.
            CheckpointError: the server's round cannot be continued from.
        """
        _, labels = self.samples.fetch(np.array([0, 0]))
        data = {"digest": self.digest, "samples": len(self.sampler.indices), "tests": len(self.tests)}
        data |= {"rows": rows_at_a_time(self.tests.numbers), "label": described(labels)}
        data |= {name: getattr(self.job, name) for name in OF_SAMPLES}
        options = {"server": 0, "timeout": self.job.timeout}
        servers, hello = self.place.host.servers, self.place.hello(data=data)
        connect(self.link, servers[0], self.place.keys, hello, **options)
        if self.broadcasts is not self.link:
            connect(self.broadcasts, servers[1], self.place.keys, hello | {"plane": 1}, **options)
        self.place.log.offset = self.link.offset
        obey = {
            "train": self.train, "parts": self.parts,
            "alone": self.alone, "give": self.give, "take": self.take, "evaluate": self.evaluate,
            "report": self.report, "size": self.size, "save": self.save, "load": self.load,
        }  # fmt: skip
        while True:
            step, word = self._command()
            do = word.get("do")
            if do == "stop":
                torch.save(self.device.state_dict(), self.place.folder / f"client-{self.number}.pt")
                self.link.send(Kind.REPORT, step)
                self.link.flush()
                return
            if do not in obey:
                fix = "let both ends run the same version of psl"
                raise expected("command", f"one of {', '.join(obey)}", do, fix, ProtocolError)
            self.index = step // self.job.steps if do in ("train", "parts", "alone") else step
            self.place.log.round = self.index if do in ("train", "parts", "alone", "give", "take") else -1
            obey[do](step, word)

    def _command(self) -> tuple[int, dict[str, Any]]:
        message = self.link.recv_any(Kind.COMMAND)
        return message.step, message.word

    def _n_samples(self, number: int) -> int:
        if self.job.sampling == "own":
            return self.job.samples_of(number)
        return len(self._rows(number))

    def _rows(self, step: int) -> np.ndarray:
        return self.sampler.batch(self.index * self.job.steps + step)

    def _draw(self, client: int, step: int):
        batch = self.samples.fetch(self._rows(step))
        self.segments.switch("forward")
        return batch

    def _seed(self, party, client: int, step: int) -> None:
        seed_computation(self.job.seed, self.index, self.torch_device, party, client, step)

    def train(self, number: int, word: dict) -> None:
        """Take a local step together with the server."""
        step = number % self.job.steps
        with self.segments("", step):
            sent = self.device.forward(step)
        self._send(number, sent)
        if self.job.u_shaped:
            self._turn(number, step)
        answer = self._answer(number)
        with self.segments("backward", step):
            self.device.backward(step, *answer)

    def _turn(self, number: int, step: int) -> None:
        """Take the server's features through the tail of a U-shaped split."""
        features = self.link.recv(Kind.ACTIVATION, number)
        with self.segments("forward", step):
            loss, gradient = self.device.turn(step, self._placed(features.content), features.word["needed"])
        self.link.send(Kind.LOSS, number, loss.double())
        self.link.send(Kind.GRADIENT, number, gradient)

    def parts(self, number: int, word: dict) -> None:
        """Take a local step together with the server, in micro-batches."""
        step, n_micro = number % self.job.steps, self.job.parts
        uploads = self.device.parts(step, self.job.samples_of(0))
        for k in range(n_micro):
            with self.segments("forward" if k else "", step * n_micro + k):
                sent = next(uploads)
            self._send(number * n_micro + k, sent)
        for k in range(n_micro):
            shared, own, _ = self._answer(number * n_micro + k)
            with self.segments("backward", step * n_micro + k):
                self.device.part_backward(k, shared, own)
                if k + 1 == n_micro:
                    self.device.finish()

    def _send(self, number: int, sent: Upload) -> None:
        if sent.labels is not None:
            self.link.send(Kind.LABELS, number, sent.labels)
        self.link.send(Kind.ACTIVATION, number, self.defence.packed(sent.smashed))
        self.link.send(Kind.REPORT, number, needed=sent.needed)

    def _answer(self, number: int) -> tuple[Any, Any, Any]:
        """Receive gradients that all clients share, own ones, and which rows were drawn."""
        shared = None
        if self.job.n_aggregated:
            shared = self.broadcasts.recv(Kind.BROADCAST, number).content
            if self.broadcasts is not self.link:  # the server's word to this client alone comes after, in the same band
                self.broadcasts.send(Kind.REPORT, number)
        return self._placed((shared, *self.link.recv(Kind.GRADIENT, number).content))

    def alone(self, number: int, word: dict) -> None:
        """Take a local step of the whole model."""
        step = number % self.job.steps
        with self.segments("", step):
            loss = self.device.train_alone(step)
        self.link.send(Kind.LOSS, number, loss.double())

    def give(self, index: int, word: dict) -> None:
        """Send this device's part of the model."""
        self.link.send(Kind.MODEL, index, tuple(self.device.give()))

    def take(self, index: int, word: dict) -> None:
        """Receive this device's part of the model."""
        link, kind = (self.broadcasts, Kind.BROADCAST) if word.get("broadcast") else (self.link, Kind.MODEL)
        self.device.take(self._placed(link.recv(kind, index).content))

    def evaluate(self, index: int, word: dict) -> None:
        """Send the test data through this device's part to the server; in a U-shape tell the score of what returns."""
        mean = Mean()
        self.run.train(False)
        with torch.inference_mode():
            for k, rows in enumerate(test_batches(len(self.tests), rows_at_a_time(self.tests.numbers))):
                seed_evaluation(self.job.seed, index, self.torch_device, batch=k)
                inputs, labels = self.tests.fetch(rows)
                if word["number"]:
                    seed_evaluation(self.job.seed, index, self.torch_device, model=word["number"], batch=k)
                outputs = self.defence.sent(call(self.device.stage.module, inputs))
                size = word["rows"]
                parts = [outputs] if size >= len(rows) else split_rows(outputs, size)
                for some_labels, part in zip(labels.split(size), parts, strict=True):
                    if not self.job.u_shaped:
                        self.link.send(Kind.TEST_LABELS, index, some_labels)
                        self.link.send(Kind.TEST_ACTIVATION, index, part)
                    else:
                        self.link.send(Kind.TEST_ACTIVATION, index, part)
                        features = self._placed(self.link.recv(Kind.TEST_ACTIVATION, index).content)
                        mean.add(self.run.config.metric(self.device.tail.module(features), some_labels))
        if self.job.u_shaped:
            self.link.send(Kind.REPORT, index, score=mean.value)
        self.run.train(True)

    def size(self, number: int, word: dict) -> None:
        """Tell the server how many samples this client has in a mini-batch that is drawn from all clients' data."""
        self.link.send(Kind.REPORT, number, size=len(self.sampler.batch(number)))

    def report(self, index: int, word: dict) -> None:
        """Tell the server that everything before is done."""
        self.link.send(Kind.REPORT, index)

    def save(self, index: int, word: dict) -> None:
        """Write a checkpoint after round `index`, and report, or say why not."""
        why = ""
        if self.checkpoints is not None:
            try:
                self.checkpoints.save(index, self.run.state_dict())
            except CheckpointError as failure:
                why = str(failure)
        self.link.send(Kind.REPORT, index, failed=why)

    def load(self, index: int, word: dict) -> None:
        """Continue from the newest checkpoint that is not newer than a round, and report which that was.

        Raises:
            CheckpointError: it is of another run or other data; the server was told.
        """
        try:
            found = None if self.checkpoints is None else self.checkpoints.load(None if word.get("newest") else index)
        except CheckpointError as failure:
            self.link.send(Kind.REPORT, index, refused=str(failure))
            self.link.wait_closed(START)
            raise
        if found is not None:
            self.run.load_state_dict(found[1])
        notes = [] if self.checkpoints is None else self.checkpoints.notes
        self.link.send(Kind.REPORT, index, loaded=None if found is None else found[0], notes=notes)

    def _placed(self, content: Any) -> Any:
        if isinstance(content, torch.Tensor):
            return content.to(self.torch_device)
        return tuple(map(self._placed, content)) if isinstance(content, tuple | list) else content

    @cached_property
    def digest(self) -> str:
        """What names the data."""
        return f"{self.samples.digest()} training, {self.tests.digest()} test"


def attend(place: Place) -> None:
    """Be a client."""
    client = Client(place)
    try:
        client.attend()
        client.link.wait_closed(START)
    except BaseException as failure:
        if client.link.failure is None:
            client.link.close(f"{type(failure).__name__}: {failure}"[:300])
            client.link.wait_closed(3.0)
        raise
