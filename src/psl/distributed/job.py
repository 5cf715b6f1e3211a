"""What all processes of a run know, as plain values: every worker builds model, data and framework from it."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import nn

from psl.distributed.edge.emulate import EdgeEmulation
from psl.distributed.names import find, find_dataset, open_named
from psl.distributed.segments import Segments
from psl.distributed.wire.groups import BACKENDS, check_device
from psl.errors import CutError, DataError, check_choice, check_count, check_number, expected
from psl.gradient_aggregation import aggregated_rows
from psl.records import Record
from psl.training.config import TrainingConfig, optimizer_factory
from psl.training.first_batch import checked_samples
from psl.training.frameworks import FRAMEWORKS, Framework, build_framework, framework_class
from psl.training.model_preparation import check_model, image_layout, prepare_model, verify_cuts
from psl.training.partition import check_rule
from psl.training.resolve import check_plan_fits, resolve
from psl.training.sampling import IndexedDataset, Samples
from psl.training.scores import Score, check_metric, row_loss

#: A data set: (train, test).
Given = tuple[IndexedDataset, IndexedDataset]
#: Frameworks of a server and clients; a pipeline has `PipelineJob`.
STAR = ("sl", "sfl", "psl", "epsl", "edgesplit")
_NOT_IDENTITY = {
    "sample",
    "sample_dtype",
    "rounds",
    "eval_every",
    "timeout",
    "save_every",
    "record",
    "emulation",
    "device",
    "backend",
}


@dataclass(frozen=True, repr=False, eq=False)
class Job(Record):
    """A run of real processes; arguments as in `psl.train`, with models, data and functions by name.

    Args:
        framework: one of "sl", "sfl", "psl", "epsl", "edgesplit".
        model: "module:function", called with `model_options` after torch's generator was seeded with `model_seed`.
        dataset: a name for `psl.data.load`, or "module:function" that returns (train, test).
        optimizer: "sgd", "adam" or "module:function".
        loss: "module:function", or "module:name" of a loss module; None for the cross entropy.
        metric: "accuracy" or "module:function".
        cut: one number or name, or a tuple with one per client.
        partition: "iid", a Dirichlet α, or N index arrays.
        device: "cpu", or "cuda": the processes of a machine take its GPUs in turn.
        backend: of the channels: "auto", "gloo" or "nccl", see `psl.distributed.wire.groups.backend_for`.
        timeout: s without an answer after which a client counts as gone.
        save_every: s between two checkpoints.
        record: keep every tensor that crosses, for tests of privacy.
        emulation: slower devices and links, None for none.
        round_time: s of a round by the plan, NaN without one.
        sample, sample_dtype: shape and type of a sample's input, with which the model is traced; () if not known yet.
    """

    framework: str
    model: str
    dataset: str
    rounds: int
    n_clients: int
    batch_size: int
    local_steps: int
    cut: int | str | tuple
    phi: float
    linearise: str = "representative"
    partition: str | float | tuple = "iid"
    optimizer: str = "sgd"
    lr: float | None = None
    loss: str | None = None
    metric: str = "accuracy"
    seed: int = 0
    model_seed: int = 0
    model_options: dict = field(default_factory=dict)
    eval_every: int = 1
    device: str = "cpu"
    timeout: float = 30.0
    save_every: float = 10.0
    record: bool = False
    emulation: EdgeEmulation | None = None
    round_time: float = float("nan")
    sample: tuple[int, ...] = ()
    sample_dtype: str = "float32"
    backend: str = "auto"

    @classmethod
    def of(cls, framework: str, model: str, dataset: str = "digits", *, plan=None, emulation=None, **options) -> "Job":
        """Return the job of these arguments, with defaults from a plan and checked as `psl.train` checks them.

        Raises:
            ScenarioError, CutError: as `psl.train`; no star framework; nothing of that name.
        """
        fix = "use one of them; a pipeline has PipelineJob"
        check_choice("framework", framework, STAR, fix)
        known = [f.name for f in fields(cls)] + ["plan"]
        for name, value in options.items():
            if name in ("micro_batch", "schedule"):
                fix = "leave it out, or take the framework 'pipeline'"
                raise expected(name, f"none for {framework!r}, as it is for pipelines", repr(value)[:80], fix)
            check_choice("argument", name, known)
        given = {name: options.pop(name, None) for name in _RESOLVED}
        found = resolve(framework_class(framework), plan=plan, **given)
        if found.linearise == "sampled" and framework == "epsl":
            fix = "train with psl.train, which draws rows, or take another linearise="
            raise expected("linearise", "a rule that aggregates, between processes", "'sampled'", fix)
        job = cls(
            framework, model, dataset, found.rounds, found.n_clients, found.batch_size, found.local_steps,
            tuple(found.cut) if isinstance(found.cut, list) else found.cut, found.phi, found.linearise,
            emulation=emulation, round_time=found.round_time, **options,
        ).checked()  # fmt: skip
        given = open_named(dataset)
        job = job.with_sample(given) if framework_class(framework).splits else job
        run = dataclasses.replace(job, device="cpu").prepare()
        job.open_samples(run.model, torch.device("cpu"), run.config, given)
        if run.splits:
            if plan is not None:
                check_plan_fits(plan, run.model)
            verify_cuts(run.model, run.config)
        if emulation is not None and emulation.n_processes != job.n_clients + 1:
            want = f"a star of {job.n_clients + 1} processes"
            raise expected("emulate", want, f"{emulation.n_processes}", "make it for this plan")
        return job

    def checked(self) -> "Job":
        """Return the job with its values in the form that JSON keeps; refuse what every process would refuse later.

        Raises:
            ScenarioError, DataError: as `psl.train`; a function or data in place of a name.
        """
        if not isinstance(self.model_options, dict):
            got = type(self.model_options).__name__
            raise expected("model_options", "a dictionary", got, "pass the model's arguments by their names")
        device, pass_seconds = check_device(self.device), "pass seconds"
        if self.emulation is not None and device.type != "cpu":
            fix = "leave emulate= out, or run on the CPU, whose computing time is known"
            raise expected("emulate", "device 'cpu'", repr(str(device)), fix)
        check_choice("backend", self.backend, BACKENDS)
        self.optimizer_maker()
        self.loss_function()
        self.metric_function()
        check_model(self.build_model())
        find_dataset(self.dataset)
        return dataclasses.replace(
            self, device=str(device), partition=check_rule(self.partition, self.n_clients),
            seed=check_count("seed", self.seed, minimum=0),
            model_seed=check_count("model_seed", self.model_seed, minimum=0),
            eval_every=check_count("eval_every", self.eval_every),
            timeout=check_number("timeout", self.timeout, minimum=0, strict=True, fix=pass_seconds),
            save_every=check_number("save_every", self.save_every, minimum=0, fix=pass_seconds),
        )  # fmt: skip

    @property
    def kind(self) -> type[Framework]:
        """The framework's class."""
        return FRAMEWORKS[self.framework]

    @property
    def steps(self) -> int:
        """Mini-batches per client and round."""
        return self.local_steps if self.kind.averages else 1

    @property
    def patience(self) -> float:
        """Seconds that a client waits for the server, which may itself wait for other clients.

        A server that was killed is noticed at once, since its connections close; this is for one that hangs.
        """
        return 5 * self.timeout * (self.n_clients if self.framework == "sl" else 1)

    def cut_of(self, client: int) -> int | str:
        """Return the cut of a client."""
        return self.cut[client] if isinstance(self.cut, tuple) else self.cut

    def build_model(self) -> nn.Module:
        """Return the model with its first weights, the same in every process."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.model_seed)
            return find("model", self.model, "psl.models:cnn")(**self.model_options)

    def optimizer_maker(self) -> Callable:
        """Return the function from parameters to an optimizer."""
        usual = isinstance(self.optimizer, str) and ":" not in self.optimizer
        return optimizer_factory(self.optimizer if usual else find("optimizer", self.optimizer, "'sgd'"), self.lr)

    def loss_function(self) -> Callable:
        """Return the loss, one number per row."""
        such_as = "'mine:loss', or leave it out for the cross entropy"
        return row_loss(None if self.loss is None else find("loss", self.loss, such_as))

    def metric_function(self) -> Score:
        """Return the metric, one number per row."""
        such_as = "'mine:metric', or leave it out for the accuracy"
        return check_metric(self.metric if self.metric == "accuracy" else find("metric", self.metric, such_as))

    def open_samples(
        self, model: nn.Module, device: torch.device, config: TrainingConfig, given: Given | None = None
    ) -> tuple[Samples, Samples]:
        """Return training and test samples that the model takes, as `checked_samples` does.

        Args:
            model, device, config: of the run.
            given: the data sets, if they are open already.
        """
        config = dataclasses.replace(config, loss=self.loss_function())  # the framework's may be timed
        return checked_samples(model, given or open_named(self.dataset), device, config, image_layout(model, device))

    def example(self, layout: torch.memory_format) -> torch.Tensor:
        """Return inputs of two samples, with which the model is traced; raises as `with_sample`."""
        job = self if self.sample else self.with_sample()
        inputs = torch.zeros((2, *job.sample), dtype=getattr(torch, job.sample_dtype), device=self.device)
        return inputs.contiguous(memory_format=layout) if inputs.ndim == 4 else inputs

    def with_sample(self, given: Given | None = None) -> "Job":
        """Return the job with shape and type of a sample's input, found in its data.

        Args:
            given: the data sets, if they are open already.

        Raises:
            DataError: samples with several inputs, which processes do not send each other.
        """
        inputs = Samples((given or open_named(self.dataset))[0]).fetch(np.array([0]))[0]
        if not isinstance(inputs, torch.Tensor):
            want, fix = "samples with one input tensor between processes", "train with psl.train, which takes several"
            raise expected("dataset", want, f"a {type(inputs).__name__} of inputs", fix, DataError)
        shape, dtype = tuple(inputs.shape[1:]), str(inputs.dtype).removeprefix("torch.")
        return dataclasses.replace(self, sample=shape, sample_dtype=dtype)

    def prepare(self, client: int = 0, segments: Segments | None = None) -> Framework:
        """Return the framework with one client, whose halves a process uses: the device's or the server's.

        Args:
            client: whose cut is meant where each has its own.
            segments: told which part of a step is computed.
        """
        device = torch.device(self.device)
        model = self.build_model()
        loss = self.loss_function()
        loss = loss if segments is None else segments.around_loss(loss)
        config = TrainingConfig(
            framework=self.framework,
            n_clients=1,
            batch_size=self.batch_size,
            optimizer=self.optimizer_maker(),
            rounds=self.rounds,
            loss=loss,
            metric=self.metric_function(),
            local_steps=self.local_steps,
            cut=[self.cut_of(client)] if self.kind.several_cuts else self.cut,
            phi=self.phi,
            linearise=self.linearise,
            partition=self.partition,
            seed=self.seed,
            eval_every=self.eval_every,
            round_time=self.round_time,
        )
        layout = image_layout(model, device)
        if self.kind.splits:
            config = dataclasses.replace(config, example=self.example(layout))
        run = build_framework(prepare_model(model, device, layout), config)
        if isinstance(run.settings().get("cut"), str):
            got, fix = f"{run.settings()['cut']!r} between processes", "psl.cuts lists them; psl.train takes the others"
            raise expected("cut", "a cut at which one tensor crosses", got, fix, CutError)
        if segments is not None:
            segments.watch(run.optimizers.values())
        return run

    def holds_all(self, run: Framework) -> bool:
        """Whether the device of a framework from `prepare` holds the whole model, and the server none of it."""
        return self.framework == "edgesplit" and run.server_part(0) is None

    @property
    def n_aggregated(self) -> int:
        """n_A, the slots whose gradients come down once for all clients."""
        return aggregated_rows(self.phi, self.batch_size) if self.framework == "epsl" and self.n_clients > 1 else 0

    def identity(self) -> dict:
        """Return what two processes, or a run and its checkpoint, must agree on."""
        values = {k: v for k, v in self.to_dict().items() if k not in _NOT_IDENTITY}
        return {name: json.dumps(value, sort_keys=True) for name, value in values.items()}

    def digest(self) -> list[int]:
        """Return 4 whole numbers that differ where `identity` does."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).digest()
        return [int.from_bytes(digest[k : k + 7], "big") for k in range(0, 28, 7)]


_RESOLVED = ("rounds", "n_clients", "batch_size", "local_steps", "cut", "phi", "linearise")
