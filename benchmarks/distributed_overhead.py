"""What real processes cost: a step of distributed PSL against one in a single process, and a message over a stream.

Two clients and a server on this machine, no emulation, one thread per process, 8 × 8 images, activations of about
0.1, 1 and 10 MB per client and step, over gRPC with mutual TLS. Runs are interleaved; figures are medians. "Outside
computing" is what a round takes beyond its longest forward and backward pass on a client and the server's step.
A message wakes up processes, so other work on the machine shows at once: run it on a quiet one, or with ``chrt -r 10``.
"""

import argparse
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from psl.distributed import Job, Launch, run
from psl.distributed.wire.keys import make_bundles
from psl.distributed.wire.links import Link
from psl.distributed.wire.messages import Kind
from psl.distributed.wire.streams import Listener, connect
from psl.training import train
from training_common import write

CLIENTS, BATCH, MANY = 2, 32, 60
WIDTHS = {"0.1 MB": 12, "1 MB": 122, "10 MB": 1221}  # channels at the cut: × 64 pixels × 32 samples × 4 bytes
LIMIT = 1 << 28


def model(width: int) -> nn.Sequential:
    """A convolution, the cut, and a small rest."""
    layers = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * width, 10))


def steps(width: int, rounds: int) -> dict[str, float]:
    """Seconds of a step in one process and distributed, and of that outside computing."""
    asked = {"n_clients": CLIENTS, "batch_size": BATCH, "rounds": rounds, "eval_every": rounds, "cut": 2, "lr": 0.01}
    settings = {"model_options": {"width": width}}
    job = Job.of("psl", "distributed_overhead:model", **asked, **settings)
    marks = []

    def loss(outputs, labels):
        marks.append(time.perf_counter())  # once per round
        return nn.functional.cross_entropy(outputs, labels, reduction="none")

    train("psl", job.build_model(), "digits", **asked, loss=loss, verify=False, progress=False)
    found = run("psl", "distributed_overhead:model", "digits", progress=False, **asked, **settings)
    events = found.events[found.events["round"] > 0].assign(s=lambda e: e["end_s"] - e["start_s"])
    computing = events[events["kind"].isin(["forward", "backward", "step"])]
    parts = computing.groupby(["round", "resource", "kind"])["s"].sum().unstack("kind").reset_index("resource")
    clients = parts[parts["resource"] != "server"].groupby("round")
    server = parts[parts["resource"] == "server"].groupby("round")[["forward", "backward", "step"]].sum().sum(axis=1)
    longest = clients["forward"].max() + (parts["backward"] + parts["step"])[parts["resource"] != "server"].groupby(
        "round").max() + server  # fmt: skip
    whole = found.round_times[1:]
    return {
        "in one process": float(np.median(np.diff(marks[-rounds:]))), "distributed": float(np.median(whole)),
        "outside computing": float(np.median(whole - longest.to_numpy())),
    }  # fmt: skip


def echo(port: int, bundle, repeats: int) -> None:
    """Be the process at the other end."""
    torch.set_num_threads(1)
    link = Link("server", limit=LIMIT)
    connect(link, f"127.0.0.1:{port}", bundle, {"rank": 1, "machine": ""}, server=0, timeout=30.0)
    for step in range(repeats):
        link.recv(Kind.ACTIVATION, step)
        link.send(Kind.REPORT, step)
    link.ended.wait(30)


def there_and_back(width: int, repeats: int) -> float:
    """Seconds to send the activations and hear back."""
    bundles, payload = make_bundles(2), torch.randn(BATCH, width, 8, 8)
    options = {"limit": LIMIT, "timeout": 30.0}
    make = lambda rank, plane: Link("client 0", limit=LIMIT)  # noqa: E731
    with Listener(["127.0.0.1:0"], bundles[0], make, lambda word: None, range(1, 2), **options) as listener:
        other = multiprocessing.get_context("spawn").Process(target=echo, args=(listener.port, bundles[1], repeats + 5))
        other.start()
        link, times = listener.meet(1, 60.0), []
        link.welcome("")
        for step in range(repeats + 5):
            start = time.perf_counter()
            link.send(Kind.ACTIVATION, step, payload)
            link.recv(Kind.REPORT, step)
            times.append(time.perf_counter() - start)
        link.close()
    other.join()
    return float(np.median(times[5:]))


def many_clients(**model: int) -> tuple[float, float]:
    """Seconds until a run of many clients has ended its first round, and memory of all its processes, MB."""
    options = {"n_clients": MANY, "batch_size": 8, "rounds": 1000, "eval_every": 1000, "cut": "pool1"}
    job = Job.of("psl", "psl.models:cnn", model_options=model, **options)
    begun = time.monotonic()
    with Launch(job) as launch:
        while not launch.news["rounds"]:
            launch.look()
            time.sleep(0.05)
        seconds = time.monotonic() - begun
        rollups = [Path(f"/proc/{worker.pid}/smaps_rollup").read_text() for worker in launch.workers]
    shared_out = [int(text.partition("Pss:")[2].split()[0]) for text in rollups]  # kB, what is shared divided
    return seconds, sum(shared_out) / 1e3


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs of each kind")
    parser.add_argument("--sends", type=int, default=100)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for what, model in (("the program's first run", {}), ("a later run of another model", {"width": 15})):
        seconds, memory = many_clients(**model)
        part = f"{MANY} clients, {what}"
        rows += [(part, "start, until the first round has ended", seconds, "s")]
        rows += [(part, "memory of all processes", memory, "MB")]
    for part, width in WIDTHS.items():
        runs = pd.DataFrame([steps(width, asked.rounds) for _ in range(asked.repeats)]).median()
        rows += [
            (part, "activations of a client and step", width * 64 * BATCH * 4 / 1e6, "MB"),
            (part, "step in one process", 1e3 * runs["in one process"], "ms"),
            (part, "step of distributed PSL", 1e3 * runs["distributed"], "ms"),
            (part, "distributed over one process", runs["distributed"] / runs["in one process"], "times"),
            (part, "of it outside computing", 100 * runs["outside computing"] / runs["distributed"], "%"),
            (part, "send and answer, mutual TLS", 1e3 * there_and_back(width, asked.sends), "ms"),
        ]
    write(pd.DataFrame(rows, columns=["part", "figure", "value", "unit"]), "distributed_overhead")


if __name__ == "__main__":
    main()
