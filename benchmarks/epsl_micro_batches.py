"""What micro-batches in the cell save over the shortest PSL round with barriers, and how far from optimal plans are.

    python benchmarks/epsl_micro_batches.py            # about eight minutes on one core
    python benchmarks/epsl_micro_batches.py --quick    # two minutes, three cells

Prints tables and writes benchmarks/results/epsl_micro_batches.csv. b = 64, M = 8 unless a part says otherwise; models
at 32×32 with ten classes; the default cell of seeds 0 to 10, which a part changes in one respect. "Shorter" is the
round over that of the best PSL plan with barriers in the same cell; "gap" is the certified distance from the optimum.
Every plan is executed event by event as well.
"""

import argparse
import dataclasses
import os
import time
import warnings
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # many small calls: threads would only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torchvision

import psl
from psl.schedulers import edgesplit, epsl
from psl.schedulers.epsl.server_order import value_of
from psl.simulation import simulate
from solver_common import RESULTS, record, write

BATCH, MICRO_BATCHES = 64, 8

#: What a part changes in the default cell.
CELLS = {
    "default cells": {},
    "server ÷ 4": {"server_speed": 0.25},
    "server × 4": {"server_speed": 4.0},
    "clients ÷ 4": {"client_speed": 0.25},
    "band ÷ 10": {"bandwidth": 0.1},
}
_off = [0.0]  # largest relative difference of formula and simulation so far


def cell_of(seed: int, change: dict[str, float]) -> psl.WirelessCell:
    """Return a default cell in which some fields are multiplied."""
    cell = psl.WirelessCell.sample(seed=seed)
    return dataclasses.replace(cell, **{name: getattr(cell, name) * factor for name, factor in change.items()})


def profile_of(name: str) -> psl.Profile:
    """Return the profile of one of torchvision's models at 32×32."""
    return psl.profile(getattr(torchvision.models, name)(num_classes=10), (3, 32, 32))


def ratios(part: str, what: str, values, unit: str = "×") -> None:
    """Record median, least and largest of some values."""
    print(part)
    for name, value in (("median", np.median(values)), ("least", min(values)), ("largest", max(values))):
        record(part, f"{what}, {name}", float(value), unit)


def checked(plan):
    """Return a plan whose simulation was compared with its formula."""
    _off[0] = max(_off[0], abs(simulate(plan).makespan / plan.round_time - 1))
    return plan


def planned(part: str, profile, cells, today, **options) -> list:
    """Plan every cell in micro-batches; record gains, gaps and time, and return the plans."""
    options = {"batch_size": BATCH, "phi": 0, "micro_batches": MICRO_BATCHES} | options
    begin = time.perf_counter()
    plans = [epsl.solve(profile, cell, **options) for cell in cells]
    spent = (time.perf_counter() - begin) / len(plans)
    for plan in plans:
        checked(plan)
    ratios(part, "shorter", [plan.round_time / base.round_time for plan, base in zip(plans, today, strict=True)])
    ratios(part, "gap", [100 * plan.gap for plan in plans], "%")
    record(part, "time of solve with bound, mean", spent, "s")
    return plans


def kept(part: str, today, **options) -> None:
    """Record what micro-batches give on the plans with barriers: same cut, subchannels and power."""
    options = {"micro_batches": MICRO_BATCHES} | options
    plans = [checked(dataclasses.replace(base, **options)) for base in today]
    ratios(part, "shorter", [plan.round_time / base.round_time for plan, base in zip(plans, today, strict=True)])


def other_orders(plans) -> None:
    """How much longer the same plans take if the server serves in another order."""
    losses: dict[str, list[float]] = {"first come, first served": [], "all of the slowest client first": []}
    for plan in plans:
        found = plan._pipelined()
        jobs, least = found.jobs(), float(found.computing.max())
        slowest = np.argsort(-found.computing, kind="stable")
        orders = {
            "first come, first served": np.argsort(jobs[0], kind="stable"),
            "all of the slowest client first": np.concatenate(
                [client * MICRO_BATCHES + np.arange(MICRO_BATCHES) for client in slowest]
            ),
        }
        for name, order in orders.items():
            taken = found.begin + max(least, value_of(order, *jobs))
            losses[name].append(100 * (taken / plan.round_time - 1))
    for name, values in losses.items():
        ratios("server's order", f"{name}: longer", values, "%")


