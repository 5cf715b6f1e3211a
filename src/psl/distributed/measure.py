"""Measure a model's profile where it will run: in a process like those of a run, one thread, in training's layout."""

import json
import time
from pathlib import Path

import numpy as np
import torch

from psl.distributed.edge.emulate import on_own_core, settle, warm_up
from psl.distributed.leftovers import run_folder
from psl.distributed.names import find, open_named
from psl.distributed.nursery import Nursery
from psl.errors import PSLError, check_count, expected
from psl.models.timing import UnitTimer
from psl.profiles import Profile
from psl.training.model_preparation import image_layout, prepare_model
from psl.training.sampling import Samples

_PAUSE = 0.02  # s


def measured_profile(
    model: str,
    dataset: str = "digits",
    *,
    batch_size: int,
    repeats: int = 30,
    model_options: dict | None = None,
    nursery: Nursery | None = None,
) -> Profile:
    """Return the profile of a model as `psl.measure` finds it in a worker process of this machine.

    Unlike in a notebook's own process the model runs with one thread, on its data's images in the memory layout of
    training, idles and warms up before every pass as emulated devices do, and the clock is the thread's computing
    time, which `psl.distributed.edge.emulate.Compute` stretches.

    Args:
        model: factory "module:function".
        dataset: name for `psl.data.load`, or "module:function"; gives the shape of a sample.
        batch_size: samples per pass.
        repeats: passes, of which the mean counts, as a round adds up what happens.
        model_options: the factory's arguments.
        nursery: what starts the process; default one of its own.

    Raises:
        PSLError: the process failed, with what it wrote.
    """
    check_count("repeats", repeats)
    if nursery is None:
        with Nursery() as nursery:
            return measured_profile(
                model, dataset, batch_size=batch_size, repeats=repeats, model_options=model_options, nursery=nursery
            )
    with run_folder() as folder:
        order, found, log = (folder / file for file in ("order", "profile", "log"))
        spec = {"model": model, "dataset": dataset, "batch_size": batch_size, "repeats": repeats}
        order.write_text(json.dumps(spec | {"model_options": model_options or {}, "found": str(found)}))
        worker = nursery.start("psl.distributed.measure", [str(order)], log)
        if worker.wait() != 0:
            raise expected("measurement", "a profile", worker.last_words(), "see what the process says", PSLError)
        return Profile.load(found)


def idle() -> None:
    """Wait a little and warm up, as an emulated device between its computations."""
    time.sleep(_PAUSE)
    warm_up()


def main(arguments: list[str]) -> None:
    """Measure as a file of JSON says, and save the profile where it says."""
    torch.set_num_threads(1)
    settle()
    order = json.loads(Path(arguments[0]).read_text())
    model = find("model", order["model"], "psl.models:cnn")(**order["model_options"])
    layout = image_layout(model, torch.device("cpu"))
    model = prepare_model(model, torch.device("cpu"), layout)
    samples = Samples(open_named(order["dataset"])[0], "cpu", layout)
    shape = tuple(samples.fetch(np.array([0]))[0].shape[1:])
    with on_own_core():
        timer = UnitTimer(clock=time.thread_time, before=idle, average=np.mean)
        profile = timer.measure(model, shape, batch_size=order["batch_size"], repeats=order["repeats"])
    profile.save(order["found"])
