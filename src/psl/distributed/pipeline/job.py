"""What the processes of a pipelined run know: its arguments as plain values, and what each builds from them."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch

from psl.distributed.job import Job
from psl.distributed.pipeline.schedules import SCHEDULES
from psl.distributed.wire.groups import backend_for, check_device
from psl.errors import CutError, DataError, check_choice, expected
from psl.models.tracing import trace
from psl.training.config import TrainingConfig
from psl.training.frameworks.pipeline import Pipeline
from psl.training.model_preparation import image_layout, prepare_model, verify_cuts
from psl.training.partition import partition as divide
from psl.training.resolve import check_plan_fits, resolve
from psl.training.sampling import Sampler

_RESOLVED = ("rounds", "n_clients", "batch_size", "cut", "micro_batch")
_OPTIONS = (
    *_RESOLVED, "schedule", "partition", "optimizer", "lr", "loss", "seed", "model_seed", "model_options", "eval_every",
    "device", "backend", "timeout", "save_every", "record",
)  # fmt: skip
_NOT_IDENTITY = {"schedule", "relays", "ends"}


@dataclass(frozen=True, repr=False, eq=False)
class PipelineJob(Job):
    """A pipelined run of real processes; arguments as those of `Job`, and more.

    Args:
        micro_batch: samples that go through at a time; None for the whole mini-batch.
        schedule: "eager": what has arrived, backward first, as in `psl.simulate`; "gpipe" or "1f1b": torch's own, which
            tell no arrivals, so that there are no transfers among the events.
        timeout: s without a sign of life after which a process counts as gone; a message may take longer.
        relays: (P,) along the path, which processes only pass on.
        ends: shapes of a sample around the stages, the data's first; empty until the first process has told.
    """

    micro_batch: int | None = None
    schedule: str = "eager"
    relays: tuple = ()
    ends: tuple = ()

    @classmethod
    def of(cls, framework: str, model: str, dataset: str = "digits", *, plan=None, emulation=None, **options):
        """Return the job of these arguments, with defaults from a plan and checked as `psl.train` checks them.

        Raises:
            ScenarioError, CutError: as `psl.train`; nothing of that name.
        """
        check_choice("framework", framework, ("pipeline",))
        for name in options:
            check_choice("argument of a pipeline", name, _OPTIONS)
        found = resolve(Pipeline, plan=plan, **{name: options.pop(name, None) for name in _RESOLVED})
        schedule = options.pop("schedule", None)
        if schedule is None:
            schedule = "gpipe" if check_device(options.get("device", "cpu")).type == "cuda" else "eager"
        job = cls(
            framework, model, dataset, found.rounds, found.n_clients, found.batch_size, 1, tuple(found.cut), 0.0,
            emulation=emulation, round_time=found.round_time, micro_batch=found.micro_batch,
            schedule=check_choice("schedule", schedule, SCHEDULES), **options,
        ).checked()  # fmt: skip
        job = job.with_sample()
        run = dataclasses.replace(job, device="cpu").prepare()
        if any(isinstance(cut, str) for cut in run.cut):
            want, fix = "cuts at which one tensor crosses", "psl.cuts lists them; psl.train takes the others"
            raise expected("cut", want, f"{run.cut} between processes", fix, CutError)
        if plan is not None:
            check_plan_fits(plan, run.model)
        verify_cuts(run.model, run.config)
        job = dataclasses.replace(job, relays=tuple(_relays(plan, len(run.stages))))
        job._check_path()
        return job

    def _check_path(self) -> None:
        if self.schedule == "1f1b" and len(self.sizes) < self.n_processes:
            want = f"one that makes {self.n_processes} micro-batches or more"
            fix = "take a smaller one, or schedule='eager'"
            raise expected("micro_batch", want, len(self.sizes), fix)
        if torch.device(self.device).type == "cuda" and self.schedule == "eager":
            fix = "pass schedule='gpipe' or '1f1b'"
            raise expected("schedule", "one of torch's own on a GPU, which tells nobody what has arrived", "eager", fix)
        if self.emulation is None:
            return
        check_choice("emulate.layout", getattr(self.emulation, "layout", None), ("chain",))
        if self.emulation.n_processes != self.n_processes:
            want = f"{self.n_processes} processes, one per stage and relay"
            raise expected("emulate", want, self.emulation.n_processes, "use emulation_for(plan)")

    @property
    def n_processes(self) -> int:
        """P, stages and relays."""
        return len(self.relays)

    @property
    def names(self) -> list[str]:
        """What the processes are called, in the order of the path."""
        return [f"relay {k}" if relay else f"stage {self.place(k)}" for k, relay in enumerate(self.relays)]

    @property
    def mini_batch(self) -> int:
        """Samples of a round."""
        return self.n_clients * self.batch_size

    @property
    def sizes(self) -> list[int]:
        """Samples of each micro-batch."""
        n, m = self.mini_batch, self.micro_batch or self.mini_batch
        return [min(m, n - start) for start in range(0, n, m)]

    def place(self, rank: int) -> int:
        """Return the number of a process's stage, or of the one before a relay."""
        return sum(not relay for relay in self.relays[: rank + 1]) - 1

    def due(self, index: int) -> bool:
        """Whether to evaluate after round `index`."""
        return (index + 1) % self.eval_every == 0 or index + 1 == self.rounds

    def prepare(self, device: torch.device | str = "cpu") -> Pipeline:
        """Return the framework, of which a process uses its own stage."""
        device = torch.device(device)
        model = self.build_model()
        config = TrainingConfig(
            framework="pipeline",
            n_clients=self.n_clients,
            batch_size=self.batch_size,
            optimizer=self.optimizer_maker(),
            rounds=self.rounds,
            loss=self.loss_function(),
            metric=self.metric_function(),
            cut=list(self.cut),
            micro_batch=self.micro_batch,
            partition=self.partition,
            seed=self.seed,
            eval_every=self.eval_every,
            round_time=self.round_time,
        )
        layout = image_layout(model, device)
        config = dataclasses.replace(config, example=dataclasses.replace(self, device=str(device)).example(layout))
        return Pipeline(prepare_model(model, device, layout), config)

    def engine(self, n_local: int) -> str:
        """Return what carries the micro-batches, as `torch.distributed.init_process_group` names it.

        On the CPU gloo; NCCL, which its authors have not run here, where each process has a GPU of its own. Headers,
        labels and weights go by gloo in any case.

        Args:
            n_local: processes of the run on this machine.

        Raises:
            ScenarioError: GPUs that processes would have to share.
        """
        if torch.device(self.device).type == "cpu":
            return backend_for("cpu", n_local, self.backend)
        check_choice("backend", self.backend, ("auto", "nccl"), "leave it out: micro-batches do not leave the GPUs")
        backend_for(self.device, n_local, "nccl")
        return "cpu:gloo,cuda:nccl"

    def bits_per_round(self) -> tuple[int, int]:
        """Return the bits that `psl.train` counts up and down: activations with the labels, once, and gradients."""
        down = 32 * self.mini_batch * sum(math.prod(end) for end in self.ends[1:-1])
        return down + (64 * self.mini_batch if self.cut else 0), down

    def identity(self) -> dict:
        """Return what a run and its checkpoint must agree on."""
        return {name: value for name, value in super().identity().items() if name not in _NOT_IDENTITY}

    def agreed(self) -> dict:
        """Return what all processes of a run must have been started with."""
        return {name: value for name, value in self.to_dict().items() if name != "ends"}


