"""Bad inputs and what psl says of them: the table behind docs/errors.md and test_bad_inputs.py.

``python tests/bad_inputs.py`` writes the page anew.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import networkx as nx
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import psl
from psl.networks import EdgeNetwork, WirelessCell
from psl.schedulers import edgesplit, epsl, pipeline

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"


class Case(NamedTuple):
    """A bad input.

    Args:
        group: heading on the page.
        title: what was given.
        call: raises the error.
        parts: what its message must contain.
    """

    group: str
    title: str
    call: Callable[[], object]
    parts: tuple[str, ...]


CASES: list[Case] = []


def case(group: str, title: str, *parts: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Enter a function that must raise."""

    def entered(call: Callable[[], object]) -> Callable[[], object]:
        CASES.append(Case(group, title, call, parts))
        return call

    return entered


def message_of(call: Callable[[], object]) -> tuple[str, str]:
    """Return class and message of the error that a call raises, without addresses in memory."""
    try:
        call()
    except psl.PSLError as error:
        return type(error).__name__, re.sub(r" at 0x[0-9a-f]+", "", str(error))
    raise AssertionError("no error was raised")


def page() -> str:
    """Return docs/errors.md."""
    lines = [
        "# Error messages",
        "",
        "Every error of psl says what it expected, what it got, and how to mend it. These are examples, made by",
        "`python tests/bad_inputs.py`; a test compares them with what psl says.",
    ]
    group = ""
    for entry in CASES:
        if entry.group != group:
            group = entry.group
            lines += ["", f"## {group}"]
        name, message = message_of(entry.call)
        lines += ["", f"**{entry.title}**", "", "```text", f"{name}: {message}", "```"]
    return "\n".join(lines) + "\n"


# --- what the cases are made of ---

X, Y = torch.zeros(20, 4), torch.arange(20) % 3
IMAGES = torch.zeros(20, 1, 8, 8)


def net(n_in: int = 4, n_out: int = 3) -> nn.Module:
    """Return a small model."""
    return nn.Sequential(nn.Linear(n_in, 8), nn.ReLU(), nn.Linear(8, n_out))


def convolutional(channels: int = 1) -> nn.Module:
    """Return a small model of images."""
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def pair(*tensors: torch.Tensor) -> tuple[TensorDataset, TensorDataset]:
    """Return a data set of these tensors, to train and to test."""
    return TensorDataset(*tensors), TensorDataset(*tensors)


