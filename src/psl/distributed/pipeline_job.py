"""What the processes of a pipelined run know: its arguments as plain values, and what each builds from them."""

import numpy as np
import torch

from psl.distributed.emulate import EdgeEmulation, emulation_for
from psl.distributed.job import find
from psl.distributed.stages import SCHEDULES
from psl.errors import check_choice, check_count, check_number, expected
from psl.models.shapes import cut_shapes
from psl.models.tracing import trace
from psl.training.batches import Sampler, Samples
from psl.training.frameworks.base import Setup
from psl.training.frameworks.pipeline import Pipeline
from psl.training.linearise import cross_entropy
from psl.training.link import Link
from psl.training.partition import partition as divide
from psl.training.setup import choose_cuts, default, image_layout, open_dataset, optimizer_factory, prepare_model


def specify(
    model: str,
    dataset: str = "digits",
    *,
    rounds: int,
    n_clients: int | None = None,
    batch_size: int | None = None,
    cut=None,
    micro_batch: int | None = None,
    plan=None,
    schedule: str = "eager",
    model_seed: int = 0,
    model_options: dict | None = None,
    partition="iid",
    optimizer: str = "sgd",
    lr: float | None = None,
    loss: str | None = None,
    seed: int = 0,
    eval_every: int = 1,
    timeout: float = 60.0,
    **others,
) -> dict:
    """Return the arguments of `psl.distributed.run_pipeline` as plain values, checked."""
    if others:
        want = "n_clients, batch_size, cut, micro_batch and others of psl.distributed.run_pipeline"
        raise expected("arguments of a pipeline", want, ", ".join(others), "leave these out")
    return {
        "model": model, "model_seed": check_count("model_seed", model_seed, minimum=0), "dataset": dataset,
        "model_options": model_options or {}, "loss": loss,
        "rounds": check_count("rounds", rounds),
        "n_clients": check_count("n_clients", default(n_clients, plan, "n_clients", 5)),
        "batch_size": check_count("batch_size", default(batch_size, plan, "batch_size", 64)),
        "micro_batch": default(micro_batch, plan, "micro_batch", None), "cut": choose_cuts(cut, plan),
        "partition": partition if np.isscalar(partition) else [np.asarray(share).tolist() for share in partition],
        "optimizer": optimizer, "lr": lr, "seed": check_count("seed", seed, minimum=0),
        "schedule": check_choice("schedule", schedule, SCHEDULES), "eval_every": check_count("eval_every", eval_every),
        "timeout": check_number("timeout", timeout, minimum=0, strict=True, fix="give seconds"),
    }  # fmt: skip


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


def relays_of(plan, n_stages: int) -> list[bool]:
    """Return, for every process along the path, whether it only passes on."""
    if plan is None or getattr(plan, "hops", None) is None:
        return [False] * n_stages
    relays = []
    for _, _, j in plan.stages:
        hops = sum(cut == j for cut, _, _ in plan.hops)
        relays += [False, *[True] * (hops - 1)]
    return relays


def emulation_of(emulate, plan, relays: list[bool]) -> EdgeEmulation:
    """Return the emulation that `emulate` of `run_pipeline` means, for processes of which some are relays."""
    if isinstance(emulate, str):
        if plan is None:
            raise expected(
                "emulate", "a plan whose scenario to emulate", repr(emulate), "pass plan=, or an EdgeEmulation"
            )
        return emulation_for(plan, emulate)
    n, none = len(relays), np.zeros(len(relays) - 1)
    if emulate is None:
        fast = np.full(n - 1, np.inf)
        return EdgeEmulation("chain", np.ones(n), fast, fast, none, none, np.zeros(n), links="none")
    check_choice("emulate.layout", getattr(emulate, "layout", None), ("chain",))
    if emulate.n_processes != n:
        raise expected(
            "emulate", f"{n} processes, one per stage and relay", emulate.n_processes, "use emulation_for(plan)"
        )
    return emulate
