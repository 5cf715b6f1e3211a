"""Measure a model's profile where it will run: in a process like those of a run, one thread, in training's layout."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch

from psl.distributed.edge.emulate import on_own_core, settle, warm_up
from psl.distributed.job import Job
from psl.distributed.leftovers import run_folder
from psl.distributed.names import find, open_named
from psl.distributed.workers import Worker
from psl.errors import PSLError, check_count, expected
from psl.models.timing import UnitTimer
from psl.profiles import Profile
from psl.training.frameworks.pipeline import Pipeline
from psl.training.model_preparation import image_layout, prepare_model
from psl.training.sampling import Samples
from psl.training.stage import loss_and_gradient

_PAUSE = 0.02  # s
_WARM_UP = 2  # passes that do not count
_LARGER_THAN_CACHES = 1 << 25  # numbers of 4 bytes


def measured_profile(
    model: str,
    dataset: str = "digits",
    *,
    batch_size: int,
    repeats: int = 30,
    cuts: Iterable[int] = (),
    model_options: dict | None = None,
) -> Profile:
    """Return the profile of a model as `psl.measure` finds it in a worker process of this machine.

    Unlike in a notebook's own process the model runs with one thread, on its data's images in the memory layout of
    training, idles and warms up before every pass as emulated devices do, and finds the caches filled by others. The
    clock is the thread's computing time, which `psl.distributed.edge.emulate.Compute` stretches.

    Args:
        model: factory "module:function".
        dataset: name for `psl.data.load`, or "module:function"; gives the shape of a sample.
        batch_size: samples per pass.
        repeats: passes, of which the mean counts, as a round adds up what happens.
        cuts: numbers of the cuts where the model goes on in another process. Then what the process of each stage
            computes is measured, the last one's loss included, and shared among its units as their own times are: a
            stage begins with its weights and what arrives out of the caches, and costs some time however little it
            computes.
        model_options: the factory's arguments.

    Raises:
        PSLError: the process failed, with what it wrote.
    """
    order = {"model": model, "dataset": dataset, "batch_size": batch_size, "model_options": model_options or {}}
    with run_folder() as folder:
        order |= {"repeats": check_count("repeats", repeats), "cuts": tuple(cuts), "found": str(folder / "profile")}
        worker = Worker("psl.distributed.measure:work", order, folder / "log")
        if worker.wait() != 0:
            raise expected("measurement", "a profile", worker.last_words(), "see what the process says", PSLError)
        return Profile.load(folder / "profile")


def idle() -> None:
    """Wait a little and warm up, as an emulated device between its computations; others have used the caches since."""
    time.sleep(_PAUSE)
    _others().add_(1)
    warm_up()


@cache
def _others() -> torch.Tensor:
    return torch.zeros(_LARGER_THAN_CACHES)


def work(connection, order: dict[str, Any]) -> None:
    """Measure as an order says, and save the profile where it says; runs in a process of its own."""
    torch.set_num_threads(1)
    settle()
    model = find("model", order["model"], "psl.models:cnn")(**order["model_options"])
    layout = image_layout(model, torch.device("cpu"))
    model = prepare_model(model, torch.device("cpu"), layout)
    samples = Samples(open_named(order["dataset"])[0], "cpu", layout)
    shape = tuple(samples.fetch(np.array([0]))[0].shape[1:])
    with on_own_core():
        timer = UnitTimer(clock=time.thread_time, before=idle, average=np.mean)
        profile = timer.measure(model, shape, batch_size=order["batch_size"], repeats=order["repeats"])
        if order["cuts"]:
            profile = _by_stages(profile, order, samples)
    profile.save(order["found"])


def _by_stages(profile: Profile, order: dict[str, Any], samples: Samples) -> Profile:
    """Return a profile whose units add up to what their stages take in the training of a pipeline."""
    b, cuts = order["batch_size"], order["cuts"]
    given = {"rounds": 1, "n_clients": 1, "batch_size": b, "micro_batch": b, "cut": cuts, "partition": "iid"}
    given["model_options"] = order["model_options"]
    run = cast(Pipeline, Job.of("pipeline", order["model"], order["dataset"], **given).prepare())
    inputs, labels = samples.fetch(np.arange(b))
    last, passes = len(run.stages) - 1, []
    for k in range(_WARM_UP + order["repeats"]):
        crossing, seconds = inputs, np.zeros((2, last + 1))
        for number, stage in enumerate(run.stages):
            with timed(seconds[0], number):
                crossing = run.stage_forward(stage, crossing, 0)
        with timed(seconds[1], last):
            gradient = loss_and_gradient(crossing, labels, run.config.loss)[1]
        for number in range(last, -1, -1):
            with timed(seconds[1], number):
                gradient = run.stages[number].backward(gradient)
        for stage in run.stages:
            stage.zero_grad()
        if k >= _WARM_UP:
            passes.append(seconds / b)
    stages = np.mean(passes, axis=0)
    bounds = list(pairwise((0, *cuts, profile.n_units)))
    costs = {}
    for name, taken in zip(("fwd_cost", "bwd_cost"), stages, strict=True):
        units = np.diff(getattr(profile, name), prepend=0.0)
        for (begin, end), whole in zip(bounds, taken, strict=True):
            mine = units[begin + 1 : end + 1]
            mine[:] = mine * whole / mine.sum() if mine.any() else whole / len(mine)
        costs[name] = np.cumsum(units)
    before, after = (p[-1] - p[cuts[-1]] for p in (profile.bwd_cost, costs["bwd_cost"]))
    return replace(profile, **costs, last_bwd_cost=profile.last_bwd_cost * after / before if before else 0.0)


@contextmanager
def timed(seconds: np.ndarray, number: int) -> Iterator[None]:
    """Add the computing time of this thread to one of several numbers, after idling."""
    idle()
    begin = time.thread_time()
    yield
    seconds[number] += time.thread_time() - begin
