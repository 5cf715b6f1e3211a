"""One process of pipelined split learning: a stage, or a relay between two."""

import importlib
import json
import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from psl.distributed.emulate import Compute, EdgeEmulation, keep_memory
from psl.distributed.stages import SCHEDULES, EdgeStage
from psl.errors import check_choice, expected
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
    """What all processes of a pipelined run know: model, data, cuts, micro-batches; each builds the same from it.

    Args:
        spec: plain values, see `psl.distributed.run_pipeline`: model, model_seed, dataset, cut, n_clients, batch_size,
            micro_batch, rounds, partition, optimizer, lr, seed, schedule, eval_every.
    """

    def __init__(self, spec: dict):
        self.spec = spec
        model = build_model(spec["model"], spec["model_seed"])
        layout = image_layout(model, torch.device("cpu"))
        self.train, self.test = (Samples(part, "cpu", layout) for part in open_dataset(spec["dataset"]))
        b = spec["batch_size"]
        size, n_clients, seed = len(self.train), spec["n_clients"], spec["seed"]
        shares = divide(spec["partition"], size, n_clients, labels=self.train.labels, minimum=b, seed=seed)
        sizes = np.array([len(share) for share in shares])
        setup = Setup(
            prepare_model(model, torch.device("cpu"), layout), sizes / sizes.sum(), b,
            optimizer_factory(spec["optimizer"], spec["lr"]), cross_entropy, cut=spec["cut"],
            micro_batch=spec["micro_batch"],
        )  # fmt: skip
        self.layout, self.run = layout, Pipeline(setup, Link())
        self.mini_batch = n_clients * b
        self.sampler = Sampler(np.concatenate(shares), self.mini_batch, seed, 0)
        m, n = self.run.micro_batch, self.mini_batch
        self.sizes = [min(m, n - start) for start in range(0, n, m)]
        check_choice("schedule", spec["schedule"], SCHEDULES)
        n_stages = len(self.run.stages)
        if spec["schedule"] == "1f1b" and len(self.sizes) < n_stages:
            fix = "take a smaller micro_batch, or schedule='eager'"
            raise expected("micro_batch", f"one that makes {n_stages} micro-batches or more", len(self.sizes), fix)
        shapes = cut_shapes(trace(model), tuple(self.train.fetch(np.array([0]))[0].shape[1:]))
        self.ends = [shapes[0], *(shapes[cut] for cut in self.run.cut), shapes[-1]]  # of one sample, around the stages

    def due(self, index: int) -> bool:
        """Whether to evaluate after round `index`."""
        return (index + 1) % self.spec["eval_every"] == 0 or index + 1 == self.spec["rounds"]


def build_model(model: str, seed: int) -> torch.nn.Module:
    """Return what a factory named "module:function" makes when torch's generator was seeded.

    Raises:
        ScenarioError: there is no such function.
    """
    place, _, name = model.partition(":") if isinstance(model, str) else ("", "", "")
    try:
        factory = getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError, ValueError) as cause:
        fix = "name a function without arguments that every process can import, such as 'psl.models:cnn'"
        raise expected("model", "'module:function'", repr(model)[:80], fix) from cause
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return factory()


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
    job = PipelineJob(spec)
    dist.init_process_group(**options)
    try:
        work(job, emulation, spec["relays"], folder, timeout)
        dist.barrier()  # nobody leaves while another still talks to it
    finally:
        dist.destroy_process_group()
