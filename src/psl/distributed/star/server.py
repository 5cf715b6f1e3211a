"""The server process: it waits for its clients, runs rounds with those that are there, and keeps the books."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from psl.distributed.events import EventLog
from psl.distributed.job import Job
from psl.distributed.star.client import Command
from psl.distributed.star.peer import Peer
from psl.distributed.star.separate import STARS
from psl.distributed.state import load_state, newest_round, save_state
from psl.distributed.wire.messages import ChannelError, ProtocolError
from psl.errors import CheckpointError, expected
from psl.training.fingerprint import settings_of
from psl.training.history import History, HistoryBuilder, warn_of_divergence
from psl.training.scores import metric_name


class Server:
    """The server of a run: a client that fails or is silent for the timeout is left out until it comes back.

    Args:
        job: the run.
        meet: ``meet(number, patience)`` returns a `Peer` if a client waits to be let in, else None; waits for it for
            `patience` s.
        compute: as for `psl.distributed.star.rounds.Star`.
        log: where events go.
        folder: where progress and results go.
        checkpoint: folder of checkpoints, None for none.
    """

    def __init__(
        self, job: Job, meet: Callable, compute: Callable, log: EventLog, folder: Path, checkpoint: Path | None = None
    ):
        self.job, self._meet, self.log, self.folder, self.checkpoint = job, meet, log, folder, checkpoint
        self._pool = ThreadPoolExecutor(job.n_clients, thread_name_prefix="client")
        self._faults = threading.Lock()
        self.faults: list[str] = []
        self.star = STARS[job.framework](job, compute, self.each)
        self.peers: dict[int, Peer] = {}
        self.curves = HistoryBuilder(metric=metric_name(job.metric_function()))
        self.shares = np.zeros(job.n_clients)
        self.participants: list[int] = []
        self.round_times: list[float] = []
        self._saved_at = time.monotonic()

    @property
    def present(self) -> list[Peer]:
        """The clients that are there, in order."""
        return [self.peers[i] for i in sorted(self.peers) if self.peers[i].failed is None]

    def each(self, peers: list[Peer], action: Callable) -> dict[Peer, object]:
        """Do something with several clients at a time; returns the results of those that did not fail, in order."""
        futures = {peer: self._pool.submit(action, peer) for peer in peers if peer.failed is None}
        results = {}
        for peer, future in futures.items():
            try:
                results[peer] = future.result()
            except (ChannelError, ProtocolError) as failure:
                self._give_up(peer, failure)
        return results

    def run(self, patience: float, stop: Callable[[], bool] = lambda: False, tell: Callable | None = None) -> None:
        """Run all rounds.

        Args:
            patience: s to wait for all clients at the start.
            stop: asked after every round whether to save and end early.
            tell: called with a line about every round.

        Raises:
            ChannelError: a client did not come, or all are gone.
            CheckpointError: of another run.
        """
        job = self.job
        try:
            self._gather(patience)
            first = self._resume()
            for index in range(first, job.rounds):
                self._let_in(index)
                self._round(index)
                if tell is not None:
                    shown = ", ".join(f"{name} {value}" for name, value in self.curves.shown().items())
                    tell(f"round {index + 1}/{job.rounds}: {shown}, {self.round_times[-1]:.3g} s")
                stopping = stop()
                last = index + 1 == job.rounds
                due = time.monotonic() - self._saved_at >= job.save_every
                if self.checkpoint is not None and (due or last or stopping):
                    self._save(index)
                if stopping and not last:
                    break
            if self.curves.rounds and not self.curves.evaluated:
                self.curves.set_accuracy(self.star.evaluate(self.curves.rounds - 1, self.present))
            self._finish()
        finally:
            for peer in self.peers.values():
                peer.close()
            self._pool.shutdown()

    def _gather(self, patience):
        end = time.monotonic() + patience
        for number in range(self.job.n_clients):
            peer = self._meet(number, max(end - time.monotonic(), 0.1))
            if peer is None:
                fix = "start all clients, with the same arguments"
                raise expected(f"client {number}", f"a connection within {patience:g} s", "none", fix, ChannelError)
            self._welcome(peer, 0)

    def _let_in(self, index):
        """Let clients in that have come back; wait for one if none is left."""
        end = time.monotonic() + self.job.timeout
        while True:
            for number, old in list(self.peers.items()):
                if old.failed is None:
                    continue
                try:
                    peer = self._meet(number, 0)
                except (ChannelError, ProtocolError) as failure:
                    self._note(f"not let in: {failure}")
                    continue
                if peer is not None and self.each([peer], lambda peer: self._welcome(peer, index)):
                    self._note(f"client {number} came back in round {index + 1}")
            if self.present:
                return
            if time.monotonic() > end:
                fix = "start clients again; continue from checkpoint= if there is one"
                raise expected("clients", f"one within {self.job.timeout:g} s", "none is left", fix, ChannelError)
            time.sleep(0.05)

    def _welcome(self, peer, index):
        before = self.peers.get(peer.number)
        if before is not None and before.hello != peer.hello:
            what, fix = f"client {peer.number}", "start it with the same data"
            raise expected(what, f"the data it had, {before.hello}", peer.hello, fix, ProtocolError)
        self.peers[peer.number] = peer
        self.shares[peer.number] = peer.hello.n_samples
        self.star.welcome(peer, index, returning=before is not None)

    def _round(self, index):
        self.log.round = index
        start = time.monotonic()
        loss, done = self.star.round(index, self.present, self.shares)
        done = self.each(done, lambda peer: peer.report(index))
        self.round_times.append(time.monotonic() - start)
        self.log.round = -1
        self.participants.append(len(done))
        if not np.isfinite(loss) and done and np.isfinite([*self.curves.state()["train_loss"], 0.0]).all():
            warn_of_divergence(loss, index, stacklevel=2)
        evaluates = (index + 1) % self.job.eval_every == 0 or index + 1 == self.job.rounds
        accuracy = self.star.evaluate(index, self.present) if evaluates and self.present else None
        accuracy = accuracy if accuracy is not None and len(accuracy) else None
        self.curves.add_round(loss, accuracy, self.star.bits)
        self._tell()

    def _resume(self):
        newest = newest_round(self.checkpoint, "server")
        if newest is None:
            return 0
        state = load_state(self.checkpoint, "server", newest, self.job)
        self.curves.restore(state["curves"])
        if self.curves.rounds > self.job.rounds:
            got = f"{self.curves.rounds} rounds in the checkpoint"
            fix = "ask for as many rounds or more, or give another checkpoint="
            raise expected(str(self.checkpoint), f"at most rounds = {self.job.rounds}", got, fix, CheckpointError)
        if self.curves.rounds < self.job.rounds:
            self.curves.forget_evaluations(self.job.eval_every)
        self.star.load_state_dict(state["star"])
        self.participants, self.round_times = state["participants"], state["round_times"]
        self.each(self.present, lambda peer: peer.load(newest))
        self._tell()
        return newest + 1

    def _save(self, index):
        """Save the clients first: whatever round the server saved, they have it too."""
        self._command_all(Command.SAVE, index)
        state = {"curves": self.curves.state(), "star": self.star.state_dict()}
        state |= {"participants": self.participants, "round_times": self.round_times}
        save_state(self.checkpoint, "server", index, self.job, state)
        self._saved_at = time.monotonic()

    def _command_all(self, what, index):
        def command(peer):
            peer.command(what, index)
            peer.acknowledged(index)

        self.each(self.present, command)

    def _finish(self):
        self._command_all(Command.STOP, 0)  # and wait until their parts of the model are written
        job = self.job
        settings = settings_of(self.star.run)
        settings |= {"n_clients": job.n_clients}
        if job.kind.several_cuts:
            settings["cut"] = [run.cut[0] for run in self.star.runs]
        history: History = self.curves.history(job.framework, settings, job.round_time)
        if min(self.participants, default=job.n_clients) < job.n_clients:
            history = dataclasses.replace(history, participants=np.array(self.participants))
        history.save(self.folder / "history.json")
        torch.save(self.star.model_state(), self.folder / "server.pt")
        self._tell(finished=True)

    def _give_up(self, peer, failure):
        if peer.failed is None:
            peer.failed = failure
            peer.close()
            self._note(f"left out {failure}")

    def _note(self, text):
        with self._faults:
            self.faults.append(text)
            print(text, flush=True)

    def _tell(self, finished=False):
        """Write what a launcher shows; the file is replaced in one step."""
        models = [peer.number for peer in self.star.tested(self.present)] if self.present else []
        news = {
            "rounds": self.curves.rounds, "shown": self.curves.shown() if self.curves.rounds else {},
            "participants": self.participants, "round_times": self.round_times, "faults": self.faults,
            "models": models, "finished": finished,
        }  # fmt: skip
        part = self.folder / "progress.part"
        part.write_text(json.dumps(news))
        part.replace(self.folder / "progress.json")
