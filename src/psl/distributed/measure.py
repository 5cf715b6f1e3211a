"""Measure a model's profile where it will run: in a process like those of a run, one thread, in training's layout."""

import time
from functools import cache
from typing import Any

import numpy as np
import torch

from psl.distributed.edge.emulate import on_own_core, settle, warm_up
from psl.distributed.leftovers import run_folder
from psl.distributed.names import find, open_named
from psl.distributed.workers import Worker
from psl.errors import PSLError, check_count, expected
from psl.models.timing import UnitTimer
from psl.profiles import Profile
from psl.training.model_preparation import image_layout, prepare_model
from psl.training.sampling import Samples

_PAUSE = 0.02  # s
_LARGER_THAN_CACHES = 1 << 25  # numbers of 4 bytes


def measured_profile(
    model: str,
    dataset: str = "digits",
    *,
    batch_size: int,
    repeats: int = 30,
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
        model_options: the factory's arguments.

    Raises:
        PSLError: the process failed, with what it wrote.
    """
    order = {"model": model, "dataset": dataset, "batch_size": batch_size, "model_options": model_options or {}}
    with run_folder() as folder:
        order |= {"repeats": check_count("repeats", repeats), "found": str(folder / "profile")}
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
    profile.save(order["found"])
