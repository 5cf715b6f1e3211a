"""What real processes cost: a step of distributed PSL against one in a single process, transport against plain gloo.

Two clients and a server on this machine, no emulation, one thread per process, 8 × 8 images, activations of about
0.1, 1 and 10 MB per client and step. Runs are interleaved; figures are medians. "Outside computing" is what a round
takes beyond its longest forward and backward pass on a client and the server's step. The channel sends the
activations with their header, and checks it; plain gloo sends the same bytes between the same two processes.
A message wakes up processes, so other work on the machine shows at once: run it on a quiet one, or with ``chrt -r 10``.
"""

import argparse
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.distributed import PrefixStore, ProcessGroupGloo

from psl.distributed import Nursery, run
from psl.distributed.job import Job
from psl.distributed.wire.messages import Kind
from psl.distributed.wire.transport import LOOPBACK, Channel, open_store, serve_store
from psl.training import train
from training_common import write

CLIENTS, BATCH = 2, 32
WIDTHS = {"0.1 MB": 12, "1 MB": 122, "10 MB": 1221}  # channels at the cut: × 64 pixels × 32 samples × 4 bytes


def model(width: int) -> nn.Sequential:
    """A convolution, the cut, and a small rest."""
    layers = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * width, 10))


def options(width: int, rounds: int) -> dict:
    """The run that is measured."""
    return {
        "n_clients": CLIENTS, "batch_size": BATCH, "rounds": rounds, "eval_every": rounds, "cut": 2, "lr": 0.01,
    }  # fmt: skip


def steps(width: int, rounds: int, nursery: Nursery) -> dict[str, float]:
    """Seconds of a step in one process and distributed, and of that outside computing."""
    asked, settings = options(width, rounds), {"model_options": {"width": width}}
    job = Job.of("psl", "distributed_overhead:model", **asked, **settings)
    marks = []

    def loss(outputs, labels):
        marks.append(time.perf_counter())  # once per round
        return nn.functional.cross_entropy(outputs, labels, reduction="none")

    train("psl", job.build_model(), "digits", **asked, loss=loss, progress=False)
    found = run("psl", "distributed_overhead:model", "digits", nursery=nursery, progress=False, **asked, **settings)
    events = found.events[found.events["round"] > 0].assign(s=lambda e: e["end_s"] - e["start_s"])
    computing = events[events["kind"].isin(["forward", "backward", "step"])]
    parts = computing.groupby(["round", "resource", "kind"])["s"].sum().unstack("kind").reset_index("resource")
    clients = parts[parts["resource"] != "server"].groupby("round")
    server = parts[parts["resource"] == "server"].groupby("round")[["forward", "backward", "step"]].sum().sum(axis=1)
    longest = clients["forward"].max() + (parts["backward"] + parts["step"])[parts["resource"] != "server"].groupby(
        "round").max() + server  # fmt: skip
    whole = found.round_times[1:]
    return {
        "in one process": float(np.median(np.diff(marks))), "distributed": float(np.median(whole)),
        "outside computing": float(np.median(whole - longest.to_numpy())),
    }  # fmt: skip


def transports(width: int, repeats: int, nursery: Nursery) -> dict[str, float]:
    """Seconds to send the activations and hear back, through the channel and by plain gloo."""
    store, port = serve_store()
    payload = torch.randn(BATCH, width, 8, 8)
    with tempfile.TemporaryDirectory() as folder:
        echo = nursery.start("distributed_overhead", [port, width, repeats], Path(folder) / "log")
        channel, plain = meet(store, 0)
        times = {"channel": [], "plain gloo": []}
        answer = torch.zeros(1)
        for step in range(repeats + 5):
            start = time.perf_counter()
            channel.send(Kind.ACTIVATION, step, payload)
            channel.recv(Kind.REPORT, step, (1,))
            middle = time.perf_counter()
            plain.send([payload], 1, 9).wait()
            plain.recv([answer], 1, 9).wait()
            times["channel"].append(middle - start)
            times["plain gloo"].append(time.perf_counter() - middle)
        if echo.wait(10) != 0:
            raise RuntimeError(echo.last_words())
    return {name: float(np.median(values[5:])) for name, values in times.items()}


def meet(store, member: int) -> tuple[Channel, ProcessGroupGloo]:
    """Return the two ends of a process."""
    channel = Channel.connect(store, "channel", member, name="other end", patience=60, timeout=60)
    settings = ProcessGroupGloo._Options()
    settings._devices = [ProcessGroupGloo.create_device(hostname=LOOPBACK)]
    settings._timeout = timedelta(seconds=60)
    return channel, ProcessGroupGloo(PrefixStore("plain", store), member, 2, settings)


def main(arguments=None):
    """Measure; with three arguments be the process at the other end."""
    if arguments is not None:
        port, width, repeats = map(int, arguments)
        torch.set_num_threads(1)
        channel, plain = meet(open_store(LOOPBACK, port), 1)
        payload = torch.empty(BATCH, width, 8, 8)
        for step in range(repeats + 5):
            channel.recv(Kind.ACTIVATION, step, (BATCH, width, 8, 8))
            channel.send(Kind.REPORT, step, torch.zeros(1))
            plain.recv([payload], 0, 9).wait()
            plain.send([torch.zeros(1)], 0, 9).wait()
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs of each kind")
    parser.add_argument("--sends", type=int, default=100)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with Nursery() as nursery:
        for part, width in WIDTHS.items():
            runs = pd.DataFrame([steps(width, asked.rounds, nursery) for _ in range(asked.repeats)]).median()
            sends = transports(width, asked.sends, nursery)
            rows += [
                (part, "activations of a client and step", width * 64 * BATCH * 4 / 1e6, "MB"),
                (part, "step in one process", 1e3 * runs["in one process"], "ms"),
                (part, "step of distributed PSL", 1e3 * runs["distributed"], "ms"),
                (part, "distributed over one process", runs["distributed"] / runs["in one process"], "times"),
                (part, "of it outside computing", 100 * runs["outside computing"] / runs["distributed"], "%"),
                (part, "send and answer, plain gloo", 1e3 * sends["plain gloo"], "ms"),
                (part, "send and answer, channel", 1e3 * sends["channel"], "ms"),
                (part, "channel over plain gloo", sends["channel"] / sends["plain gloo"], "times"),
            ]
    write(pd.DataFrame(rows, columns=["part", "figure", "value", "unit"]), "distributed_overhead")


if __name__ == "__main__":
    main()
