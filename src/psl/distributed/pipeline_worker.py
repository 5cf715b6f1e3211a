"""One process of pipelined split learning: a stage, or a relay between two."""

import json
import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from psl.distributed.emulate import Compute, EdgeEmulation, keep_memory
from psl.distributed.job import find
from psl.distributed.stages import SCHEDULES, EdgeStage
from psl.models.shapes import cut_shapes
from psl.models.tracing import trace
from psl.training.batches import Sampler, Samples
from psl.training.frameworks.base import Setup
from psl.training.frameworks.pipeline import Pipeline
from psl.training.linearise import cross_entropy
from psl.training.link import Link
from psl.training.partition import partition as divide
from psl.training.setup import image_layout, open_dataset, optimizer_factory, prepare_model


class PipelineJob:
    """What all processes of a pipelined run know: model, cuts, micro-batches; each builds the same from it.

    Args:
        spec: plain values, see `psl.distributed.run_pipeline`: model, model_options, model_seed, dataset, cut,
            n_clients, batch_size, micro_batch, rounds, partition, optimizer, lr, loss, seed, schedule, eval_every; and
            ends, the shapes of a sample around the stages, where they are known already.
        data: open the data; only the first stage, and who evaluates, need it.
    """

    def __init__(self, spec: dict, data: bool = True):
        self.spec = spec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec["model_seed"])
            model = find("model", spec["model"], "psl.models:cnn")(**spec["model_options"])
        optimizer, loss = spec["optimizer"], spec["loss"]
        optimizer = find("optimizer", optimizer, "'sgd'") if ":" in optimizer else optimizer
        loss = cross_entropy if loss is None else find("loss", loss, "'module:function'")
        b, n_clients, cpu = spec["batch_size"], spec["n_clients"], torch.device("cpu")
        self.layout = image_layout(model, cpu)
        setup = Setup(
            prepare_model(model, cpu, self.layout), np.full(n_clients, 1 / n_clients), b,
            optimizer_factory(optimizer, spec["lr"]), loss, cut=spec["cut"], micro_batch=spec["micro_batch"],
        )  # fmt: skip
        self.run = Pipeline(setup, Link())
        m, n = self.run.micro_batch, n_clients * b
        self.sizes = [min(m, n - start) for start in range(0, n, m)]
        self.mini_batch = n
        if data:
            self._open_data(spec["dataset"])
        shape = spec.get("ends") or self._shapes(model)
        self.ends = [tuple(end) for end in shape]  # of one sample, around the stages

    def _open_data(self, dataset):
        spec, seed = self.spec, self.spec["seed"]
        parts = open_dataset(find("dataset", dataset, "'digits'")() if ":" in dataset else dataset)
        self.train, self.test = (Samples(part, "cpu", self.layout) for part in parts)
        shares = divide(
            spec["partition"], len(self.train), spec["n_clients"], labels=self.train.labels,
            minimum=spec["batch_size"], seed=seed,
        )  # fmt: skip
        self.sampler = Sampler(np.concatenate(shares), self.mini_batch, seed, 0)

    def _shapes(self, model):
        shapes = cut_shapes(trace(model), tuple(self.train.fetch(np.array([0]))[0].shape[1:]))
        return [shapes[0], *(shapes[cut] for cut in self.run.cut), shapes[-1]]

    def due(self, index: int) -> bool:
        """Whether to evaluate after round `index`."""
        return (index + 1) % self.spec["eval_every"] == 0 or index + 1 == self.spec["rounds"]


