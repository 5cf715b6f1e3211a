"""Start a run of real processes on this machine, watch it, and collect what it leaves."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from psl.distributed import events
from psl.distributed.crews import Chain, Star
from psl.distributed.edge.emulate import EdgeEmulation, emulation_for
from psl.distributed.job import STAR, Job
from psl.distributed.leftovers import run_folder
from psl.distributed.nursery import Nursery, Worker, wait_all
from psl.distributed.pipeline.job import PipelineJob
from psl.errors import check_choice, expected
from psl.training.history import History, warn_of_divergence

_LOOK = 0.05  # s between two looks at the workers


@dataclass(frozen=True)
class Run:
    """What a run of real processes returns.

    Args:
        history: as `psl.train` returns it, trained models included; `participants` if a client was missing in a round.
        events: one row per computation and transfer, see `psl.distributed.events.collect`.
        round_times: (R,) s of each round on the server's clock, until the last client reported; in a pipeline on the
            first process's, until the last gradient has come there and is worked in. Evaluation is not part.
        emulation: who kept the rates of links: "kernel", "pacing" or "none".
        overrun: s that computations took longer than emulated, all processes together: 0 if there were cores enough.
        faults: what happened to clients, in order.
        messages: by rank, every tensor that a process sent or received as (way, kind, step, tensor); only with
            ``record=True``.
    """

    history: History
    events: pd.DataFrame
    round_times: np.ndarray
    emulation: str
    overrun: float
    faults: tuple[str, ...]
    messages: dict[int, list]

    def __repr__(self):
        seconds = f"{np.median(self.round_times):.4g} s per round (median)"
        return f"Run({self.history!r}, {seconds}, emulation: {self.emulation}, {len(self.faults)} faults)"


def run(
    framework: str,
    model: str = "psl.models:cnn",
    dataset: str = "digits",
    *,
    plan=None,
    emulate: EdgeEmulation | str | None = None,
    checkpoint=None,
    restarts: int = 0,
    progress: bool = True,
    nursery: Nursery | None = None,
    watch: Callable[["Launch"], None] | None = None,
    **options,
) -> Run:
    """Train with processes of this machine that exchange real tensors; needs no torchrun.

    There are a server and its clients, or for "pipeline" stages on torch.distributed.pipelining, and the plan's relays.
    The result is that of `psl.train` with the same arguments, to float summation. Processes use the loopback
    interface only, or namespaces of their own. None is left behind, whatever happens.

    Args:
        framework: "sl", "sfl", "psl", "epsl", "edgesplit" or "pipeline".
        model: "module:function" that every process can import; called with `model_options`.
        dataset: name of a data set, or "module:function" that returns (train, test).
        plan: of a scheduler; supplies defaults as in `psl.train`.
        emulate: an `EdgeEmulation`, or "auto", "kernel", "pacing" or "none" for `emulation_for(plan, …)`: slower
            devices and links; None for none.
        checkpoint: folder that the processes save to, about every `save_every` s, at the end and at Ctrl-C; a run
            whose folder has files continues from them.
        restarts: how often a client that ends early is started again, each. Stages are not: they all wait for each
            other.
        progress: show a progress bar.
        nursery: where workers start, for several runs in a row; default one of its own.
        watch: called with the `Launch` about 20 times a second.
        options: the fields of `Job`: rounds, n_clients, batch_size, local_steps, cut, phi, linearise, partition,
            optimizer, lr, loss, seed, model_seed, model_options, eval_every, device, timeout, save_every, record; of
            `PipelineJob` also micro_batch and schedule, in place of local_steps, phi and linearise.

    Raises:
        ScenarioError, CutError, CheckpointError: as `psl.train`.
        PSLError: the server or a stage failed; with its message.
    """
    check_choice("framework", framework, (*STAR, "pipeline"))
    emulate = emulation_of(emulate, plan)
    kind = PipelineJob if framework == "pipeline" else Job
    job = kind.of(framework, model, dataset, plan=plan, emulation=emulate, **options)
    with Launch(job, checkpoint=checkpoint, restarts=restarts, nursery=nursery) as launch:
        bar = tqdm(total=job.rounds, desc=f"{framework}, {len(launch.workers)} processes", disable=not progress)
        with bar:
            while not launch.look():
                if launch.news["rounds"] > bar.n:
                    bar.set_postfix(launch.news["shown"], refresh=False)
                    bar.update(launch.news["rounds"] - bar.n)
                if watch is not None:
                    watch(launch)
                time.sleep(_LOOK)
            bar.update(launch.news["rounds"] - bar.n)
        return launch.result()


def emulation_of(emulate: EdgeEmulation | str | None, plan) -> EdgeEmulation | None:
    """Return the emulation that an argument of `run` means."""
    if not isinstance(emulate, str):
        return emulate
    if plan is None:
        raise expected("emulate", "a plan to emulate", "none", "pass plan=, or an EdgeEmulation")
    return emulation_for(plan, emulate)


class Launch:
    """The processes of a run; a context manager that ends them all.

    Args:
        job: the run.
        checkpoint, restarts, nursery: as in `run`.

    Attributes:
        folder: where the processes write; deleted at the end.
        workers: by rank; 0 is the server, or the first stage.
        news: what it last told: rounds, shown, participants, round_times, faults, models, finished.
    """

    def __init__(self, job: Job, *, checkpoint=None, restarts: int = 0, nursery: Nursery | None = None):
        self.job, self._nursery = job, nursery
        self._checkpoint = None if checkpoint is None else Path(checkpoint).absolute()
        self._crew = Chain(job, restarts) if job.framework == "pipeline" else Star(job, restarts, self.restart)
        self._stack = contextlib.ExitStack()
        self.workers: list[Worker] = []
        self.news = {"rounds": 0, "shown": {}, "participants": [], "round_times": [], "faults": [], "models": []}

    def __enter__(self):
        with self._stack:
            self._stack.enter_context(_ended_by_signals())
            self.folder = self._stack.enter_context(run_folder())
            emulation, crew = self.job.emulation, self._crew
            network = None if emulation is None else self._stack.enter_context(emulation.namespaces())
            self._namespaces = [None] * len(crew.names) if network is None else network.names
            if self._nursery is None:
                self._nursery = self._stack.enter_context(Nursery())
            self._stack.callback(self.end)
            self.job.save(self.folder / "job.json")
            (self.folder / "world.json").write_text(json.dumps(crew.world(self.folder, self._checkpoint, network)))
            for rank in range(len(crew.names)):
                self.workers.append(self._start(rank))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind, *_):
        with self._stack:
            if kind is KeyboardInterrupt and self._checkpoint is not None:
                self.stop()

    def stop(self) -> None:
        """Let the run end after this round or the next, saved; give it the timeout more than that to do so."""
        (self.folder / "stop").touch()
        wait_all(self.workers, self.job.timeout + 2 * max(self.news["round_times"], default=0.0))

    def end(self) -> None:
        """Kill what still runs."""
        for worker in self.workers:
            worker.signal(signal.SIGKILL)
        for worker in self.workers:
            worker.wait()

    def look(self) -> bool:
        """Read the news, start clients again that may be, and tell whether the run is over.

        Raises:
            PSLError: the server failed, or a stage, or a client before the first round; with its last words.
        """
        with contextlib.suppress(FileNotFoundError):
            self.news = json.loads((self.folder / "progress.json").read_text())
        if over := self._crew.look(self.workers, self.news):
            self.end()  # a client that is frozen, or was left out and has not noticed
        return over

    def restart(self, rank: int) -> None:
        """Start a process again that has ended."""
        self.workers[rank] = self._start(rank)

    def result(self) -> Run:
        """Return what the finished run left."""
        folder, job = self.folder, self.job
        self.news = json.loads((folder / "progress.json").read_text())
        history = History.load(folder / "history.json")
        if isinstance(history.settings.get("cut"), tuple):  # JSON knows no tuples, and `psl.train` says a list
            history.settings["cut"] = list(history.settings["cut"])
        for k, loss in enumerate(history.train_loss):  # the server has warned in its own process, where nobody looks
            if not np.isfinite(loss) and (history.participants is None or history.participants[k]):
                warn_of_divergence(float(loss), k, stacklevel=3)
                break
        history.models.extend(self._crew.models(folder, self.news))
        ranks, messages = range(len(self._crew.names)), {}
        for rank in ranks if job.record else ():
            file = folder / f"messages-{rank}.pt"
            messages[rank] = torch.load(file, weights_only=True) if file.exists() else []
        table, overrun = events.collect(folder / f"events-{rank}.json" for rank in ranks)
        links = "none" if job.emulation is None else job.emulation.links
        times = np.array(self.news["round_times"])
        faults = tuple(self.news["faults"])
        return Run(history, self._crew.complete(table), times, links, overrun, faults, messages)

    def _start(self, rank: int) -> Worker:
        log = self.folder / f"log-{rank}.txt"
        return self._nursery.start(self._crew.module, [self.folder, rank], log, self._namespaces[rank])


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Clean up before SIGTERM or SIGHUP, where nobody handles them, end the program as they do."""
    ours, received = [], []

    def leave(number, frame):
        received.append(number)
        for each in ours:
            signal.signal(each, signal.SIG_IGN)  # a second one must not stop the cleaning
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        ours += [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]
    for each in ours:
        signal.signal(each, leave)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)
        for number in received:  # now for good; a notebook would go on after an exception
            os.kill(os.getpid(), number)
