"""Start a run of real processes on this machine, watch it, and collect what it leaves."""

import contextlib
import json
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from psl.distributed import events
from psl.distributed.emulate import EdgeEmulation, emulation_for
from psl.distributed.job import Job
from psl.distributed.nursery import Nursery, Worker, wait_all
from psl.distributed.worker import World
from psl.errors import PSLError, check_count, expected
from psl.training.history import History

_LOOK = 0.05  # s between two looks at the workers


@dataclass(frozen=True)
class Run:
    """What a run of real processes returns.

    Args:
        history: as `psl.train` returns it, trained models included; `participants` if a client was missing in a round.
        events: one row per computation and transfer, see `psl.distributed.events.collect`.
        round_times: (R,) s of each round on the server's clock, until the last client reported; evaluation is not part.
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
    """Train with a server and clients as processes of this machine that exchange real tensors; needs no torchrun.

    The result is that of `psl.train` with the same arguments, to float summation. Processes use the loopback
    interface only, or namespaces of their own. None is left behind, whatever happens.

    Args:
        framework: "sl", "sfl", "psl", "epsl" or "edgesplit".
        model: "module:function" that every process can import; called with `model_options`.
        dataset: name of a data set, or "module:function" that returns (train, test).
        plan: of a scheduler; supplies defaults as in `psl.train`.
        emulate: an `EdgeEmulation`, or "auto", "kernel", "pacing" or "none" for `emulation_for(plan, …)`: slower
            devices and links; None for none.
        checkpoint: folder that the processes save to, about every `save_every` s, at the end and at Ctrl-C; a run
            whose folder has files continues from them.
        restarts: how often a client that ends early is started again, each.
        progress: show a progress bar.
        nursery: where workers start, for several runs in a row; default one of its own.
        watch: called with the `Launch` about 20 times a second.
        options: the fields of `Job`: rounds, n_clients, batch_size, local_steps, cut, phi, linearise, partition,
            optimizer, lr, loss, seed, model_seed, model_options, eval_every, device, timeout, save_every, record.

    Raises:
        ScenarioError, CutError, CheckpointError: as `psl.train`.
        PSLError: the server failed; with its message.
    """
    if isinstance(emulate, str):
        if plan is None:
            raise expected("emulate", "a plan to emulate", "none", "pass plan=, or an EdgeEmulation")
        emulate = emulation_for(plan, emulate)
    job = Job.of(framework, model, dataset, plan=plan, emulation=emulate, **options)
    with Launch(job, checkpoint=checkpoint, restarts=restarts, nursery=nursery) as launch:
        bar = tqdm(total=job.rounds, desc=f"{framework}, {job.n_clients + 1} processes", disable=not progress)
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


class Launch:
    """The processes of a run; a context manager that ends them all.

    Args:
        job: the run.
        checkpoint, restarts, nursery: as in `run`.

    Attributes:
        folder: where the processes write; deleted at the end.
        workers: rank 0 is the server.
        news: what the server last told: rounds, shown, participants, round_times, faults, models, finished.
    """

    def __init__(self, job: Job, *, checkpoint=None, restarts: int = 0, nursery: Nursery | None = None):
        self.job, self._nursery = job, nursery
        self._checkpoint = None if checkpoint is None else Path(checkpoint).absolute()
        self._restarts = dict.fromkeys(range(1, job.n_clients + 1), check_count("restarts", restarts, minimum=0))
        self._stack = contextlib.ExitStack()
        self._alone = time.monotonic()  # since when the server runs without clients
        self.workers: list[Worker] = []
        self.news = {"rounds": 0, "shown": {}, "participants": [], "round_times": [], "faults": [], "models": []}

    def __enter__(self):
        with self._stack:
            self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="psl-run-")))
            emulation, job = self.job.emulation, self.job
            network = None if emulation is None else self._stack.enter_context(emulation.namespaces())
            self._names = [None] * (job.n_clients + 1) if network is None else network.names
            if self._nursery is None:
                self._nursery = self._stack.enter_context(Nursery())
            self._stack.callback(self.end)
            world = World.here(self.folder, self._checkpoint, job.n_clients)
            if network is not None:
                world = _in_namespaces(world, network, job.n_clients, emulation.broadcast is not None)
            job.save(self.folder / "job.json")
            (self.folder / "world.json").write_text(json.dumps(asdict(world)))
            for rank in range(job.n_clients + 1):
                self.workers.append(self._start(rank))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind, *_):
        if kind is KeyboardInterrupt and self._checkpoint is not None:
            self.stop()
        self._stack.close()

    def stop(self) -> None:
        """Let the run end after this round, saved; give it the timeout to do so."""
        (self.folder / "stop").touch()
        wait_all(self.workers, self.job.timeout)

    def end(self) -> None:
        """Kill what still runs."""
        for worker in self.workers:
            worker.signal(signal.SIGKILL)
        for worker in self.workers:
            worker.wait()

    def look(self) -> bool:
        """Read the news, start clients again that may be, and tell whether the run is over.

        Raises:
            PSLError: the server failed, or the clients before it came to work.
        """
        with contextlib.suppress(FileNotFoundError):
            self.news = json.loads((self.folder / "progress.json").read_text())
        server, *clients = self.workers
        started = self.news["rounds"] > 0 or self.news["faults"]
        if not started and any(client.code not in (None, 0) for client in clients):
            server.wait(1.0)  # if it failed first, its message says why
        if not server.running:
            wait_all(clients, self.job.timeout)
            if server.code != 0:
                raise PSLError(f"the server failed: {server.last_words() or f'exit code {server.code}'}")
            self.end()  # a client that is frozen, or was left out and has not noticed
            return True
        if any(client.running for client in clients) or any(self._restarts.values()):
            self._alone = time.monotonic()
        elif time.monotonic() - self._alone > self.job.patience:
            got = f"none for {self.job.patience:g} s after the last client ended"
            raise expected("the server", "an end", got, "see whether it was stopped", PSLError)
        for rank, client in enumerate(clients, 1):
            if client.running or client.code == 0:
                continue
            if self._restarts[rank] > 0:
                self._restarts[rank] -= 1
                self.restart(rank)
            elif client.code == 1 and not started:
                raise PSLError(f"client {rank - 1} failed: {client.last_words()}")
        return False

    def restart(self, rank: int) -> None:
        """Start a process again that has ended."""
        self.workers[rank] = self._start(rank)

    def result(self) -> Run:
        """Return what the finished run left."""
        folder, job = self.folder, self.job
        self.news = json.loads((folder / "progress.json").read_text())
        history = History.load(folder / "history.json")
        if isinstance(history.settings["cut"], tuple):  # JSON knows no tuples, and `psl.train` says a list
            history.settings["cut"] = list(history.settings["cut"])
        state = torch.load(folder / "server.pt", map_location="cpu", weights_only=True)
        for number in self.news["models"]:
            history.models.append(_assembled(job.build_model(), state, folder / f"client-{number}.pt"))
        messages = {}
        for rank in range(job.n_clients + 1) if job.record else ():
            file = folder / f"messages-{rank}.pt"
            messages[rank] = torch.load(file, weights_only=True) if file.exists() else []
        table, overrun = events.collect(folder / f"events-{rank}.json" for rank in range(job.n_clients + 1))
        links = "none" if job.emulation is None else job.emulation.links
        times = np.array(self.news["round_times"])
        return Run(history, table, times, links, overrun, tuple(self.news["faults"]), messages)

    def _start(self, rank: int) -> Worker:
        log = self.folder / f"log-{rank}.txt"
        return self._nursery.start("psl.distributed.worker", [self.folder, rank], log, self._names[rank])


def _in_namespaces(world: World, network, n_clients: int, broadcast: bool) -> World:
    def ends(plane):
        return [[network.address(0, plane), network.address(i + 1, plane)] for i in range(n_clients)]

    store = network.address(0)
    return World(world.folder, world.checkpoint, store, ends(0), ends(1) if broadcast else None)


def _assembled(model: nn.Module, server: dict, file: Path) -> nn.Module:
    """Put the server's and a client's part of the weights into a model, in evaluation mode."""
    client = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(server | client)
    return model.eval()
