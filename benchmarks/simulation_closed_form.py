"""What a pipeline really does against the closed form T = T_f + (M − 1) T_i: ratios, orders, and what memory buys.

    python benchmarks/simulation_closed_form.py                  # about five minutes
    python benchmarks/simulation_closed_form.py --quick          # under one minute, fewer draws
    python benchmarks/simulation_closed_form.py --only growing   # one part; the other rows of the CSV stay

Prints tables and writes benchmarks/results/simulation_closed_form.csv. Random chains have log-normal costs, links as
slow as nodes on average; solved plans are VGG-16 and ResNet-18 at 32×32 on sampled networks of eight servers, B = 512.
"""

import argparse
import os
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # random chains live with the tests
import psl
from psl.networks import EdgeNetwork
from psl.schedulers import pipeline
from psl.simulation import Timeline, lower_bound, simulate
from simulation_scenarios import chain, random_chain, walk_of
from solver_common import RESULTS, record, write


def spread(part: str, what: str, values, unit: str = "times") -> None:
    """Record the extremes and the median of some values, and of many the 1st and 99th percentile."""
    few = len(values) < 200
    for name, q in (("min", 0), ("p1", 0.01), ("median", 0.5), ("p99", 0.99), ("max", 1)):
        if few and name in ("p1", "p99"):
            continue
        record(part, f"{what}, {name}", float(np.quantile(values, q)), unit)


