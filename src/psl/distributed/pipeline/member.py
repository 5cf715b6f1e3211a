"""One process of pipelined split learning: a stage of `psl.training`, or a relay between two."""

import contextlib
import dataclasses
import time
from threading import Condition
from typing import Any

import torch

from psl.distributed.job import OF_SAMPLES, Job
from psl.distributed.pipeline.orders import fixed_order, newest_common
from psl.distributed.place import Place
from psl.distributed.wire.links import START, Link
from psl.distributed.wire.messages import ChannelError, Kind, Message, check_like
from psl.distributed.wire.streams import Listener, connect
from psl.errors import CheckpointError, expected, first_line
from psl.training.devices import copy_into
from psl.training.evaluation import evaluate
from psl.training.fingerprint import settings_of
from psl.training.frameworks.pipeline import Pipeline
from psl.training.frameworks.split_step import only_needed
from psl.training.messages import each, split_rows
from psl.training.recorder import Recorder
from psl.training.seeds import own_random_state, seed_computation, seed_round
from psl.training.stage import loss_and_gradient


class Member:
    """A process of the run: its stage, its neighbours, and in the first one the data and the course of the run.

    The process behind connects to the one before it. What is for all, or comes from all, goes from neighbour to
    neighbour: a round's beginning with the labels forward, losses and layers back.
    """

    def __init__(self, place: Place):
        self.name, self.rank, self._change = place.name, place.rank, Condition()
        self.before: Link | None = None
        self.behind: Link | None = None
        self._last_arrival: dict[tuple[int, int], float] = {}
        self.place, self.job, self.last = place, place.job, place.rank == place.job.n_processes - 1
        self.relay, self.stage_number = self.job.relays[self.rank], self.job.place(self.rank)
        if self.rank == 0:
            self._prepare(self.job)
            self._train, self._tests = self.job.open_samples(self.run_.model, self.device, self.run_.config)
            (self._sampler,) = self.job.samplers(self._train)
        self.checkpoints = None if self.relay else place.checkpoints(f"stage-{self.stage_number}")

    def run(self) -> None:
        """Meet the neighbours, and run all rounds that are left.

        Raises:
            ChannelError, ProtocolError: another process is gone, or of another run.
            CheckpointError: checkpoints are missing, or of another run.
        """
        place, job = self.place, self.job
        with contextlib.ExitStack() as stack:
            try:
                if not self.last:
                    options = {"limit": job.limit, "timeout": job.timeout}
                    ranks, link = range(self.rank + 1, self.rank + 2), lambda rank, plane: self._link(rank)
                    listener = Listener(place.listen, place.keys, link, place.check_hello, ranks, **options)
                    stack.enter_context(listener)
                    place.host.listening(listener.port)
                    self.behind = listener.meet(self.rank + 1, START)
                    if self.behind is None:
                        got = f"none; {listener.refused[-1]}" if listener.refused else "none"
                        want, fix = f"a process within {START:g} s", "start it, and let it reach this one's port"
                        raise expected(job.names[self.rank + 1], want, got, fix, ChannelError)
                self._rounds(self._meet())
                if self.before is not None:  # it has heard all when it ends the stream
                    self.before.flush()
                    self.before.ended.wait(START)
            except BaseException as failure:
                text = f"{type(failure).__name__}: {first_line(failure, 300)}"
                for link in filter(None, (self.before, self.behind)):
                    link.close(str(failure) if isinstance(failure, ChannelError) else text)
                raise
            finally:
                for link in filter(None, (self.before, self.behind)):
                    link.close()
                    link.ended.wait(3.0)

    # --- the beginning ---

    def _link(self, other: int) -> Link:
        def transferred(message: Message, end: float) -> None:
            if message.kind not in (Kind.ACTIVATION, Kind.GRADIENT):
                return
            index, number = divmod(message.step, len(self.job.sizes))
            start = max(message.sent, self._last_arrival.get((other, index), 0.0))  # behind the one before it
            self._last_arrival[other, index] = end
            stages = min(self.stage_number, self.job.place(other))
            row = (message.kind.name.lower(), number, stages, self.job.sizes[number])
            self.place.log.add(f"link {other}→{self.rank}", *row, min(start, end), end)

        return self.place.link(other, transferred, change=self._change)

    def _meet(self) -> int:
        """Tell the process before what there is behind, hear what to begin with; returns the first round to train."""
        saved = {} if self.relay else {self.name: [] if self.checkpoints is None else self.checkpoints.rounds()}
        notes = [] if self.checkpoints is None else [f"{self.name} {note}" for note in self.checkpoints.notes]
        if self.behind is not None:
            saved |= self.behind.hello.get("saved", {})
            notes += self.behind.hello.get("notes", [])
        if self.rank == 0:
            index, *more = newest_common(saved)
            welcome = {"resume": index} | {name: getattr(self.job, name) for name in OF_SAMPLES}
            self.place.note(*notes, *more)
        else:
            place = self.place
            hello = place.hello(saved=saved, notes=notes)
            self.before = self._link(self.rank - 1)
            options = {"server": self.rank - 1, "timeout": self.job.timeout}
            welcome = connect(self.before, place.host.servers[0], place.keys, hello, **options)
            place.log.offset = self.before.offset
            self._prepare(dataclasses.replace(self.job, **{name: welcome[name] for name in OF_SAMPLES}))
        if self.behind is not None:
            self.behind.offset = self.place.log.offset
            told = {name: welcome[name] for name in ("resume", *OF_SAMPLES)}
            self.behind.welcome(self.place.hello()["machine"], **told)
        return self._resume(welcome["resume"])

    def _prepare(self, job: Job) -> None:
        self.job = self.place.job = job
        self.device = torch.device(job.device)
        run = job.prepare()
        assert isinstance(run, Pipeline)
        self.run_ = run
        self.stage = None if self.relay else run.stages[self.stage_number]
        samples = lambda kind, m: job.sizes[m] if kind in ("forward", "backward") else sum(job.sizes)  # noqa: E731
        self.compute = self.place.compute(self.name, self.stage_number, samples)

    def _resume(self, index: int | None) -> int:
        if self.rank == 0:
            self.recorder = Recorder(
                self.run_.config, self.run_.bits, lambda index: evaluate(self.run_, self._tests, index)
            )
            digest = f"{self._train.digest()} training, {self._tests.digest()} test"
            self._digest, self._saved_at = digest, time.monotonic()
        if index is None:
            return 0
        if self.checkpoints is not None and self.stage is not None:
            _, state = self.checkpoints.load(index) or (0, {})
            self.stage.module.load_state_dict(state["module"])
            if self.stage.optimizer is not None:
                self.stage.optimizer.load_state_dict(state["optimizer"])
            if self.rank == 0:
                if state["data"] != self._digest:
                    fix = "give the run its data back, or another checkpoint="
                    raise expected("checkpoint: data", self._digest, state["data"], fix, CheckpointError)
                self.recorder.restore(state["course"], str(self.place.checkpoint))
                self.place.tell(self.recorder)
        return index + 1

    # --- rounds ---

    def _rounds(self, first: int) -> None:
        rounds = self.job.rounds
        with own_random_state(self.device):
            if first == rounds:  # a checkpoint of the whole run: the layers are fetched
                self._report(first, self._begin(first, {"show": True, "train": False})[0], None)
            for index in range(first, rounds):
                if self._round(index).get("end"):
                    break
        if self.rank == 0:
            self.recorder.finish()
            self.recorder.history("pipeline", settings_of(self.run_)).save(self.place.folder / "history.json")
            torch.save(self.run_.model.state_dict(), self.place.folder / "model.pt")
            self.place.tell(self.recorder, models=[0])

    def _orders(self, index: int) -> dict[str, Any]:
        """Return what all do in and after a round, as the first process says."""
        job, config = self.job, self.run_.config
        end = self.place.host.stopping.is_set() or index + 1 == job.rounds
        due = self.checkpoints is not None and (end or time.monotonic() - self._saved_at >= job.save_every)
        if due:
            self._saved_at = time.monotonic()
        return {"train": True, "end": end, "save": due, "show": end or (index + 1) % config.eval_every == 0}

    def _begin(self, index: int, orders: dict[str, Any] | None = None) -> tuple[dict[str, Any], Any, Any]:
        """Send a round's orders and labels to all, and wait until all are ready; returns orders, inputs, labels."""
        inputs = labels = None
        if self.rank == 0:
            orders = orders or self._orders(index)
            if orders["train"]:
                seed_round(self.job.seed, index, self.device)
                inputs, labels = self._train.fetch(self._sampler.batch(index))
        else:
            assert self.before is not None
            message = self.before.recv(Kind.BEGIN, index)
            orders, labels = message.word, message.content
        if self.behind is not None:
            labels_on = labels if self.rank > 0 or labels is None else self.run_.bits.up(labels)
            self.behind.send(Kind.BEGIN, index, labels_on, **orders)
            self.behind.recv(Kind.BEGIN, index)
        if self.before is not None:
            self.before.send(Kind.BEGIN, index)
        return orders, inputs, None if labels is None else labels.to(self.device)

    def _round(self, index: int) -> dict[str, Any]:
        orders, inputs, labels = self._begin(index)
        if self.stage is not None:
            self.stage.zero_grad()
        self.place.log.round = index
        start = time.monotonic()
        loss = self._micro_batches(index, inputs, labels)
        seconds = time.monotonic() - start
        for link in filter(None, (self.before, self.behind)):
            link.flush()
        if self.stage is not None:
            with self.compute("step"):
                self.stage.step()
        self.place.log.round = -1
        if orders["save"] and self.rank > 0:
            self._save(index)
        value = self._report(index, orders, loss if self.last else None)
        if self.rank == 0:
            self.recorder.enter(value, seconds=seconds)
            self.place.tell(self.recorder, done=True)
            if orders["save"]:
                self._save(index)
        return orders

    def _micro_batches(self, index: int, inputs: Any, labels: Any) -> torch.Tensor:
        """Compute a mini-batch in micro-batches, forward and backward; returns its loss in the last process."""
        sizes, bits, total = self.job.sizes, self.run_.bits, len(self.job.sizes)
        parts = [] if inputs is None else split_rows(inputs, sizes[0])
        targets = [] if labels is None else list(labels.split(sizes[0]))
        gradients, needed, losses = {}, {}, torch.zeros((), device=self.device)
        plan, done = fixed_order(self.job, self.rank), {"forward": 0, "backward": 0}
        while done["backward"] < total:
            what = next(plan) if plan is not None else self._arrived(done, total)
            m, step = done[what], index * total + done[what]
            done[what] += 1
            if self.stage is None:
                self._pass_on(what, step)
            elif what == "forward":
                x = parts[m] if self.before is None else self._take(self.before, Kind.ACTIVATION, step, needed, m)
                seed_computation(self.job.seed, index, self.device, "stage", self.stage_number, m)
                with self.compute("forward", m):
                    y = self.run_.stage_forward(self.stage, x, m)
                if self.behind is not None:
                    self.behind.send(Kind.ACTIVATION, step, bits.up(y), needed=self.stage.needs_gradient(m))
                else:
                    with self.compute("loss", m):
                        share = len(targets[m]) / sum(self.job.sizes)
                        loss, gradients[m] = loss_and_gradient(y, targets[m], self.run_.config.loss, share)
                    losses = losses + loss
            else:
                given = gradients.pop(m) if self.behind is None else self._take(self.behind, Kind.GRADIENT, step)
                with self.compute("backward", m):
                    back = self.stage.backward(given, m)
                if self.before is not None:
                    self.before.send(Kind.GRADIENT, step, bits.down(only_needed(back, needed.pop(m))))
        return losses

    def _arrived(self, done: dict[str, int], total: int) -> str:
        """Wait for something to do, and return what: backward before forward, the rule of `psl.simulate`."""
        before, behind = self.before, self.behind

        def ready(what: str) -> bool:
            if what == "backward":
                return done["forward"] > done["backward"] if behind is None else behind.ready > 0
            return done["forward"] < total and (before is None or before.ready > 0)

        with self._change:
            failed = lambda: [x.failure for x in (before, behind) if x and x.failure]  # noqa: E731
            self._change.wait_for(lambda: ready("backward") or ready("forward") or failed())
            if not ready("backward") and not ready("forward"):
                raise failed()[0]
            return "backward" if ready("backward") else "forward"

    def _take(self, link: Link, kind: Kind, step: int, needed: dict | None = None, number: int = 0) -> Any:
        message = link.recv(kind, step)
        if needed is not None:
            needed[number] = message.word["needed"]
        return each(lambda tensor: tensor.to(self.device), message.content)

    def _pass_on(self, what: str, step: int) -> None:
        come, go = (self.before, self.behind) if what == "forward" else (self.behind, self.before)
        assert come is not None and go is not None
        message = come.recv(Kind.ACTIVATION if what == "forward" else Kind.GRADIENT, step)
        go.send(message.kind, step, message.content, **message.word)

    # --- the end of a round ---

    def _report(self, index: int, orders: dict[str, Any], loss: torch.Tensor | None) -> float:
        """Send loss, bits and, if asked for, layers to the first process, with those from behind; returns the loss."""
        bits, content = self.run_.bits, dict[str, Any](loss=loss)
        word = {"up": bits.uplink_bits, "down": bits.downlink_bits, "faults": self.place.faults}
        if self.behind is not None:
            message = self.behind.recv(Kind.REPORT, index)
            content = dict(message.content)
            for name in word:
                word[name] = word[name] + message.word[name]
        if self.rank > 0:
            if orders["show"] and self.stage is not None:
                content[str(self.stage_number)] = tuple(self.stage.module.state_dict().values())
            assert self.before is not None
            self.before.send(Kind.REPORT, index, content, **word)
            bits.uplink_bits, bits.downlink_bits, self.place.faults = 0, 0, []
            return 0.0
        bits.uplink_bits, bits.downlink_bits = word["up"], word["down"]
        self.place.note(*word["faults"][len(self.place.faults) :])
        for number, stage in enumerate(self.run_.stages[1:] if orders["show"] else (), 1):
            own = tuple(stage.module.state_dict().values())
            check_like(f"layers of stage {number}", content[str(number)], own)
            copy_into(own, content[str(number)])
        return float(content["loss"]) if content["loss"] is not None else 0.0

    def _save(self, index: int) -> None:
        if self.checkpoints is None or self.stage is None:
            return
        optimizer = self.stage.optimizer
        state: dict[str, Any] = {"module": dict(self.stage.module.state_dict())}
        state["optimizer"] = None if optimizer is None else optimizer.state_dict()
        if self.rank == 0:
            state |= {"course": self.recorder.state(), "data": self._digest}
        self.place.save_state(self.checkpoints, index, state)
