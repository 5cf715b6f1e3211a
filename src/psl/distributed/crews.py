"""The processes of a launched run, seen from outside: who they are, when they have failed, and what they leave."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from psl.distributed.job import Job
from psl.distributed.nursery import Worker, wait_all
from psl.distributed.pipeline.job import PipelineJob
from psl.distributed.pipeline.worker import World as ChainWorld
from psl.distributed.star.worker import World
from psl.errors import PSLError, check_count, expected


class Star:
    """A server and its clients, seen from outside: clients may fail, and come back; the server may not.

    Args:
        job: the run.
        restarts: how often each client that ends early is started again.
        restart: starts a rank again.
    """

    module = "psl.distributed.star.worker"

    def __init__(self, job: Job, restarts: int, restart: Callable[[int], None]):
        self.job, self._restart = job, restart
        self.names = ["server", *(f"client {i}" for i in range(job.n_clients))]
        self._restarts = dict.fromkeys(range(1, job.n_clients + 1), check_count("restarts", restarts, minimum=0))
        self._alone = time.monotonic()  # since when the server runs without clients

    def world(self, folder: Path, checkpoint: Path | None, network) -> dict:
        """Return what every process reads of where it is."""
        n_clients, emulation = self.job.n_clients, self.job.emulation
        world = World.here(folder, checkpoint, n_clients)
        if network is not None:

            def ends(plane):
                return [[network.address(0, plane), network.address(i + 1, plane)] for i in range(n_clients)]

            own = None if emulation.broadcast is None else ends(1)
            world = World(world.folder, world.checkpoint, network.address(0), ends(0), own)
        return asdict(world)

    def look(self, workers: list[Worker], news: dict) -> bool:
        """Start clients again that may be, and tell whether the run is over; raises `PSLError` if it failed."""
        server, *clients = workers
        started = news["rounds"] > 0 or news["faults"]
        if not started and any(client.code not in (None, 0) for client in clients):
            server.wait(1.0)  # if it failed first, its message says why
        if not server.running:
            wait_all(clients, self.job.timeout)
            if server.code != 0:
                raise PSLError(f"the server failed: {server.why()}")
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
                self._restart(rank)
            elif not started:
                raise PSLError(f"{self.names[rank]} failed: {client.why()}")
        return False

    def models(self, folder: Path, news: dict) -> list[nn.Module]:
        """Return the trained models: the server's part of the weights with each client's."""
        state = torch.load(folder / "server.pt", map_location="cpu", weights_only=True)
        return [_assembled(self.job.build_model(), state, folder / f"client-{number}.pt") for number in news["models"]]

    def complete(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the events as they are: both ends of a transfer are known."""
        return table


class Chain:
    """The processes of a pipeline, one per stage and relay: where one fails, all end.

    Args:
        job: the run.
        restarts: must be 0.
    """

    module = "psl.distributed.pipeline.worker"

    def __init__(self, job: PipelineJob, restarts: int = 0):
        if restarts:
            fix = "leave it out, and continue from checkpoint="
            raise expected("restarts", "0 in a pipeline, whose stages wait for each other", restarts, fix)
        job.engine(job.n_processes)
        self.job, self.names = job, job.names

    def world(self, folder: Path, checkpoint: Path | None, network) -> dict:
        """Return what every process reads of where it is."""
        ranks = list(range(self.job.n_processes))
        interfaces = ["lo" if network is None else network.interface(rank) for rank in ranks]
        place = None if checkpoint is None else str(checkpoint)
        return asdict(ChainWorld(str(folder), place, str(folder / "store"), interfaces, ranks))

    def look(self, workers: list[Worker], news: dict) -> bool:
        """Return whether the run is over; raises `PSLError` with the words of processes that failed."""
        if any(worker.code not in (None, 0) for worker in workers):
            wait_all(workers, 1.0)  # who failed first takes others with it
            failed = [k for k, worker in enumerate(workers) if worker.code not in (None, 0)]
            killed = [k for k in failed if workers[k].code < 0]
            order = killed + [k for k in failed if k not in killed]
            words = "\n".join(f"{self.names[k]} failed: {workers[k].why()}" for k in order)
            raise PSLError(f"the pipeline stopped. {words}")
        return all(worker.code == 0 for worker in workers)

    def models(self, folder: Path, news: dict) -> list[nn.Module]:
        """Return the trained model."""
        model = self.job.build_model()
        model.load_state_dict(torch.load(folder / "model.pt", map_location="cpu", weights_only=True))
        return [model.eval()]

    def complete(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the events with the beginning of every transfer."""
        return with_transfers(table, self.names)


def with_transfers(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Return events in which every transfer begins, where only its arrival is known.

    It begins when the sender's computation has ended, or when the one before it on the same link has arrived.

    Args:
        table: of `psl.distributed.events.collect`.
        names: of the processes in the order of the path.
    """
    computed = {"activation": "forward", "gradient": "backward"}
    sent, before, starts = {}, {}, []
    for row in table.sort_values("end_s").itertuples():
        which = row.round, row.micro_batch
        if not row.resource.startswith("link "):
            sent[row.resource, row.kind, *which] = row.end_s
            starts.append(row.start_s)
            continue
        sender = names[int(row.resource[5:].partition("→")[0])]
        start = max(sent.get((sender, computed[row.kind], *which), 0.0), before.get((row.round, row.resource), 0.0))
        starts.append(min(start, row.end_s))
        before[row.round, row.resource] = row.end_s
    table = table.sort_values("end_s").assign(start_s=starts)
    return table.sort_values(["start_s", "end_s"], ignore_index=True).rename_axis("event")


def _assembled(model: nn.Module, server: dict, file: Path) -> nn.Module:
    """Put the server's and a client's part of the weights into a model, in evaluation mode."""
    client = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(server | client)
    return model.eval()