def squared(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return a metric of outputs of any kind."""
    return ((outputs - labels) ** 2).mean(1)


def listed(samples: list) -> tuple[list, list]:
    """Return a data set of these samples, to train and to test."""
    return samples * 10, samples * 10


def train(model: nn.Module, data: object, framework: str = "psl", **options) -> object:
    """Train for one round."""
    given = {"n_clients": 2, "rounds": 1, "batch_size": 4, "cut": 1, "progress": False} | options
    return psl.train(framework, model, data, **given)


def train_planned(plan: object, framework: str, model: nn.Module | None = None, **options) -> object:
    """Train for one round by a plan, on the digits."""
    return psl.train(framework, model or psl.models.cnn(), "digits", rounds=1, plan=plan, progress=False, **options)


def table(**columns) -> pd.DataFrame:
    """Return a table of two layers."""
    usual = {"name": ["conv", "fc"], "fwd_ms": [1.0, 2.0], "bwd_ms": [2.0, 4.0], "act_bytes": [400.0, 40.0]}
    return pd.DataFrame(usual | columns)


PROFILE = psl.profile(psl.models.cnn(), (1, 8, 8))
CELL = WirelessCell.sample(3, 6, seed=1, channel="log-distance")
NETWORK = EdgeNetwork.sample(3, 1, "line")
CLUSTER = psl.EdgeCluster.sample(3, 0)


def ring(n: int = 3, **attributes) -> nx.DiGraph:
    """Return a ring of nodes that compute."""
    graph = nx.cycle_graph(n).to_directed()
    nx.set_node_attributes(graph, 1e12, "speed")
    nx.set_edge_attributes(graph, 1e8, "rate")
    for name, value in attributes.items():
        nx.set_node_attributes(graph, value, name)
    return graph


# --- data ---

case("Data", "uint8 images", "uint8", "x.float() / 255")(
    lambda: train(convolutional(), pair(torch.zeros(20, 1, 8, 8, dtype=torch.uint8), Y))
)
case("Data", "Grey images for a model of colour images", "1, 8, 8", "3 channels", "Grayscale(3)")(
    lambda: train(convolutional(3), pair(IMAGES, Y))
)
case("Data", "Images of another size", "features", "Linear")(
    lambda: train(convolutional(), pair(torch.zeros(20, 1, 12, 12), Y))
)
case("Data", "float64 samples", "float64", "x.to(torch.float32)")(lambda: train(net(), pair(X.double(), Y)))
case("Data", "Samples without a label", "samples with a label", "(input, label)")(lambda: train(net(), pair(X)))
case("Data", "Dicts without a label", "dicts with inputs and one label", "'label' or 'labels'")(
    lambda: train(net(), listed([{"x": X[0], "y": 1}]))
)
case("Data", "Samples of several shapes", "samples of one shape", "pad, crop or resize")(
    lambda: train(net(), listed([(torch.zeros(4), 0), (torch.zeros(5), 1)]))
)
case("Data", "Labels that are text", "labels that are tensors or numbers", "str")(
    lambda: train(net(), listed([(X[0], "cat")]))
)
case("Data", "One data set instead of two", "a pair of data sets", "(train, test)")(
    lambda: train(net(), TensorDataset(X, Y))
)
case("Data", "An empty test set", "at least one test sample", "pass a test set")(
    lambda: train(net(), (TensorDataset(X, Y), TensorDataset(X[:0], Y[:0])))
)
case("Data", "Less data than a mini-batch", "at least batch_size = 64 training samples", "smaller batch_size")(
    lambda: train(net(), pair(X, Y), batch_size=64)
)
case("Data", "An unknown data set", "one of 'digits'", "'digit'")(lambda: train(net(), "digit"))
case("Data", "A Dirichlet partition of True", "numbers", "got True")(lambda: train(net(), pair(X, Y), partition=True))
case("Data", "A Dirichlet partition by several labels per sample", "one class number per sample", "'iid'")(
    lambda: train(net(), pair(X, torch.rand(20, 3)), loss=nn.BCEWithLogitsLoss(), metric=squared, partition=1.0)
)
case("Data", "Inputs that forward does not take", "unexpected keyword argument 'id'", "in dicts by its names")(
    lambda: train(net(), listed([{"input": X[0], "id": 7, "label": 1}]))
)
case("Data", "A sample that two clients have", "samples of no other client", "sample 3 again")(
    lambda: train(net(), pair(X, Y), partition=[[0, 1, 2, 3], [3, 4, 5, 6]])
)

# --- labels, losses, metrics ---

case("Labels, losses and metrics", "Labels 1..classes", "class numbers 0..2", "got 3", "subtract 1")(
    lambda: train(net(), pair(X, Y + 1))
)
case("Labels, losses and metrics", "A negative label", "class numbers 0..2", "got -1")(
    lambda: train(net(), pair(X, Y - 1))
)
case("Labels, losses and metrics", "Fractions as labels", "whole class numbers", "got 0.5")(
    lambda: train(net(), pair(X, Y + 0.5))
)
case("Labels, losses and metrics", "One label for several predictions", "labels that the loss cross_entropy takes")(
    lambda: train(nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (4, 2))), pair(X, Y), cut="0")
)
case(
    "Labels, losses and metrics", "Several labels per sample with the default loss", "outputs (rows, classes", "metric="
)(lambda: train(net(), pair(X, F.one_hot(Y, 3).float() / 2 + 1 / 6)))
case(
    "Labels, losses and metrics",
    "Binary outputs without metric=",
    "outputs (rows, classes ≥ 2)",
    "metric=",
    "outputs > 0",
)(lambda: train(net(4, 1), pair(X, (Y > 0).float()[:, None]), loss=nn.BCEWithLogitsLoss()))
case("Labels, losses and metrics", "Whole labels for a binary cross entropy", "BCEWithLogitsLoss", "y.float()")(
    lambda: train(net(4, 1), pair(X, (Y > 0).long()[:, None]), loss=nn.BCEWithLogitsLoss())
)
case(
    "Labels, losses and metrics",
    "A loss that is a mean",
    "one value per row, shape (4,)",
    "shape ()",
    "reduction='none'",
)(lambda: train(net(), pair(X, Y), loss=F.cross_entropy))
case("Labels, losses and metrics", "A loss that is a sum", "reduction='mean' or 'none'", "reduction='sum'")(
    lambda: train(net(), pair(X, Y), loss=nn.CrossEntropyLoss(reduction="sum"))
)
case("Labels, losses and metrics", "Class weights and a mean", "class weights", "reduction='none'")(
    lambda: train(net(), pair(X, Y), loss=nn.CrossEntropyLoss(weight=torch.ones(3)))
)
case("Labels, losses and metrics", "The class of a loss", "the class CrossEntropyLoss")(
    lambda: train(net(), pair(X, Y), loss=nn.CrossEntropyLoss)
)
case("Labels, losses and metrics", "A metric that is a mean", "one value per row, shape (4,)", "shape ()")(
    lambda: train(net(), pair(X, Y), metric=lambda outputs, labels: (outputs.argmax(1) == labels).float().mean())
)
case("Labels, losses and metrics", "An unknown metric", "'accuracy' or a function", "'f1'")(
    lambda: train(net(), pair(X, Y), metric="f1")
)
case("Labels, losses and metrics", "BatchNorm and one row", "2 rows or more", "batch_size", "GroupNorm")(
    lambda: train(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), pair(X, Y), batch_size=1, cut=2)
)

# --- models ---

case("Models", "No module", "a torch.nn.Module", "function")(lambda: train(lambda x: x, pair(X, Y)))
case("Models", "Nothing that trains", "at least one trainable parameter", "requires_grad_()")(
    lambda: train(net().requires_grad_(False), pair(X, Y))
)
case("Models", "A compiled model", "made by torch.compile", "as it was before")(
    lambda: psl.cuts(torch.compile(net()), (4,))
)
case("Models", "DataParallel", "DataParallel", "model.module")(lambda: psl.cuts(nn.DataParallel(net()), (4,)))
case("Models", "A scripted model", "TorchScript", "the Python module")(
    lambda: psl.cuts(torch.jit.trace(net(), X), (4,))
)
case("Models", "A lazy model", "lazy module", "run the model once")(
    lambda: psl.cuts(nn.Sequential(nn.LazyLinear(3)), (4,))
)
case("Models", "The old weight_norm", "cannot be copied", "parametrizations")(
    lambda: train(nn.Sequential(_old_norm(), nn.Linear(8, 3)), pair(X, Y))
)
case("Models", "An example that does not fit", "check that the example fits the model")(lambda: psl.cuts(net(), (5,)))
case("Models", "A cut that does not exist", "cut", "9")(lambda: train(net(), pair(X, Y), cut=9))
case("Models", "No cut", "number or name of a cut", "psl.cuts(model, example)")(
    lambda: train(net(), pair(X, Y), cut=None)
)


def _old_norm() -> nn.Module:
    layer = torch.nn.utils.weight_norm(nn.Linear(4, 8))
    layer(X)
    return layer


# --- arguments ---

case("Arguments", "A learning rate given as text", "lr", "numbers", "got '0.1'")(
    lambda: train(net(), pair(X, Y), lr="0.1")
)
case("Arguments", "A learning rate of 0", "values above 0")(lambda: train(net(), pair(X, Y), lr=0))
case("Arguments", "Half a round", "a whole number", "1.5")(lambda: train(net(), pair(X, Y), rounds=1.5))
case("Arguments", "An unknown framework", "one of 'centralised'", "'splitfed'")(
    lambda: train(net(), pair(X, Y), framework="splitfed")
)
case("Arguments", "An unknown optimizer", "one of 'sgd', 'adam'", "'rmsprop'")(
    lambda: train(net(), pair(X, Y), optimizer="rmsprop")
)
case("Arguments", "A share above 1", "at most 1", "phi")(lambda: train(net(), pair(X, Y), framework="epsl", phi=2))

# --- networks ---

case("Networks", "A rate given as text", "no text", "without quotes")(lambda: EdgeNetwork(_with_rate(ring(), "1e8"), 0))
case("Networks", "A link without its reverse", "its reverse", "to_directed()")(
    lambda: EdgeNetwork(nx.DiGraph([(0, 1, {"rate": 1e8})]), 0)
)
case("Networks", "An attribute of another tool", "attributes among", "did you mean 'latency'?")(
    lambda: EdgeNetwork(_with_rate(ring(), 1e8, delay=1e-3), 0)
)
case("Networks", "Parallel links with different latencies", "the same value on parallel links", "one latency")(
    lambda: EdgeNetwork(_parallel(1e-3, 2e-3), 0)
)
case("Networks", "A source that does not compute", "a node that computes", "speed=0")(
    lambda: EdgeNetwork(ring(speed={0: 0.0, 1: 1e12, 2: 1e12}), 0)
)
case("Networks", "A node out of reach", "every node connected to the source", "no path to 1")(
    lambda: EdgeNetwork(_with_island(ring()), 0)
)
case("Networks", "A change of a network", "no change", "make a new EdgeNetwork")(
    lambda: NETWORK.graph.nodes[0].update(speed=1e15)
)
case("Networks", "A link without a rate in a file", "a rate for every link", "pass rate=")(
    lambda: EdgeNetwork.from_graph(nx.path_graph(3), 0, speed=1e12)
)
case("Networks", "Gains in dB", "values of at least 0", "not dB")(
    lambda: dataclasses.replace(CELL, uplink_gain=10 * np.log10(CELL.uplink_gain))
)
case("Networks", "More clients than subchannels", "one subchannel per client", "add subchannels")(
    lambda: WirelessCell.sample(5, 4, channel="log-distance")
)
case("Networks", "A bandwidth of True", "numbers", "got True")(lambda: dataclasses.replace(CLUSTER, bandwidth=True))
case("Networks", "An unknown board", "one of 'raspberry-pi-4'", "boards_frame()")(
    lambda: psl.EdgeCluster.sample(3, boards=["raspberry-pi-3"])
)

# --- profiles and tables ---

case("Profiles and tables", "A table of zeros", "above 0", "zeros in all 2 rows")(
    lambda: psl.Profile.from_table(table(fwd_ms=[0, 0], bwd_ms=[0, 0]))
)
case("Profiles and tables", "Numbers given as text", "numbers", "decimal point")(
    lambda: psl.Profile.from_table(table(fwd_ms=["1,5", "2"]))
)
case("Profiles and tables", "A negative time", "values of at least 0", "-1")(
    lambda: psl.Profile.from_table(table(fwd_ms=[-1, 2]))
)
case("Profiles and tables", "A time in two units", "one column out of", "fwd_s, fwd_ms")(
    lambda: psl.Profile.from_table(table(fwd_s=[1, 2]))
)
case("Profiles and tables", "Costs that are not cumulative", "a cumulative array that never falls", "entry 2")(
    lambda: dataclasses.replace(PROFILE, fwd_cost=[0, 2, 1, *PROFILE.fwd_cost[3:]])
)
case("Profiles and tables", "A name that two cuts have", "a name that only one cut has", "'relu'", "number")(
    lambda: epsl.solve(
        psl.Profile.from_table(
            table(name=["relu", "relu", "fc"], fwd_ms=[1, 1, 1], bwd_ms=[1, 1, 1], act_bytes=[4e5, 1e5, 40])
        ),
        WirelessCell.sample(2, 4, channel="log-distance", client_speed_range=(0.5, 1), server_speed=10),
        batch_size=8,
        cut="relu",
    )
)

# --- plans ---

case("Plans", "The arguments in another order", "swap the two arguments")(lambda: epsl.solve(CELL, PROFILE))
case("Plans", "FLOP/s for a profile in seconds", "relative to the reference device")(
    lambda: epsl.solve(psl.Profile.from_table(table()), CELL)
)
case("Plans", "A plan for samples of another size", "one for a model and samples", "bits per float")(
    lambda: train_planned(
        epsl.solve(psl.profile(psl.models.thin_resnet(), (1, 64, 64)), CELL, batch_size=8),
        "epsl",
        psl.models.thin_resnet(),
    )
)
case("Plans", "A plan for another number of clients", "the plan's 3", "leave it out")(
    lambda: train_planned(epsl.solve(PROFILE, CELL), "psl", n_clients=4)
)
case("Plans", "A plan of another scheduler's framework", "'pipeline'", "solve a plan for this framework")(
    lambda: train_planned(pipeline.solve(PROFILE, NETWORK, batch_size=64), "psl")
)
case("Plans", "Micro-batches with some slots averaged", "0 or 1 with micro-batches", "phi=0 (PSL) or phi=1")(
    lambda: epsl.solve(PROFILE, CELL, phi=0.5, micro_batches=8)
)
case("Plans", "A number of micro-batches that the samples do not make", "9: 8 samples at a time make 8", "take 8")(
    lambda: epsl.solve(PROFILE, CELL, batch_size=64, phi=0, micro_batches=9)
)
case("Plans", "A bound above the plan", "at most the plan's own round time", "solve again")(
    lambda: dataclasses.replace(edgesplit.solve(PROFILE, CLUSTER), lower_bound=1e9)
)
case("Plans", "Devices without memory", "memory", "bytes")(
    lambda: edgesplit.solve(PROFILE, dataclasses.replace(CLUSTER, device_memory=1e3))
)
case("Plans", "A pipeline that uses a node twice", "one stage", "node")(
    lambda: pipeline.latency(
        PROFILE,
        NETWORK,
        stages=[(0, 0, 2), (1, 2, 4), (0, 4, PROFILE.n_units)],
        hops=[(2, 0, 1), (4, 1, 0)],
        micro_batch=8,
        batch_size=64,
    )
)

# --- records ---

case("Records", "An unknown field", "the fields of WirelessCell", "unknown 'colour'")(
    lambda: WirelessCell.from_dict(CELL.to_dict() | {"colour": "red"})
)
case("Records", "A missing field", "the fields of WirelessCell", "none named 'noise_psd'")(
    lambda: WirelessCell.from_dict({k: v for k, v in CELL.to_dict().items() if k != "noise_psd"})
)
case("Records", "A record of another class", "WirelessCell", "EdgeCluster")(
    lambda: WirelessCell.from_dict(CLUSTER.to_dict())
)
case("Records", "A cut of True", "a number 0..", "True")(lambda: PROFILE.cut_index(True))


def _with_rate(graph: nx.DiGraph, rate: object, **others) -> nx.DiGraph:
    for values in graph.edges.values():
        values.update({"rate": rate} | others)
    return graph


def _with_island(graph: nx.DiGraph) -> nx.DiGraph:
    graph.add_node(9, speed=1e12)
    return graph


def _parallel(*latencies: float) -> nx.MultiGraph:
    graph = nx.MultiGraph()
    graph.add_node(0, speed=1e12)
    graph.add_node(1, speed=1e12)
    for latency in latencies:
        graph.add_edge(0, 1, rate=1e8, latency=latency)
    return graph


if __name__ == "__main__":
    PAGE.write_text(page())