def predicted(plan) -> tuple[float, np.ndarray]:
    """Return T of a chain of equal micro-batches, and the occupancies of its stages and hops in path order."""
    way, turn = walk_of(plan, plan.micro_batch)
    seconds = np.array([step[2] for step in way])
    forward, backward = seconds[:turn], seconds[turn:][::-1]
    node = np.array([step[0] == "compute" for step in way[:turn]])
    both = forward + backward
    occupancy = both if plan.network.duplex == "half" else np.where(node, both, np.maximum(forward, backward))
    count = -(-plan.batch_size // plan.micro_batch)
    fill = seconds.sum() + sum(step[3] for step in way)
    return fill + (count - 1) * occupancy.max(), occupancy


def random_chains(draws: int) -> None:
    """One stage per node in a row, one hop per link: the closed form's own assumptions."""
    print(f"Random chains: {draws}, up to 8 stages and 40 micro-batches")
    ratio, bound, flush, half, window, first, middle, stages = [], [], [], [], [], [], [], []
    for seed in range(draws):
        plan = random_chain(np.random.default_rng(seed))
        total, occupancy = predicted(plan)
        free = simulate(plan).makespan
        ratio.append(free / total)
        bound.append(free / lower_bound(plan))
        flush.append(simulate(plan, order="flush").makespan / free)
        window.append(simulate(plan, max_in_flight=len(plan.stages)).makespan / free)
        half_duplex = replace(plan, network=replace(plan.network, duplex="half"))
        half.append(simulate(half_duplex).makespan / free)
        stages.append(len(plan.stages))
        first.append(int(occupancy.argmax()) == 0)
        middle.append(0 < int(occupancy.argmax()) < len(occupancy) - 1)
    ratio, first, middle, stages = np.array(ratio), np.array(first), np.array(middle), np.array(stages)
    part = "random chains"
    spread(part, "simulated / predicted", ratio)
    record(part, "simulated above predicted by more than 1e-9", float((ratio > 1 + 1e-9).mean()) * 100, "% of chains")
    record(part, "simulated below predicted by more than 1e-9", float((ratio < 1 - 1e-9).mean()) * 100, "% of chains")
    record(part, "largest ratio where the bottleneck is the first stage", float(ratio[first].max()), "times")
    record(part, "least ratio where the bottleneck is the first stage", float(ratio[first].min()), "times")
    record(part, "largest ratio where the bottleneck is neither first nor last", float(ratio[middle].max()), "times")
    ends = ~first & ~middle
    record(part, "largest ratio where the bottleneck is the last stage", float(ratio[ends].max()), "times")
    record(part, "largest ratio with one or two stages", float(ratio[stages < 3].max()), "times")
    spread(part, "simulated / lower bound (load, head and tail)", bound)
    spread(part, "flush / 1f1b", flush)
    spread(part, "in flight at most the number of stages / no limit", window)
    record(part, "in flight at most the number of stages / no limit, mean", float(np.mean(window)), "times")
    share = float((np.array(window) < 1 - 1e-9).mean())
    record(part, "chains that are faster with that limit", share * 100, "%")
    spread(part, "half duplex / full duplex", half)
    record(part, "chains that are faster with half duplex", float((np.array(half) < 1 - 1e-9).mean()) * 100, "%")


def growing(draws: int) -> None:
    """The same chains with ever more micro-batches: the ratio tends to 1 in full duplex, not in half duplex."""
    for duplex, part in (("full", "micro-batches"), ("half", "micro-batches, half duplex")):
        print(f"Ratio against the number of micro-batches: {draws} chains of 3 to 8 stages, {duplex} duplex")
        for count in (2, 5, 10, 20, 50, 100, 200):
            ratio = []
            for seed in range(draws):
                rng = np.random.default_rng(seed)
                plan = random_chain(rng, duplex=duplex)
                while len(plan.stages) < 3:
                    plan = random_chain(rng, duplex=duplex)
                plan = replace(plan, batch_size=count)
                ratio.append(simulate(plan).makespan / predicted(plan)[0])
            for name, value in (("min", min(ratio)), ("median", np.median(ratio)), ("max", max(ratio))):
                record(part, f"M={count}: simulated / predicted, {name}", float(value), "times")


def solved_plans(networks: int) -> None:
    """Plans that the scheduler makes."""
    profiles = {
        "VGG-16": psl.profile(torchvision.models.vgg16(num_classes=10), (3, 32, 32)),
        "ResNet-18": psl.profile(torchvision.models.resnet18(num_classes=10), (3, 32, 32)),
    }
    links = {"50 Mbit/s-1 Gbit/s": (50e6, 1e9), "1-10 Gbit/s": (1e9, 1e10)}
    for model, profile in profiles.items():
        for name, rates in links.items():
            print(f"{model}, links of {name}: {networks} networks")
            one(f"{model}, {name}", profile, rates, networks)


def one(part: str, profile: psl.Profile, rates, networks: int) -> None:
    """One model on networks of one kind."""
    figures = defaultdict(list)
    for seed in range(networks):
        network = EdgeNetwork.sample(8, seed=seed, rate_range=rates)
        plan = pipeline.solve(profile, network, batch_size=512)
        free = simulate(plan)
        figures["ratio"].append(free.makespan / plan.round_time)
        figures["equal"].append(simulate(plan, equal_micro_batches=True).makespan / plan.round_time)
        figures["bound"].append(free.makespan / lower_bound(plan))
        figures["flush"].append(simulate(plan, order="flush").makespan / free.makespan)
        limited = simulate(plan, max_in_flight=len(plan.stages))
        figures["window"].append(limited.makespan / free.makespan)
        figures["twice"].append(simulate(plan, max_in_flight=2 * len(plan.stages)).makespan / free.makespan)
        figures["memory"].append(activations(limited) / activations(free))
        figures["stages"].append(len(plan.stages))
        figures["count"].append(plan.n_micro_batches)
        separate = pipeline.solve(profile, network, batch_size=512, links="separate")
        figures["separate"].append(simulate(separate).makespan / separate.round_time)
    record(part, "stages, mean", float(np.mean(figures["stages"])), "")
    record(part, "micro-batches, mean", float(np.mean(figures["count"])), "")
    spread(part, "simulated / predicted", figures["ratio"])
    spread(part, "simulated with equal micro-batches / predicted", figures["equal"])
    spread(part, "simulated / predicted with links='separate'", figures["separate"])
    spread(part, "simulated / lower bound", figures["bound"])
    spread(part, "flush / 1f1b", figures["flush"])
    spread(part, "in flight at most the number of stages / no limit", figures["window"])
    record(part, "in flight at most the number of stages / no limit, mean", float(np.mean(figures["window"])), "times")
    record(part, "in flight at most twice the stages / no limit, mean", float(np.mean(figures["twice"])), "times")
    spread(part, "activations kept, in flight at most the number of stages / no limit", figures["memory"])


def activations(timeline: Timeline) -> float:
    """Return the bytes of activations kept at the peak of each machine, summed; at the end only parameters are left."""
    memory = timeline.memory()
    return float((memory.max() - memory.iloc[-1]).sum())


def speed() -> None:
    """How long simulating takes, in CPU time: one thread, so that other work on the machine does not count."""
    print("Speed")
    rng = np.random.default_rng(0)
    for count in (64, 512, 4096):
        plan = chain(*rng.uniform(1, 2, (2, 8)), *rng.uniform(0.1, 0.5, (2, 7)), latency=0.1, batch_size=count)
        took = []
        for _ in range(5 if count < 4096 else 1):
            begin = time.process_time()
            simulate(plan)
            took.append(time.process_time() - begin)
        record("speed", f"8 stages, M={count}: one simulation, median", float(np.median(took)), "s CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer draws")
    parser.add_argument("--only", choices=["chains", "growing", "solved", "speed"], help="run one part, keep the rest")
    parser.add_argument("--output", type=Path, default=RESULTS / "simulation_closed_form.csv")
    args = parser.parse_args()
    if args.only in (None, "chains"):
        random_chains(200 if args.quick else 3000)
    if args.only in (None, "growing"):
        growing(30 if args.quick else 100)
    if args.only in (None, "solved"):
        solved_plans(3 if args.quick else 40)
    if args.only in (None, "speed"):
        speed()
    write(args.output, merge=args.only is not None)


if __name__ == "__main__":
    main()
