"""The server process: it lets clients in, and runs the framework's rounds with those that are there."""

import dataclasses
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from psl.distributed.job import LAYOUTS, OF_SAMPLES
from psl.distributed.place import Place
from psl.distributed.star.half import ServerHalf, no_draw
from psl.distributed.star.remote import RemoteDevice, RemoteDevices
from psl.distributed.wire.links import START, Link
from psl.distributed.wire.messages import ChannelError, ProtocolError, ones_like
from psl.distributed.wire.streams import Listener
from psl.errors import CheckpointError, expected
from psl.training.fingerprint import settings_of
from psl.training.frameworks.base import Round, no_seed
from psl.training.frameworks.local_training import LocalTraining
from psl.training.history import History
from psl.training.recorder import Recorder
from psl.training.seeds import Stream, generator

_OWN_MODELS = ("psl", "epsl")  # every client keeps a model of its own


class Server:
    """The server of a run: a client that fails, or is gone, is left out until it comes back.

    Args:
        place: this process.
    """

    def __init__(self, place: Place):
        self.place, self.job = place, place.job
        self._data: dict[int, dict[str, Any]] = {}  # what each client said of its data
        self.devices = RemoteDevices(self.job.n_clients, place.note)
        self.checkpoints = place.checkpoints("server")
        self._saved_at = time.monotonic()

    def run(self) -> History:
        """Run all rounds and return the history.

        Raises:
            ChannelError: a client did not come, or all are gone.
            CheckpointError: of another run.
        """
        job, host = self.job, self.place.host
        ranks = range(1, job.n_clients + 1)
        options = {"limit": job.limit, "timeout": job.timeout}
        if job.sample is not None:  # else the first client tells
            self._prepare()
        with Listener(self.place.listen, self.place.keys, self._link, self._admit, ranks, **options) as self._listener:
            host.listening(self._listener.port)
            try:
                self._gather()
                for index in range(self._resume(), job.rounds):
                    self._let_in(index)
                    self._round(index)
                    last, stopping = index + 1 == job.rounds, host.stopping.is_set()
                    due = time.monotonic() - self._saved_at >= job.save_every
                    if self.checkpoints is not None and (due or last or stopping):
                        self._save(index)
                    if stopping and not last:
                        break
                self.recorder.finish()
                return self._finish()
            except BaseException as failure:
                for device in self.devices.devices.values():
                    device.close(f"the server ends: {type(failure).__name__}: {failure}")
                raise
            finally:
                self.devices.close()

    # --- who is let in ---

    def _link(self, rank: int, plane: int) -> Link:
        return self.place.link(rank, self.place.star_transfer(rank - 1))

    def _admit(self, word: dict[str, Any]) -> None:
        """Refuse a client of another run or with other data; called in a thread of its own."""
        self.place.check_hello(word)
        rank, data = word["rank"], word.get("data") or {}
        name, fix = f"client {rank - 1}", "start it with the same data"
        data = data if isinstance(data, dict) else {"data": data}
        counts = [data.get(key) for key in ("samples", "tests", "rows", "tensors")]
        if not all(isinstance(n, int) and 0 <= n < 1 << 31 for n in counts) or data.get("layout") not in LAYOUTS:
            raise expected(name, "sizes of its data", str(data)[:80], "let both ends run psl", ProtocolError)
        known = self._data.setdefault(rank, data)
        if known != data:
            raise expected(name, f"the data it had, {_told(known)}", _told(data), fix, ProtocolError)
        first = next(iter(self._data.values()))
        for key in ("digest", "label", *OF_SAMPLES):
            if data.get(key) != first.get(key):
                del self._data[rank]
                want = f"the data of the other clients, {_told(first)}"
                raise expected(
                    name, want, _told(data), "give all the same data set: each takes its share", ProtocolError
                )

    def _gather(self) -> None:
        end = time.monotonic() + START
        for rank in range(1, self.job.n_clients + 1):
            link = self._meet(rank, max(end - time.monotonic(), 0.1))
            if link is None:
                said = f"; {self._listener.refused[-1]}" if self._listener.refused else ""
                fix = "start all clients, with the same arguments"
                got = f"none{said}"
                raise expected(f"client {rank - 1}", f"a connection within {START:g} s", got, fix, ChannelError)
            if self.job.sample is None:
                told = {name: link[0].hello["data"][name] for name in OF_SAMPLES}
                self.job = self.place.job = dataclasses.replace(self.job, **told)
                self._prepare()
            self._welcome(rank, *link)
        sizes = np.array([self._data[rank]["samples"] for rank in range(1, self.job.n_clients + 1)])
        self.half.run.weights = sizes / sizes.sum()

    def _prepare(self) -> None:
        self.half = ServerHalf(self.place)
        self.recorder = Recorder(self.half.run.config, self.half.run.bits, self._evaluate)

    def _meet(self, rank: int, patience: float) -> tuple[Link, Link] | None:
        link = self._listener.meet(rank, patience)
        if link is None or len(self.place.listen) == 1:
            return None if link is None else (link, link)
        link.welcome(self.place.hello()["machine"])
        broadcasts = self._listener.meet(rank, self.job.timeout, plane=1)
        return None if broadcasts is None else (link, broadcasts)

    def _welcome(self, rank: int, link: Link, broadcasts: Link) -> RemoteDevice:
        like = self.half.forms(rank - 1) | {"labels": ones_like(link.hello["data"]["label"])}
        part = [tensor.detach().to("cpu") for tensor in self.half.part(rank - 1)]
        device = RemoteDevice(rank - 1, self.job, link, broadcasts, like, part)
        for way in {link, broadcasts}:
            way.welcome(self.place.hello()["machine"])
        self.devices.devices[rank - 1] = device
        self.devices.lost.discard(rank - 1)
        return device

    def _let_in(self, index: int) -> None:
        """Let clients in that have come back; wait for one if none is left."""
        end = time.monotonic() + self.job.timeout
        while True:
            self.devices.begin(index)
            for client in sorted(self.devices.lost):
                if (links := self._meet(client + 1, 0)) is None:
                    continue
                device = self._welcome(client + 1, *links)
                device.index = index
                for _, what in self.devices.each([client], lambda device: self._load(device, index, newest=True)):
                    self.place.note(f"client {client} came back in round {index + 1} with {what}")
            if self.devices.present:
                break
            if time.monotonic() > end:
                fix = "start clients again; continue from checkpoint= if there is one"
                got = "; ".join(["none is left", *self.place.faults[-1:]])
                raise expected("clients", f"one within {self.job.timeout:g} s", got, fix, ChannelError)
            time.sleep(0.05)
        self._say_refused()

    def _load(self, device: RemoteDevice, index: int, **how: Any) -> str:
        """Let a client continue from its checkpoint, or the server's model if there is one; returns what it has."""
        said = device.ask("load", index, **how)
        if said.get("refused"):
            raise CheckpointError(f"client {device.number}: {str(said['refused'])[:400]}")
        for note in said.get("notes") or ():
            self.place.note(f"client {device.number} {str(note)[:300]}")
        loaded = said.get("loaded")
        if loaded == index and not how:
            return ""
        if getattr(self.half.run, "holder", None) == device.number:
            self.half.run.holder = -1  # it lost the newest model, which the server has
        model = self.half.at_server(device.number)
        if model is None:
            return "the model's first weights" if loaded is None else f"its weights of round {loaded + 1}"
        device.index = index
        device.take(model)
        return (
            f"the server's model and {'a new optimizer' if loaded is None else f'its optimizer of round {loaded + 1}'}"
        )

    # --- rounds ---

    def _round(self, index: int) -> None:
        self.place.log.round = self.half.index = index
        start = time.monotonic()
        rng = generator(Stream.ROUND, self.job.seed, index)
        rng.integers(2**63)  # torch's seed of the round, drawn first in `psl.train` too
        sizes = self._sizes if self.job.sampling == "global" else None
        this = Round(no_draw, rng, None, no_seed, self.devices, self.half.computing, sizes)
        loss = float(self.half.run.train_round(this))
        if not isinstance(self.half.run, LocalTraining):  # else the next round begins with its models on the way down
            self.devices.do(self.devices.present, lambda device: device.ask("report", index))
        seconds, self.place.log.round = time.monotonic() - start, -1
        self.recorder.enter(loss, seconds=seconds, participants=len(self.devices.present), rows=self.half.run.rows)
        self.place.tell(self.recorder, done=True)

    def _sizes(self, step: int) -> np.ndarray:
        """Return the (N,) samples of each client in a mini-batch from the data of all; none of who is gone."""
        found = np.zeros(self.job.n_clients, dtype=int)
        for client, size in self.devices.each(self.devices.present, lambda device: device.size(step)):
            found[client] = size
        return found

    def tested(self) -> list[int]:
        """Return the clients whose models differ, or one of them if none do."""
        there, holder = self.devices.present, getattr(self.half.run, "holder", None)
        if self.job.framework in _OWN_MODELS:
            return there
        return [holder] if holder in there else there[:1]

    def _evaluate(self, index: int) -> np.ndarray:
        """Return the test metric of each distinct client model; the clients do their part on the test data."""
        self.half.train(False)
        found = self.devices.do(self.tested(), lambda device: self._score(index, device))
        self.half.train(True)
        return np.array(list(found.values()))

    @torch.inference_mode()
    def _score(self, index: int, device: RemoteDevice) -> float:
        rest, number = self.half.rest(device.number), device.number if self.job.framework in _OWN_MODELS else 0
        return device.score(index, number, nn.Identity() if rest is None else rest, self.half.run.config.metric)

    def _resume(self) -> int:
        found = None if self.checkpoints is None else self.checkpoints.load()
        if found is None:
            return 0
        index, state = found
        assert self.checkpoints is not None
        self.place.note(*self.checkpoints.notes)
        self.recorder.restore(state["course"], str(self.place.checkpoint))
        self.half.load_state_dict(state["half"])
        for client, what in self.devices.each(self.devices.present, lambda device: self._load(device, index)):
            if what:
                self.place.note(
                    f"client {client} has no whole checkpoint of round {index + 1}: it continues from {what}"
                )
        self.place.tell(self.recorder)
        return index + 1

    def _save(self, index: int) -> None:
        """Save the clients first: whatever round the server saved, those that were there have it too."""
        for client, said in self.devices.each(self.devices.present, lambda device: device.ask("save", index)):
            if said.get("failed"):
                self.place.note(f"client {client} did not save round {index + 1}: {str(said['failed'])[:300]}")
        assert self.checkpoints is not None
        state = {"half": self.half.state_dict(), "course": self.recorder.state()}
        self.place.save_state(self.checkpoints, index, state)
        self._saved_at = time.monotonic()

    def _finish(self) -> History:
        models = self.tested()
        # Asked to stop, clients write their parts of the model.
        self.devices.do(self.devices.present, lambda device: device.ask("stop", 0))
        job, run = self.job, self.half.run
        settings = settings_of(run) | {"n_clients": job.n_clients}
        if job.kind.several_cuts:
            settings["cut"] = [run.copies[i].cut[0] for i in range(job.n_clients)]
        history = self.recorder.history(job.framework, settings)
        if min(self.recorder.participants, default=job.n_clients) < job.n_clients:
            history = dataclasses.replace(history, participants=np.array(self.recorder.participants))
        history.save(self.place.folder / "history.json")
        own = self.half.of(models[0]) if models else run
        whole = own.model if isinstance(run, LocalTraining) else run.server
        torch.save(dict(whole.state_dict()), self.place.folder / "server.pt")
        self._say_refused()
        self.place.tell(self.recorder, models=models)
        return history

    def _say_refused(self) -> None:
        while self._listener.refused:
            self.place.note(self._listener.refused.pop(0))


def _told(data: dict[str, Any]) -> str:
    sizes = f"{data.get('samples')} training and {data.get('tests')} test samples"
    return f"{sizes}, digest {str(data.get('digest'))[:60]}"
