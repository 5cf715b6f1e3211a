"""A launched pipeline, seen from outside: which processes it has, when it has failed, and what it leaves."""

from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from psl.distributed.nursery import Worker, wait_all
from psl.distributed.pipeline_job import PipelineJob
from psl.distributed.pipeline_worker import World
from psl.errors import PSLError, expected


class Chain:
    """The processes of a pipeline, one per stage and relay: where one fails, all end.

    Args:
        job: the run.
        restarts: must be 0.
    """

    module = "psl.distributed.pipeline_worker"

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
        return asdict(World(str(folder), place, str(folder / "store"), interfaces, ranks))

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


def run_pipeline(model: str, dataset: str = "digits", **options):
    """Return ``psl.distributed.run("pipeline", …)``."""
    from psl.distributed.launch import run

    return run("pipeline", model, dataset, **options)