def overheads(profile, seeds) -> None:
    """The number of micro-batches that "auto" takes, and what is left of the gain, as messages and calls cost time."""
    for name, cost in {
        "t_m = 1 ms": {"message_overhead": 1e-3},
        "t_m = 5 ms": {"message_overhead": 5e-3},
        "t_c = 2 ms": {"call_overhead": 2e-3},
    }.items():
        cells = [dataclasses.replace(cell_of(seed, {}), **cost) for seed in seeds]
        today = [epsl.solve(profile, cell, batch_size=BATCH, phi=0, bound=False) for cell in cells]
        part = f"auto, {name}"
        plans = planned(part, profile, cells, today, micro_batches="auto")
        record(part, "M, median", float(np.median([plan.micro_batches or 0 for plan in plans])), "")


def edgesplit_devices(profile, seeds) -> None:
    """EdgeSplit's twenty default devices, with their band as it is and wider."""
    for factor in (1, 10, 100):
        gains, gaps, fixed = [], [], []
        for seed in seeds:
            cluster = psl.EdgeCluster.sample(20, seed=seed, bandwidth=factor * 100e6, server_speed=2e12)
            today = edgesplit.solve(profile, cluster, batch_size=32, local_steps=4)
            plan = checked(edgesplit.solve(profile, cluster, batch_size=32, local_steps=4, micro_batches=MICRO_BATCHES))
            same = dataclasses.replace(today, micro_batches=MICRO_BATCHES)
            gains.append(plan.round_time / today.round_time)
            gaps.append(100 * plan.gap)
            fixed.append(same.round_time / today.round_time)
        part = f"EdgeSplit, 20 devices, {factor * 100} MHz, server 2 TFLOP/s"
        ratios(part, "shorter on today's plan", fixed)
        ratios(part, "shorter", gains)
        ratios(part, "gap", gaps, "%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three cells")
    parser.add_argument("--output", type=Path, default=RESULTS / "epsl_micro_batches.csv")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # Sionna says where a client is closer than its model is made for
    seeds = range(3 if args.quick else 11)
    resnet = profile_of("resnet18")
    for name, change in CELLS.items():
        cells = [cell_of(seed, change) for seed in seeds]
        today = [epsl.solve(resnet, cell, batch_size=BATCH, phi=0, bound=False) for cell in cells]
        kept(f"{name}, PSL's own plan", today)
        plans = planned(f"{name}, planned anew", resnet, cells, today)
        planned(f"{name}, φ = 1", resnet, cells, today, phi=1)
        if name == "default cells":
            kept(f"{name}, PSL's own plan, M = 1", today, micro_batches=1)
            for number in (1, 2, 4, 16, 32):
                planned(f"{name}, planned anew, M = {number}", resnet, cells, today, micro_batches=number)
            other_orders(plans)
            half = planned(f"{name}, half duplex", resnet, cells, today, duplex="half")
            planned(f"{name}, half duplex, φ = 1", resnet, cells, today, duplex="half", phi=1)
            moved = [dataclasses.replace(plan, duplex="half").round_time for plan in plans]
            losses = [100 * (seconds / plan.round_time - 1) for seconds, plan in zip(moved, half, strict=True)]
            ratios(f"{name}, half duplex", "the full-duplex plan there: longer", losses, "%")
    cells = [cell_of(seed, {}) for seed in seeds]
    for name in ("vgg16", "mobilenet_v2"):
        profile = profile_of(name)
        today = [epsl.solve(profile, cell, batch_size=BATCH, phi=0, bound=False) for cell in cells]
        kept(f"{name}, PSL's own plan", today)
        planned(f"{name}, planned anew", profile, cells, today)
        planned(f"{name}, φ = 1", profile, cells, today, phi=1)
    overheads(resnet, seeds)
    edgesplit_devices(resnet, seeds)
    record("all plans", "formula against events, largest relative difference", _off[0], "")
    write(args.output)


if __name__ == "__main__":
    main()
