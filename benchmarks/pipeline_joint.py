"""Micro-batch size and placement of a pipeline: closed forms, alternation and baselines against the joint optimum.

    python benchmarks/pipeline_joint.py            # about ten minutes
    python benchmarks/pipeline_joint.py --quick    # about one minute, fewer networks

Prints tables and writes benchmarks/results/pipeline_joint.csv. VGG-16 and ResNet-18 at 32×32 over random meshes of 8
servers of 0.5-10 TFLOP/s, B = 512, on slow links (50 Mbit/s-1 Gbit/s) and on fast ones (1-10 Gbit/s); every link serves
one hop at most.
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torchvision

import psl
from psl.networks import EdgeNetwork
from psl.schedulers import pipeline
from psl.schedulers.pipeline.alternating import alternate
from psl.schedulers.pipeline.joint import joint
from solver_common import RESULTS, record, write

MINI_BATCH = 512
LINKS = {"slow links": (50e6, 1e9), "fast links": (1e9, 10e9)}
MODELS = {"VGG-16": torchvision.models.vgg16, "ResNet-18": torchvision.models.resnet18}
BASELINES = ("no-pipeline", "random-cuts", "random-placement", "two-tier")
MISSED = 1e-9  # relative; anything above counts as not optimal


def spread(part: str, what: str, excess) -> None:
    """Record how often something was above the optimum, and by how much: over all cases, and at worst."""
    excess = np.asarray(excess)
    record(part, f"{what}: not optimal", float((excess > MISSED).mean()) * 100, "%")
    record(part, f"{what}: above the optimum, mean of all", float(excess.mean()) * 100, "%")
    record(part, f"{what}: above the optimum, max", float(excess.max()) * 100, "%")


def timed(call):
    """Return (result, seconds)."""
    begin = time.perf_counter()
    return call(), time.perf_counter() - begin


def profiles() -> dict[str, psl.Profile]:
    """Return the profiles of the models, ten classes, 32×32."""
    return {name: psl.profile(model(num_classes=10), (3, 32, 32)) for name, model in MODELS.items()}


def closed_forms(models: dict, networks: int) -> None:
    """The size of micro-batches on fixed paths: closed forms against the scan."""
    print(f"Closed forms of b on fixed paths: {networks} networks for each model")
    for links, rates in LINKS.items():
        for kind, method in (("best placement at b = 32", "exact"), ("random cuts", "random-cuts")):
            excess = {rule: [] for rule in ("closed form once", "closed form iterated", "upper envelope")}
            for profile in models.values():
                for seed in range(networks):
                    network = EdgeNetwork.sample(8, seed, rate_range=rates)
                    options = {"micro_batch": 32, "method": method, "seed": seed, "bound": False}
                    plan = pipeline.solve(profile, network, batch_size=MINI_BATCH, **options)
                    curve = pipeline.MicroBatchCurve.of_plan(plan)
                    best = float(curve.total(curve.scan()))
                    found = curve.closed_form(32), curve.bottleneck(32), curve.envelope()
                    for values, b in zip(excess.values(), found, strict=True):
                        values.append(float(curve.total(b)) / best - 1)
            for rule, values in excess.items():
                spread("closed form", f"{links}, {kind}, {rule}", values)


def alternation(models: dict, optima: dict, networks: int) -> None:
    """The alternation against the joint optimum, by where it starts and how it chooses b."""
    print(f"Alternation against the joint optimum: {networks} networks for each model")
    for links, rates in LINKS.items():
        excess = {(start, rule): [] for start, rule in ((32, "scan"), (1, "scan"), (32, "bottleneck"))}
        for name, profile in models.items():
            for seed in range(networks):
                network = EdgeNetwork.sample(8, seed, rate_range=rates)
                problem = pipeline.PipelineProblem(profile, network, MINI_BATCH)
                for (start, rule), values in excess.items():
                    value = alternate(problem, start=start, rule=rule).value
                    values.append(max(value / optima[links, name, seed].round_time - 1, 0.0))
        for (start, rule), values in excess.items():
            spread("alternation", f"{links}, from b = {start}, b by {rule}", values)


def gains(models: dict, optima: dict, networks: int) -> None:
    """Time of the baselines over the joint optimum."""
    print(f"Baselines over the joint optimum: {networks} networks")
    for links, rates in LINKS.items():
        for name, profile in models.items():
            plans = [optima[links, name, seed] for seed in range(networks)]
            record("gains", f"{links}, {name}: proven optimal", float(np.mean([p.exact for p in plans])) * 100, "%")
            record("gains", f"{links}, {name}: stages, mean", float(np.mean([len(p.stages) for p in plans])), "")
            record("gains", f"{links}, {name}: b, median", float(np.median([p.micro_batch for p in plans])), "samples")
            for method in BASELINES:
                times = []
                for seed, optimum in enumerate(plans):
                    network = EdgeNetwork.sample(8, seed, rate_range=rates)
                    options = {"batch_size": MINI_BATCH, "method": method, "seed": seed, "bound": False}
                    times.append(pipeline.solve(profile, network, **options).round_time / optimum.round_time)
                record("gains", f"{links}, {name}: {method} / optimum, median", float(np.median(times)), "times")


def pruning(models: dict, networks: int, every_size: int) -> None:
    """Time of the joint optimum against a placement problem for every size, interleaved."""
    print(f"Joint optimum against every b: {networks} networks")
    for links, rates in LINKS.items():
        for name, profile in models.items():
            seconds, solved = {"joint": [], "useful": [], "all": []}, []
            for seed in range(networks):
                network = EdgeNetwork.sample(8, seed, rate_range=rates)
                problem = pipeline.PipelineProblem(profile, network, MINI_BATCH)

                def scan(sizes, problem=problem):
                    return min(pipeline.best_placement(problem, int(b)).total for b in sizes)

                choice, took = timed(lambda problem=problem: joint(problem))
                seconds["joint"].append(took)
                solved.append(choice.solved)
                found, took = timed(lambda scan=scan: scan(pipeline.useful_micro_batches(MINI_BATCH)))
                seconds["useful"].append(took)
                assert choice.value <= found * (1 + 1e-12), (links, name, seed)
                if seed < every_size and links == "slow links":
                    seconds["all"].append(timed(lambda scan=scan: scan(range(1, MINI_BATCH + 1)))[1])
            record("pruning", f"{links}, {name}: joint optimum, median", float(np.median(seconds["joint"])) * 1e3, "ms")
            record("pruning", f"{links}, {name}: joint optimum, max", float(np.max(seconds["joint"])) * 1e3, "ms")
            record("pruning", f"{links}, {name}: placement problems solved, median", float(np.median(solved)), "")
            for kind, label in (("useful", "all 45 useful b"), ("all", "all 512 b")):
                if seconds[kind]:
                    times = np.array(seconds[kind]) / seconds["joint"][: len(seconds[kind])]
                    record("pruning", f"{links}, {name}: {label} / joint, median", float(np.median(times)), "times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer networks")
    parser.add_argument("--output", type=Path, default=RESULTS / "pipeline_joint.csv")
    args = parser.parse_args()
    networks = 4 if args.quick else 20
    models = profiles()
    closed_forms(models, networks)
    optima = {}
    for links, rates in LINKS.items():
        for name, profile in models.items():
            for seed in range(networks):
                network = EdgeNetwork.sample(8, seed, rate_range=rates)
                optima[links, name, seed] = pipeline.solve(profile, network, batch_size=MINI_BATCH)
    alternation(models, optima, networks)
    gains(models, optima, networks)
    pruning(models, 2 if args.quick else 5, 1 if args.quick else 3)
    write(args.output)


if __name__ == "__main__":
    main()
