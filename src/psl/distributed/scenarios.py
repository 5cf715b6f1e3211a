"""Seeded scenarios that real processes can emulate on a laptop: the model, and the edge around it."""

from collections import OrderedDict
from dataclasses import replace

import numpy as np
from torch import nn
from torch.utils.data import TensorDataset

from psl.data import load
from psl.errors import check_choice, check_count
from psl.networks import EdgeCluster, EdgeNetwork, WirelessCell
from psl.training.seeds import Stream, generator

#: Devices are this many times slower than this machine, so that a few of them compute at once on two cores.
DEVICE_SLOWDOWN = (8.0, 14.0)
SERVER_SLOWDOWN = (2.0, 5.0)  # EPSL's, which computes while its clients wait; EdgeSplit's slices are like devices

#: Factory of the experiments' model, their data, and samples per pass by scheduler, which its profile is measured with:
#: for the pipeline that is the micro-batch, a sixth of the mini-batch.
MODEL = "psl.distributed.scenarios:edge_net"
DATA = "psl.distributed.scenarios:digits_for_training"
BATCHES = {"epsl": 96, "edgesplit": 96, "pipeline": 64}


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


def sample_network(scheduler: str, seed: int):
    """Draw the network of an experiment: a `WirelessCell`, an `EdgeCluster` or an `EdgeNetwork`, by scheduler.

    Speeds are relative to this machine. Rates are such that communication and computation both matter for `edge_net`.

    Args:
        scheduler: "epsl", "edgesplit" or "pipeline".
        seed: the same seed draws the same network.
    """
    check_choice("scheduler", scheduler, ("epsl", "edgesplit", "pipeline"))
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
            server_speed=1 / rng.uniform(*SERVER_SLOWDOWN),
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
