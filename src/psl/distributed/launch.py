"""Start a run of real processes on this machine, watch it, and collect what it leaves."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from psl.distributed import events
from psl.distributed.edge.emulate import EdgeEmulation, emulation_for
from psl.distributed.job import Job
from psl.distributed.leftovers import ended_by_signals, run_folder
from psl.distributed.wire.keys import make_bundles
from psl.distributed.wire.streams import LOOPBACK
from psl.distributed.workers import Worker, start_fork_server
from psl.errors import PSLError, check_count, expected
from psl.training.history import History, warn_of_divergence

_LOOK = 0.05  # s between two looks at the workers
_STOP_WITHIN = 8.0  # s to save after Ctrl-C or SIGTERM


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
        faults: what happened to clients and checkpoints, and who was not let in, in order.
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
    watch: Callable[["Launch"], None] | None = None,
    **options,
) -> Run:
    """Train with processes of this machine that exchange real tensors.

    There are a server and its clients, or for "pipeline" a process for each stage, and for the plan's relays. The
    result is that of `psl.train` with the same arguments, to float summation. Processes use the loopback interface, or
    namespaces of their own, over connections that keys of this run protect. None is left behind, whatever happens.

    Args:
        framework: "fedavg", "sl", "sfl", "psl", "epsl", "edgesplit" or "pipeline".
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
        watch: called with the `Launch` about 20 times a second.
        options: the fields of `Job`: rounds, n_clients, batch_size, cut, tensors, micro_batch, partition, optimizer,
            lr, loss, metric, seed, model_seed, model_options, eval_every, device, timeout, save_every, record; with
            clients also local_steps, phi, linearise, rows, sampling, server_steps and defence, in a pipeline schedule.

    Raises:
        ScenarioError, CutError, CheckpointError: as `psl.train`.
        PSLError: the server or a stage failed; with its message.
    """
    job = Job.of(framework, model, dataset, plan=plan, emulation=emulation_of(emulate, plan), **options)
    with Launch(job, checkpoint=checkpoint, restarts=restarts) as launch:
        bar = tqdm(total=job.rounds, desc=f"{framework}, {job.n_processes} processes", disable=not progress)
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

    A client may fail, and is started again as often as `restarts` says; the server may not, nor a stage.

    Args:
        job: the run.
        checkpoint, restarts: as in `run`.

    Attributes:
        folder: where the processes write; deleted at the end.
        workers: by rank; 0 is the server, or the first stage.
        news: what rank 0 last told: rounds, shown, participants, round_times, faults, models, saved.
    """

    def __init__(self, job: Job, *, checkpoint=None, restarts: int = 0):
        self.job, self._star = job, job.framework != "pipeline"
        self._checkpoint = None if checkpoint is None else str(Path(checkpoint).absolute())
        if check_count("restarts", restarts, minimum=0) and not self._star:
            fix = "leave it out, and continue from checkpoint="
            raise expected("restarts", "0 in a pipeline, whose stages wait for each other", restarts, fix)
        self._restarts = dict.fromkeys(range(1, job.n_processes), restarts)
        self._stack = contextlib.ExitStack()
        self.workers: list[Worker] = []
        self._servers: dict[int, list[str]] = {}  # by rank, where it connects to
        self._alone = time.monotonic()  # since when the server runs without clients
        self.news: dict[str, Any] = {"rounds": 0, "shown": {}, "participants": [], "round_times": [], "faults": []}
        self.news |= {"models": [], "saved": 0}

    def __enter__(self):
        with self._stack:
            self._stack.enter_context(ended_by_signals())
            self.folder = self._stack.enter_context(run_folder())
            emulation = self.job.emulation
            self._network = None if emulation is None else self._stack.enter_context(emulation.namespaces())
            self._keys = [dataclasses.asdict(bundle) for bundle in make_bundles(self.job.n_processes, days=365.0)]
            self._stack.callback(self.end)
            if self.job.device == "cpu":  # a process that has used a GPU cannot be forked
                start_fork_server(dataclasses.replace(self.job, partition="iid", emulation=None).to_dict())
            for rank in range(self.job.n_processes):
                self.workers.append(self._start(rank))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind, error, _):
        with self._stack:
            if kind in (KeyboardInterrupt, SystemExit) and self._checkpoint is not None:
                print(self.stop(), flush=True)

    def stop(self) -> str:
        """Let the run end after the round under way, saved; says whether that was done in time."""
        for worker in self.workers:
            worker.tell(stop=True)
        end = time.monotonic() + _STOP_WITHIN
        while self.workers[0].running and time.monotonic() < end:
            self._hear()
            time.sleep(_LOOK)
        self._hear()
        saved, rounds, where = self.news["saved"], self.news["rounds"], self._checkpoint
        if saved and saved == rounds:
            return f"stopped after round {rounds}, saved to {where}"
        newest = f"the newest checkpoint is of round {saved}" if saved else "there is no checkpoint of this run"
        why = self.news["faults"][-1:] or [f"the round under way did not end within {_STOP_WITHIN:g} s"]
        return f"stopped after round {rounds}, not saved: {newest} in {where}; {why[0]}"

    def end(self) -> None:
        """Kill what still runs."""
        for worker in self.workers:
            worker.signal(signal.SIGKILL)
        end = time.monotonic() + 5.0  # a fork server that was stopped does not tell
        for worker in self.workers:
            worker.wait(max(end - time.monotonic(), 0.0))

    def look(self) -> bool:
        """Hear the news, start clients again that may be, and tell whether the run is over.

        Raises:
            PSLError: the server failed, or a stage, or a client before the first round; with its last words.
        """
        self._hear()
        over = self._look_at_clients() if self._star else self._look_at_stages()
        if over:
            self._hear()
            self.end()  # a client that is frozen, or was left out and has not noticed
        return over

    def _hear(self) -> None:
        for rank, worker in enumerate(self.workers):
            for news in worker.news():
                if "port" in news:
                    self._tell_where(rank, news["port"])
                elif rank == 0:
                    self.news |= {name: value for name, value in news.items() if name != "lines"}

    def _tell_where(self, rank: int, port: int) -> None:
        """Tell those that connect to a rank where it listens."""
        found = [f"{address.rpartition(':')[0]}:{port}" for address in self._addresses(rank)]
        for other in range(1, self.job.n_processes) if self._star else [rank + 1]:
            self._servers[other] = found
            self.workers[other].tell(servers=found)

    def _look_at_clients(self) -> bool:
        server, *clients = self.workers
        started = self.news["rounds"] > 0 or self.news["faults"]
        if not started and any(client.code not in (None, 0) for client in clients):
            server.wait(1.0)  # if it failed first, its message says why
        if not server.running:
            if server.code != 0:
                raise PSLError(f"the server failed: {server.why()}")
            _wait_all(clients, self.job.timeout)
            return True
        if any(client.running for client in clients) or any(self._restarts.values()):
            self._alone = time.monotonic()
        elif time.monotonic() - self._alone > 5 * self.job.timeout:
            got = f"none for {5 * self.job.timeout:g} s after the last client ended"
            raise expected("the server", "an end", got, "see whether it was stopped", PSLError)
        for rank, client in enumerate(clients, 1):
            if client.running or client.code == 0:
                continue
            if self._restarts[rank] > 0:
                self._restarts[rank] -= 1
                self.restart(rank)
            elif not started:
                raise PSLError(f"{self.job.names[rank]} failed: {client.why()}")
        return False

    def _look_at_stages(self) -> bool:
        failed = [worker for worker in self.workers if worker.code not in (None, 0)]
        if failed:
            _wait_all(self.workers, 1.0)  # who failed first takes others with it
            ended = [(k, w) for k, w in enumerate(self.workers) if w.code not in (None, 0)]
            ended.sort(key=lambda pair: (pair[1].code or 0) >= 0)  # killed ones first
            words = "\n".join(f"{self.job.names[k]} failed: {worker.why()}" for k, worker in ended)
            raise PSLError(f"the pipeline stopped. {words}")
        return all(worker.code == 0 for worker in self.workers)

    def restart(self, rank: int) -> None:
        """Start a process again that has ended."""
        self.workers[rank] = self._start(rank)
        if rank in self._servers:
            self.workers[rank].tell(servers=self._servers[rank])

    def result(self) -> Run:
        """Return what the finished run left."""
        folder, job = self.folder, self.job
        history = History.load(folder / "history.json")
        if isinstance(history.settings.get("cut"), tuple):  # JSON knows no tuples, and `psl.train` says a list
            history.settings["cut"] = list(history.settings["cut"])
        for k, loss in enumerate(history.train_loss):  # the server has warned in its own process, where nobody looks
            if not np.isfinite(loss) and (history.participants is None or history.participants[k]):
                warn_of_divergence(float(loss), k, stacklevel=3)
                break
        history.models.extend(self._models())
        files = {rank: folder / f"messages-{rank}.pt" for rank in range(job.n_processes) if job.record}
        messages = {k: torch.load(file, weights_only=True) if file.exists() else [] for k, file in files.items()}
        table, overrun = events.collect(folder / f"events-{rank}.json" for rank in range(job.n_processes))
        links = "none" if job.emulation is None else job.emulation.links
        seconds, faults = np.array(self.news["round_times"]), tuple(self.news["faults"])
        return Run(history, table, seconds, links, overrun, faults, messages)

    def _models(self) -> list[nn.Module]:
        """Return the trained models: the first process's part of the weights with each client's."""
        load, at, models = partial(torch.load, map_location="cpu", weights_only=True), self.folder, []
        for number in self.news["models"]:
            model = self.job.build_model()
            state = load(at / "server.pt") | load(at / f"client-{number}.pt") if self._star else load(at / "model.pt")
            own = model.state_dict(keep_vars=True)  # a tied tensor has several names, of which a half may keep one
            first = {id(own[name]): state[name] for name in state if name in own}
            model.load_state_dict(state | {name: first[id(t)] for name, t in own.items() if id(t) in first})
            models.append(model.eval())
        return models

    def _addresses(self, rank: int) -> list[str]:
        """Return where a rank listens, in each plane of the network."""
        if (self._star and rank > 0) or rank == self.job.n_processes - 1:
            return []
        if self._network is None:
            return [f"{LOOPBACK}:0"]
        own_band = self._star and self.job.emulation is not None and self.job.emulation.broadcast is not None
        planes = 2 if own_band else 1
        return [f"{self._network.address(rank, plane)}:0" for plane in range(planes)]

    def _start(self, rank: int) -> Worker:
        order = {"job": self.job.to_dict(), "rank": rank, "folder": str(self.folder), "checkpoint": self._checkpoint}
        order["dtype"] = str(torch.get_default_dtype()).removeprefix("torch.")
        order |= {"listen": self._addresses(rank), "keys": self._keys[rank]}
        namespace = None if self._network is None else self._network.names[rank]
        return Worker("psl.distributed.worker:launched", order, self.folder / f"log-{rank}.txt", namespace)


def _wait_all(workers: Sequence[Worker], seconds: float) -> None:
    """Give workers some time to end by themselves."""
    end = time.monotonic() + seconds
    for worker in workers:
        worker.wait(max(end - time.monotonic(), 0))
