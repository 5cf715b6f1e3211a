"""The experiment of notebook 07: seeded scenarios that one machine can emulate, each planned, run and compared.

It is a file, because worker processes import the model and the data from here by name.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import TensorDataset
from tqdm.auto import tqdm

from psl.data import load
from psl.distributed import Job, compare, measured_profile
from psl.distributed.measure import timed
from psl.errors import check_choice, check_count
from psl.networks import EdgeCluster, EdgeNetwork, WirelessCell
from psl.studies import one_thread
from psl.training.seeds import Stream, generator

#: Devices are this many times slower than this machine, so that a few of them compute at once on two cores.
DEVICE_SLOWDOWN = (8.0, 14.0)
SERVER_SLOWDOWN = (2.0, 5.0)  # EPSL's with barriers: it computes while its clients wait; others are like devices

#: The model, its data, and samples per pass by scheduler, which its profile is measured with: for the pipeline that is
#: the micro-batch, a sixth of the mini-batch.
MODEL, DATA = f"{__name__}:edge_net", f"{__name__}:digits_for_training"
BATCHES = {"epsl": 96, "edgesplit": 96, "pipeline": 64}
_PASSES = 10  # that measure a profile; of micro-batches as many more as they are shorter


def edge_net() -> nn.Sequential:
    """Return the network of the experiments, for 8 × 8 images: convolutions of about a millisecond each at b = 16.

    Against them the constant cost of an operation, some ten microseconds, is small, as it is for larger images.
    """
    layers = {
        "conv1": nn.Conv2d(1, 32, 3, padding=1),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(32, 64, 3, padding=1),
        "relu2": nn.ReLU(),
        "conv3": nn.Conv2d(64, 64, 3, padding=1),
        "relu3": nn.ReLU(),
        "pool3": nn.MaxPool2d(2),
        "conv4": nn.Conv2d(64, 128, 3, padding=1),
        "relu4": nn.ReLU(),
        "conv5": nn.Conv2d(128, 128, 3, padding=1),
        "relu5": nn.ReLU(),
        "pool5": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "linear1": nn.Linear(512, 64),
        "relu6": nn.ReLU(),
        "linear2": nn.Linear(64, 10),
    }
    return nn.Sequential(OrderedDict(layers))


def digits_for_training() -> tuple[TensorDataset, TensorDataset]:
    """Return the handwritten digits with 16 test images: sending all of them over emulated links takes seconds."""
    train, test = load("digits")
    return train, TensorDataset(*test[:16])


def sample_network(scheduler: str, seed: int, *, barriers: bool = True):
    """Draw the network of an experiment: a `WirelessCell`, an `EdgeCluster` or an `EdgeNetwork`, by scheduler.

    Speeds are relative to this machine. Rates are such that communication and computation both matter for `edge_net`.

    Args:
        scheduler: "epsl", "edgesplit" or "pipeline".
        seed: the same seed draws the same network.
        barriers: whether EPSL's server and its clients take turns; without, in micro-batches, all compute at once, and
            a server that is hardly slower than this machine could not be emulated beside them.
    """
    check_choice("scheduler", scheduler, BATCHES)
    rng = generator(Stream.SCENARIO, check_count("seed", seed, minimum=0))
    slow, fast = 1 / max(DEVICE_SLOWDOWN), 1 / min(DEVICE_SLOWDOWN)
    if scheduler == "epsl":
        return WirelessCell.sample(
            3,
            9,
            seed,
            "log-distance",
            subchannel_bandwidth=rng.uniform(1e6, 2e6),
            client_speed_range=(slow, fast),
            server_speed=1 / rng.uniform(*(SERVER_SLOWDOWN if barriers else DEVICE_SLOWDOWN)),
        )
    if scheduler == "edgesplit":
        cluster = EdgeCluster.sample(3, seed, bandwidth=40e6)
        *speeds, slice_of_server = 1 / rng.uniform(*DEVICE_SLOWDOWN, 4)
        return replace(
            cluster,
            device_speed=speeds,
            device_memory=np.full(3, np.inf),
            server_speed=3 * slice_of_server,
            device_names=None,
        )
    return EdgeNetwork.sample(
        3, seed, ("line", "mesh", "tree")[seed % 3], source_speed=slow, server_speed_range=(slow, 2 * fast),
        rate_range=(25e6, 125e6), latency_range=(1e-3, 5e-3), overhead=2e-3,
    )  # fmt: skip


def profile_for(scheduler, micro_batches: int | None = None) -> "object":
    """Return the profile of `edge_net`, measured here with the batch size of a scheduler's module, or a part of it."""
    parts = micro_batches or 1
    return measured_profile(MODEL, DATA, batch_size=BATCHES[name_of(scheduler)] // parts, repeats=_PASSES * parts)


def server_step(framework: str, cut: int, clients: int, samples: int, phi: float = 0.0) -> float:
    """Return what a step of the server takes on this machine: CPU s, the mean of a few.

    A profile knows layers. A step also joins activations, computes the loss and divides the gradients, and finds the
    caches filled by other processes. Measured with the server's own code, not fitted to any round.

    Args:
        framework: "psl" or "epsl".
        cut: behind which the server's layers begin.
        clients: whose activations the step takes.
        samples: of each of them.
        phi: of "epsl".
    """
    given = {"rounds": 1, "n_clients": clients, "batch_size": samples, "cut": cut, "phi": phi, "partition": "iid"}
    run = Job.of(framework, MODEL, DATA, **given).prepare()
    inputs, labels = load("digits")[0][:samples]
    with torch.no_grad():
        smashed = run.devices[0].module(inputs)
    seconds, rng = np.zeros(2 + _PASSES), np.random.default_rng(0)
    with one_thread():
        for k in range(len(seconds)):
            with timed(seconds, k):
                run.server_gradients([smashed] * clients, [labels] * clients, np.full(clients, 1 / clients), rng)
    return float(seconds[2:].mean())


def with_server_calls(plan):
    """Return the network of a plan with the time of a server's call beyond the profile, measured at the plan's cuts."""
    profile, b = plan.profile, plan.training_arguments().get("micro_batch") or plan.batch_size
    behind = (profile.fwd_cost[-1] - profile.fwd_cost) + (profile.bwd_cost[-1] - profile.bwd_cost)  # s per sample
    if plan.scheduler == "epsl" and plan.micro_batches is None:  # `compare` takes a profile measured at its cut
        begun = measured_profile(MODEL, DATA, batch_size=b, repeats=_PASSES, cuts=(plan.cut,))
        terms = replace(plan, profile=begun).latency()
        layers = (terms.server_forward + terms.server_backward) * plan.cell.server_speed
        seconds = server_step("epsl", plan.cut, plan.cell.n_clients, b, plan.phi) - layers
    else:
        cuts = [plan.cut] if plan.scheduler == "epsl" else [int(j) for j in plan.cuts if j < profile.n_units]
        more = {j: server_step("psl", j, 1, b) - b * behind[j] for j in set(cuts)}
        seconds = np.mean([more[j] for j in cuts]) if cuts else 0.0
    seconds = max(float(seconds), 0.0)
    if plan.scheduler == "epsl":
        return replace(plan.cell, call_overhead=seconds / plan.cell.server_speed)
    return replace(plan.cluster, call_overhead=seconds * plan.cluster.n_devices / plan.cluster.server_speed)


def make_plan(scheduler, profile, network, method: str | None = None, seed: int = 0, micro_batches=None):
    """Return the plan of a scenario.

    Args:
        scheduler: the module: ``psl.schedulers.epsl``, ``edgesplit`` or ``pipeline``.
        profile: of `profile_for`.
        network: of `sample_network`.
        method: of the scheduler's `solve`, None for its default.
        seed: of the scenario.
        micro_batches: of EPSL's rounds, then with φ = 0, and of EdgeSplit's; None for barriers.
    """
    name, method = name_of(scheduler), {} if method is None else {"method": method}
    b = BATCHES[name]
    how = {
        "epsl": {"batch_size": b, "phi": 0.5, "seed": seed},
        "edgesplit": {"batch_size": b, "local_steps": 2},
        "pipeline": {"batch_size": 6 * b, "micro_batch": b, "seed": seed},
    }
    if micro_batches is not None:
        how["epsl"] |= {"phi": 0.0, "micro_batches": micro_batches}
        how["edgesplit"] |= {"micro_batches": micro_batches}
    return scheduler.solve(profile, network, **how[name], **method)


def name_of(scheduler) -> str:
    """Return the name of a scheduler's module; raises `ScenarioError` if it is none."""
    name = getattr(scheduler, "__name__", repr(scheduler)).rpartition(".")[2]
    return check_choice("scheduler", name, BATCHES, "pass the module, such as psl.schedulers.epsl")


def experiment(
    scheduler,
    seeds: Iterable[int],
    *,
    methods: Iterable[str] = (),
    micro_batches=None,
    progress: bool = True,
    **options,
) -> pd.DataFrame:
    """Compare prediction, simulation and measurement on seeded scenarios, one after the other.

    Every scenario is drawn by its seed (`sample_network`) and planned with what is measured just before: a profile, and
    what a call of the server takes beyond it (`with_server_calls`).

    Args:
        scheduler: the module, as in `make_plan`.
        seeds: one scenario each.
        methods: of the scheduler's `solve` besides its default; each is run too, to see whether methods rank as
            predicted.
        micro_batches: as in `make_plan`.
        progress: show a progress bar.
        options: for `psl.distributed.compare`.

    Returns:
        The rows of `compare` with seed and method in front.
    """
    name, frames, methods, seeds = name_of(scheduler), [], (None, *methods), list(seeds)
    with tqdm(total=len(seeds) * len(methods), desc=f"{name}, runs", disable=not progress) as bar:
        for seed in seeds:
            network = sample_network(name, seed, barriers=micro_batches is None)
            for method in methods:
                profile = profile_for(scheduler, micro_batches)
                plan = make_plan(scheduler, profile, network, method, seed, micro_batches)
                if name != "pipeline":  # whose stages are all alike
                    known = with_server_calls(plan)
                    plan = make_plan(scheduler, profile, known, method, seed, micro_batches)
                frame = compare(plan, MODEL, DATA, **options)
                frame.insert(0, "method", plan.method)
                frame.insert(0, "seed", seed)
                frames.append(frame)
                bar.update()
    return pd.concat(frames, ignore_index=True)