def work(job: PipelineJob, emulation: EdgeEmulation, relays: list[bool], folder: Path, timeout: float) -> None:
    """Be one process of the run: join the group that the caller has made, train, and write events and weights.

    Args:
        job: what to train.
        emulation: of a chain with as many processes as the group.
        relays: (P,) which processes only pass on.
        folder: where ``events-RANK.json`` and ``weights-ROUND-RANK.pt`` go.
        timeout: s to wait for a neighbour.
    """
    rank, count = dist.get_rank(), dist.get_world_size()
    place = sum(not relay for relay in relays[: rank + 1]) - 1  # of this stage, or of the one before this relay
    own = None if relays[rank] else job.run.stages[place]
    ends = (job.ends[place + 1],) * 2 if own is None else (job.ends[place], job.ends[place + 1])
    events: list[tuple] = []

    def record(kind, number, start, end, cpu=0.0):
        events.append((index, kind, number, start, end, cpu))

    compute = Compute(record=record) if own is None else emulation.compute(rank, record, folder / "turn")
    stage = EdgeStage(
        None if own is None else own.module, rank, count, *((job.sizes[0], *shape) for shape in ends),
        layout=job.layout, compute=compute,
        lines=(
            emulation.line(rank, "forward") if rank < count - 1 else None,
            emulation.line(rank - 1, "backward") if rank > 0 else None,
        ),
        arrived=lambda kind, number, when: record(f"{kind} arrived", number, when, when),
    )  # fmt: skip
    schedule = SCHEDULES[job.spec["schedule"]](stage, job.sizes, job.run.setup.loss)
    losses, rounds = [], []
    try:
        for index in range(job.spec["rounds"]):
            torch.manual_seed(int(np.random.default_rng([job.spec["seed"], 2, index]).integers(2**63)))
            inputs, labels = mini_batch(job, index, rank, count)
            if own is not None:
                own.zero_grad()
            dist.barrier()
            start = time.monotonic()
            value = schedule.mini_batch(inputs if rank == 0 else None, labels if rank == count - 1 else None)
            stage.flush(timeout)
            if own is not None:
                with compute("step"):
                    own.step()
            rounds.append((start, time.monotonic()))
            losses.append(float(value))
            if own is not None and job.due(index):
                torch.save(own.module.state_dict(), folder / f"new-{rank}")
                (folder / f"new-{rank}").rename(folder / f"weights-{index}-{place}.pt")  # whole or not there
            if rank == count - 1:
                (folder / "progress").write_text(json.dumps(losses))
    finally:
        stage.close()
    report = {"events": events, "rounds": rounds, "losses": losses, "overrun": compute.overrun}
    (folder / f"events-{rank}.json").write_text(json.dumps(report))


def mini_batch(job: PipelineJob, index: int, rank: int, count: int):
    """Return inputs and labels of a round where they belong: only the first process touches the data.

    The labels go straight to the last process, once per round.
    """
    inputs = labels = None
    if rank == 0:
        inputs, labels = job.train.fetch(job.sampler.batch(index))
        if count > 1:
            dist.send(labels, count - 1)
    elif rank == count - 1:
        labels = torch.empty(job.mini_batch, dtype=torch.int64)
        dist.recv(labels, 0)
    return inputs, labels


def main(arguments: list[str]) -> None:
    """Run as one process: ``SPEC RANK``, or ``SPEC`` alone under torchrun, which tells the rank.

    Args:
        arguments: path of a file with what `PipelineJob` needs and folder, timeout, emulation, relays and interfaces.
    """
    torch.set_num_threads(1)
    keep_memory()
    spec = json.loads(Path(arguments[0]).read_text())
    folder, timeout = Path(spec["folder"]), spec["timeout"]
    emulation = EdgeEmulation.from_dict(spec["emulation"])
    options = {"backend": "gloo", "timeout": timedelta(seconds=timeout)}
    if len(arguments) > 1:
        rank = int(arguments[1])
        os.environ["GLOO_SOCKET_IFNAME"] = spec["interfaces"][rank]
        store = dist.FileStore(str(folder / "store"), emulation.n_processes)
        options |= {"store": store, "rank": rank, "world_size": emulation.n_processes}
    dist.init_process_group(**options)
    job = PipelineJob(spec, data=dist.get_rank() == 0)
    try:
        work(job, emulation, spec["relays"], folder, timeout)
        dist.barrier()  # nobody leaves while another still talks to it
    finally:
        dist.destroy_process_group()
