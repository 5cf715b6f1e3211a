"""What all processes of a run know, as plain values: every process builds model, data and framework from it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import nn

from psl.distributed.edge.emulate import EdgeEmulation
from psl.distributed.names import check_device, find, find_dataset, named_cuts, open_named
from psl.distributed.pipeline.orders import relays
from psl.distributed.segments import Segments
from psl.distributed.wire.messages import described, ones_like
from psl.errors import check_choice, check_count, check_number, expected
from psl.gradient_aggregation import aggregated_rows
from psl.records import Record, as_kept
from psl.training.config import TrainingConfig, optimizer_factory
from psl.training.defences import Defence
from psl.training.first_batch import checked_samples
from psl.training.frameworks import FRAMEWORKS, Framework, build_framework, framework_class
from psl.training.messages import each, part_sizes
from psl.training.model_preparation import check_model, prepare_model, tried_layout, verify_cuts
from psl.training.partition import check_rule
from psl.training.partition import partition as divide
from psl.training.resolve import check_plan_fits, drawn_time, resolve
from psl.training.sampling import IndexedDataset, PartSampler, Sampler, Samples, samplers_of
from psl.training.scores import Score, check_metric, row_loss

Given = tuple[IndexedDataset, IndexedDataset]  # (train, test)
#: Frameworks of a server and clients; "pipeline" is a chain of stages.
STAR = ("fedavg", "sl", "sfl", "psl", "epsl", "edgesplit")
#: Orders in which a stage computes what has arrived.
SCHEDULES = ("eager", "gpipe", "1f1b")
_OF_CLIENTS = ("local_steps", "phi", "linearise", "rows", "sampling", "server_steps", "defence")
_OF_PIPELINES = ("micro_batch", "schedule")  # the first also of some frameworks with clients
#: Fields that are known with the form of samples; who has no data is told.
OF_SAMPLES = ("sample", "tensors", "layout")
#: Memory layouts of images, by name.
LAYOUTS = {"contiguous_format": torch.contiguous_format, "channels_last": torch.channels_last}
_RESOLVED = ("rounds", "n_clients", "batch_size", "micro_batch", *_OF_CLIENTS)
_ROOM = 1 << 28  # bytes of a message beside a model


@dataclass(frozen=True, repr=False, eq=False)
class Job(Record):
    """A run of real processes; arguments as in `psl.train`, with models, data and functions by name.

    Args:
        framework: one of `STAR`, or "pipeline".
        model: "module:function", called with `model_options` after torch's generator was seeded with `model_seed`.
        dataset: a name for `psl.data.load`, or "module:function" that returns (train, test).
        optimizer: "sgd", "adam" or "module:function".
        loss: "module:function", or "module:name" of a loss module; None for the cross entropy.
        metric: "accuracy" or "module:function".
        cut: a number or name; a tuple with one per client or stage boundary, or both of a U-shaped split; or None.
        partition: "iid", a Dirichlet α, or N index arrays.
        device: "cpu", or "cuda": the processes of a machine take its GPUs in turn; tensors cross in the CPU's memory.
        timeout: s without a sign of life after which a process counts as gone; computing and sending may take longer.
        save_every: s between two checkpoints.
        record: keep every tensor that crosses, for tests of privacy.
        emulation: slower devices and links, None for none.
        round_time: s of a round by the plan, NaN without one; plan: kept where they depend on what is drawn.
        micro_batch: samples that go through at a time, see `psl.train`; None for the whole mini-batch.
        schedule: of a pipeline: "eager": what has arrived, backward first, as in `psl.simulate`; "gpipe": all
            forward, then all backward; "1f1b": one forward, one backward, with as many in flight as stages are left.
        relays: (P,) along the path of a pipeline, which processes only pass on.
        turns: (N M,) clients whose micro-batches the server takes, in the plan's order; () as they come.
        tensors: how many may cross at a cut; a plan whose profile counts such cuts says it, and so does a `Cut`.
        sample: form, shapes and types of a sample's inputs with a batch of 2 in front; None if not known yet.
        layout: one of `LAYOUTS`, of images in memory; who knows the form of samples has tried which it can be.
    """

    framework: str
    model: str
    dataset: str
    rounds: int
    n_clients: int
    batch_size: int
    local_steps: int = 1
    cut: Any = None
    phi: float = 0.0
    linearise: str = "representative"
    rows: str = "fixed"
    sampling: str = "own"
    server_steps: int = 0
    defence: Defence | None = None
    partition: Any = "iid"
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
    plan: Any = None
    micro_batch: int | None = None
    schedule: str = "eager"
    relays: tuple = ()
    turns: tuple = ()
    tensors: int = 1
    sample: Any = None
    layout: str = "contiguous_format"

    @classmethod
    def of(
        cls, framework: str, model: str, dataset: str = "digits", *, plan=None, emulation=None, has_data=True, **options
    ) -> "Job":
        """Return the job of these arguments, with defaults from a plan and checked as `psl.train` checks them.

        Args:
            plan, emulation: as in `psl.distributed.run`.
            has_data: whether data can be opened here; a server without learns of samples from its clients.

        Raises:
            ScenarioError, CutError, DataError: as `psl.train`; nothing of that name.
        """
        check_choice("framework", framework, (*STAR, "pipeline"))
        pipeline = framework == "pipeline"
        known = {f.name for f in fields(cls)} - {"relays", "turns", "sample", "layout", "round_time"}
        foreign = _OF_CLIENTS if pipeline else _OF_PIPELINES[FRAMEWORKS[framework].micro_batched :]
        for name, value in options.items():
            if name in foreign:
                why = "which is for frameworks with clients" if pipeline else "which is for pipelines"
                raise expected(f"{name}, {why}", f"none for {framework!r}", repr(value)[:80], "leave it out")
            check_choice("argument", name, sorted(known))
        options.setdefault("rounds", None)
        given = {name: options.pop(name) for name in ("cut", *_RESOLVED) if name in options}
        found = resolve(framework_class(framework), plan=plan, **given)
        options |= {name: getattr(found, name) for name in _RESOLVED} | {"round_time": found.round_time}
        options["plan"] = None if found.drawn_time is None else plan
        options["cut"], tensors = named_cuts(found.cut)
        options["tensors"] = max(tensors, check_count("tensors", options.get("tensors", 1)))
        turns = tuple(map(int, getattr(getattr(plan, "served", None), "order", ())))
        job = cls(framework, model, dataset, emulation=emulation, turns=turns, **options).checked()
        if pipeline:
            job = dataclasses.replace(job, relays=tuple(relays(plan, len(job.cut) + 1)))
            if job.schedule == "1f1b" and len(job.sizes) < len(job.relays):
                want, fix = f"one that makes {len(job.relays)} micro-batches or more", "take a smaller one, or 'eager'"
                raise expected("micro_batch", want, len(job.sizes), fix)
        layout = "chain" if pipeline else "star"
        if emulation is not None and (emulation.layout, emulation.n_processes) != (layout, job.n_processes):
            want, got = f"a {layout} of {job.n_processes} processes", f"a {emulation.layout} of {emulation.n_processes}"
            raise expected("emulate", want, got, "use emulation_for(plan)")
        return job.tried(plan) if has_data else job

    def checked(self) -> "Job":
        """Return the job with its values in the form that JSON keeps; refuse what every process would refuse later.

        Raises:
            ScenarioError, DataError: as `psl.train`; a function or data in place of a name.
        """
        if not isinstance(self.model_options, dict):
            raise expected("model_options", "a dictionary", type(self.model_options).__name__, "pass arguments by name")
        self = dataclasses.replace(self, model_options=as_kept("model_options", self.model_options))
        device = check_device(self.device)
        if self.emulation is not None and device.type != "cpu":
            raise expected("emulate", "device 'cpu'", repr(str(device)), "leave emulate= out, or use the CPU")
        check_choice("schedule", self.schedule, SCHEDULES)
        self.optimizer_maker()
        self.loss_function()
        self.metric_function()
        check_model(self.build_model())
        find_dataset(self.dataset)
        numbers: dict[str, Any] = {}
        for name, least in (("seed", 0), ("model_seed", 0), ("eval_every", 1)):
            numbers[name] = check_count(name, getattr(self, name), minimum=least)
        for name, strict in (("timeout", True), ("save_every", False)):
            numbers[name] = check_number(name, getattr(self, name), minimum=0, strict=strict, fix="pass seconds")
        partition = check_rule(self.partition, self.n_clients)
        return dataclasses.replace(self, device=str(device), partition=partition, **numbers)

    def tried(self, plan=None) -> "Job":
        """Return the job with the form of its samples, after trying model, cuts and data as `psl.train` does.

        Raises:
            CutError, DataError, ScenarioError: as there.
        """
        given = open_named(self.dataset)
        samples = Samples(given[0], layout=torch.contiguous_format)
        inputs, model = samples.fetch([0, 0])[0], self.build_model()
        layout = str(tried_layout(model, torch.device("cpu"), inputs)).removeprefix("torch.")
        job = dataclasses.replace(self, sample=described(inputs), layout=layout)
        if plan is not None and self.kind.splits:
            fitting = check_plan_fits(plan, model, ones_like(job.sample))
            job = dataclasses.replace(job, tensors=max(fitting, self.tensors))
        run = dataclasses.replace(job, device="cpu").prepare()
        job.open_samples(run.model, torch.device("cpu"), run.config, given)
        if run.splits:
            verify_cuts(run.model, run.config)
        return job

    @property
    def kind(self) -> type[Framework]:
        """The framework's class."""
        return FRAMEWORKS[self.framework]

    @property
    def u_shaped(self) -> bool:
        """Whether the clients have the last layers, too, and keep their labels."""
        return self.kind.u_shaped and isinstance(self.cut, tuple)

    @property
    def steps(self) -> int:
        """Mini-batches per client and round."""
        return self.local_steps if self.kind.averages else 1

    @property
    def parts(self) -> int:
        """M, in how many micro-batches a client's mini-batch goes through."""
        return len(self._client_sizes)

    def samples_of(self, number: int) -> int:
        """Return the samples of a micro-batch of a client, counted through its mini-batches."""
        return self._client_sizes[number % self.parts]

    @property
    def _client_sizes(self) -> list[int]:
        return part_sizes(self.batch_size, (self.kind.micro_batched and self.micro_batch) or self.batch_size)

    @property
    def n_processes(self) -> int:
        """P: the server and the clients; or stages and relays."""
        return len(self.relays) if self.framework == "pipeline" else self.n_clients + 1

    @property
    def names(self) -> list[str]:
        """What the processes are called, by rank."""
        if self.framework != "pipeline":
            return ["server", *(f"client {i}" for i in range(self.n_clients))]
        return [f"relay {k}" if relay else f"stage {self.place(k)}" for k, relay in enumerate(self.relays)]

    @property
    def sizes(self) -> list[int]:
        """Samples of each micro-batch."""
        n = self.n_clients * self.batch_size
        return part_sizes(n, self.micro_batch or n)

    def place(self, rank: int) -> int:
        """Return the number of a process's stage, or of the one before a relay."""
        return sum(not relay for relay in self.relays[: rank + 1]) - 1

    @property
    def n_aggregated(self) -> int:
        """n_A, the slots whose gradients come down once for all clients."""
        aggregates = self.framework == "epsl" and self.linearise != "sampled" and self.n_clients > 1
        return aggregated_rows(self.phi, self.micro_batch or self.batch_size) if aggregates else 0

    @cached_property
    def limit(self) -> int:
        """Bytes of the longest message."""
        return _ROOM + 2 * sum(t.numel() * t.element_size() for t in self.build_model().state_dict().values())

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
        """Return training and test samples, checked as `checked_samples` does; `given` if they are open."""
        config = dataclasses.replace(config, loss=self.loss_function())  # the framework's may be timed
        return checked_samples(model, given or open_named(self.dataset), device, config, LAYOUTS[self.layout])

    def samplers(self, samples: Samples) -> list[Sampler] | list[PartSampler]:
        """Return what draws each client's mini-batches; in a pipeline one for all data."""
        shares = divide(
            self.partition, len(samples), self.n_clients, labels=samples.labels, minimum=self.batch_size, seed=self.seed
        )
        return samplers_of(shares, self.batch_size, self.seed, sampling=self.sampling, together=self.kind.pooled)

    def prepare(self, client: int | None = None, segments: Segments | None = None) -> Framework:
        """Return the framework; of a star with one client alone, whose halves a process uses.

        Args:
            client: whose cut is meant where each has its own.
            segments: told which part of a step is computed.
        """
        model, device, cut, layout = self.build_model(), torch.device(self.device), self.cut, LAYOUTS[self.layout]
        placed = lambda x: x.to(device, memory_format=layout if x.ndim == 4 else torch.preserve_format)  # noqa: E731
        if isinstance(cut, tuple):
            cut = list(cut) if self.kind.pooled or self.u_shaped else [cut[client or 0]]
        config = TrainingConfig(
            framework=self.framework, n_clients=self.n_clients if self.kind.pooled else 1, batch_size=self.batch_size,
            optimizer=self.optimizer_maker(), rounds=self.rounds, loss=self.loss_function(),
            metric=self.metric_function(), local_steps=self.local_steps,
            cut=cut, phi=self.phi, linearise=self.linearise, rows=self.rows, sampling=self.sampling,
            server_steps=self.server_steps, defence=self.defence, micro_batch=self.micro_batch, seed=self.seed,
            partition=self.partition, eval_every=self.eval_every, round_time=self.round_time,
            drawn_time=drawn_time(self.plan, self.framework, self.rows, self.sampling, self.server_steps),
            example=each(placed, ones_like(self.sample)) if self.kind.splits else None, tensors=self.tensors,
        )  # fmt: skip
        run = build_framework(prepare_model(model, device, layout), config)
        return run if segments is None else segments.attach(run)