class Source:
    """The data of a pipelined run, in the process that holds it.

    Args:
        job: the run.
        device: where batches go.

    Attributes:
        test: to evaluate with.
        ends: shapes of a sample around the stages.
        digest: of the data, with which a run may continue.
    """

    def __init__(self, job: PipelineJob, device: torch.device):
        model = job.build_model()
        layout = image_layout(model, device)
        run = job.prepare(device)
        self._train, self.test = job.open_samples(run.model, device, run.config)
        shares = divide(
            job.partition, len(self._train), job.n_clients, labels=self._train.labels, minimum=job.batch_size,
            seed=job.seed,
        )  # fmt: skip
        labels = self._train.fetch(np.array([0]))[1]
        if labels.ndim != 1 or labels.is_floating_point():
            got = f"{str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape[1:])} per sample"
            fix = "train with psl.train, which takes others"
            raise expected("dataset", "one class number per sample between processes", got, fix, DataError)
        self._sampler = Sampler(np.concatenate(shares), job.mini_batch, job.seed, 0)
        self.digest = f"{self._train.digest()} training, {self.test.digest()} test"
        cuts = run.cut
        traced = trace(prepare_model(model, device, layout), self._train.fetch(np.array([0]))[0])
        places = traced.places()
        self.ends = [traced.sample_shapes(places[cut])[0] for cut in (0, *cuts, -1)]

    def batch(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and labels of a round."""
        return self._train.fetch(self._sampler.batch(index))


def _relays(plan, n_stages: int) -> list[bool]:
    if plan is None or getattr(plan, "hops", None) is None:
        return [False] * n_stages
    relays = []
    for _, _, j in plan.stages:
        hops = sum(cut == j for cut, _, _ in plan.hops)
        relays += [False, *[True] * (hops - 1)]
    return relays
