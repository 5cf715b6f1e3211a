"""How good and how fast the EdgeSplit scheduler is: alternation against the optimum, whole blocks, growth, speed-ups.

    python benchmarks/edgesplit_solver.py            # about two minutes
    python benchmarks/edgesplit_solver.py --quick    # half a minute, fewer draws

Prints tables and writes benchmarks/results/edgesplit_solver.csv. Times are milliseconds of this process's CPU on
one core, interleaved, medians; all methods are vectorised over devices. "exact" alone is by envelopes at every N; from
solve() to plan, small clusters are solved by trying every cut. Speed-ups are ResNet-50 at 224×224 on drawn boards.
"""

import argparse
import itertools
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # the random clusters live with the tests
import psl
from edgesplit_scenarios import BATCH, STEPS, measured, random_case, random_cluster
from epsl_scenarios import random_profile
from psl.networks import EdgeCluster
from psl.schedulers import edgesplit
from psl.schedulers.edgesplit.bisection import bisect_deadline
from psl.schedulers.edgesplit.enumeration import EnumeratedProblem
from psl.schedulers.edgesplit.policy_iteration import best_split
from psl.schedulers.edgesplit.problem import EdgeSplitProblem
from solver_common import RESULTS, record, write


def spread(part: str, what: str, values, unit: str, scale: float = 1.0, names=("mean", "p99", "max")) -> None:
    """Record some statistics of values."""
    values = np.asarray(values) * scale
    statistics = {
        "mean": values.mean, "median": lambda: np.median(values), "p10": lambda: np.quantile(values, 0.1),
        "p90": lambda: np.quantile(values, 0.9), "p99": lambda: np.quantile(values, 0.99), "max": values.max,
    }  # fmt: skip
    for name in names:
        record(part, f"{what}, {name}", float(statistics[name]()), unit)


def plan_of(case, method="alternating", **options):
    """Return the plan of a random case of the tests."""
    return edgesplit.solve(*case, batch_size=BATCH, local_steps=STEPS, method=method, **options)


def continuous(clusters: int) -> None:
    """Random clusters, bandwidth in any parts: alternation, its steps, and stopping after one."""
    print(f"Bandwidth in any parts: {clusters} random clusters, N = 1-12, L = 1-8")
    apart, early, steps, rounds = [], [], [], []
    for seed in range(clusters):
        case = random_case(seed)
        plan, best = plan_of(case, bound=False), plan_of(case, "exact")
        apart.append(abs(plan.round_time / best.round_time - 1))
        steps.append(plan.history[-1]["step"])
        rounds.append(len(best.history))
        early.append(plan_of(case, max_steps=1, bound=False).round_time / best.round_time - 1)
    record("continuous", "alternating against exact, largest relative difference", max(apart), "")
    for count, times in zip(*np.unique(steps, return_counts=True), strict=True):
        record("continuous", f"alternating done after {count} steps", 100 * times / clusters, "% of clusters")
    record("continuous", "rounds of exact, mean", float(np.mean(rounds)), "")
    record("continuous", "rounds of exact, max", max(rounds), "")
    record("continuous", "not optimal after one step", 100 * float((np.array(early) > 1e-9).mean()), "% of clusters")
    spread("continuous", "loss of stopping after one step", early, "%", 100)


def blocks(clusters: int) -> None:
    """The same in whole resource blocks, few and many per device."""
    print(f"Whole resource blocks: {clusters} random clusters each, N = 1-12, L = 1-8")
    for low, high in ((1, 3), (3, 10), (10, 40)):
        cases = (random_case(seed, blocks_per_device=(low, high)) for seed in range(clusters))
        gaps = np.array([plan_of(case).gap for case in cases])
        name = f"{low}-{high} blocks per device: alternating"
        record("blocks", f"{name} not optimal", 100 * float((gaps > 1e-9).mean()), "% of clusters")
        spread("blocks", f"{name}, gap", gaps, "%", 100, ("mean", "max"))
        if (gaps > 1e-9).any():
            record("blocks", f"{name}, gap where not optimal, mean", 100 * float(gaps[gaps > 1e-9].mean()), "%")


def cpu(call) -> float:
    """Return the CPU seconds of a call."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def one_pass(problem: EnumeratedProblem, bandwidth: np.ndarray) -> None:
    """Evaluate T_i(j, w_i) for all devices and cuts, a cache-sized part of the devices at a time."""
    table, bits = problem.table, problem.bits[problem.min_cut :, None]
    wait = 1.0 / (problem.efficiency * bandwidth)
    for at in range(0, problem.n_devices, 1024):
        part = slice(at, at + 1024)
        times = bits * wait[part]
        times += table[:, part]


def growth(sizes, repeats: int) -> None:
    """CPU time against the number of devices, L = 50; every repeat another cluster, methods interleaved."""
    print(f"Growth with N, L = 50: {repeats} clusters each, CPU time")
    for n in sizes:
        seconds: dict[str, list] = {}
        for seed in range(repeats):
            rng = np.random.default_rng(seed)
            profile = random_profile(rng, 50)
            cluster = random_cluster(rng, profile, n, memory=True)
            own = [measured(profile, profile.fwd_cost / s, profile.bwd_cost / s) for s in rng.lognormal(25, 1, 8)]
            tables = EdgeCluster(
                cluster.device_speed, cluster.device_memory, cluster.spectral_efficiency, cluster.bandwidth,
                cluster.server_speed, profiles=tuple(own[k] for k in rng.integers(8, size=n)),
            )  # fmt: skip
            in_blocks = EdgeCluster(
                cluster.device_speed, cluster.device_memory, cluster.spectral_efficiency, cluster.bandwidth,
                cluster.server_speed, resource_block=cluster.bandwidth / (10 * n),
            )  # fmt: skip
            of = lambda kind, cluster=cluster, profile=profile: kind(profile, cluster, BATCH, STEPS)  # noqa: E731
            slow, ready = of(EnumeratedProblem), of(EdgeSplitProblem)
            slow.table, ready.groups  # noqa: B018  # built once, not timed
            even = np.full(n, cluster.bandwidth / n)
            # Methods are told apart by what they are given: `ready` and `slow` are problems whose tables are built.
            calls = {
                "one pass over T_i(j, w)": lambda slow=slow, even=even: one_pass(slow, even),
                "exact": lambda ready=ready: best_split(ready),
                "exact, problem built anew": lambda of=of: best_split(of(EdgeSplitProblem)),
                "exact, solve() to plan": lambda case=(profile, cluster): plan_of(case, "exact"),
                "exact, trying every cut": lambda slow=slow: best_split(slow),
                "bisection to 1e-9, trying every cut": lambda slow=slow: bisect_deadline(slow, 1e-9),
                "alternating, solve() without bound": lambda case=(profile, cluster): plan_of(case, bound=False),
                "exact of measured devices, solve() to plan": lambda case=(profile, tables): plan_of(case, "exact"),
                "exact in whole blocks, solve() to plan": lambda case=(profile, in_blocks): plan_of(case, "exact"),
            }
            for name, call in calls.items():
                inner = 3 if n <= 1_000 else 1
                seconds.setdefault(name, []).append(min(cpu(call) for _ in range(inner)))
        median = {name: float(np.median(values)) for name, values in seconds.items()}
        for name, value in median.items():
            record("growth", f"N={n}: {name}", 1e3 * value, "ms CPU")
        base = median["exact"]
        # Each repeat is a cluster of its own: the median of its ratios, not the ratio of medians.
        for name in ("bisection to 1e-9, trying every cut", "one pass over T_i(j, w)"):
            ratio = np.array(seconds[name]) / seconds["exact"]
            record("growth", f"N={n}: {name} / exact, median", float(np.median(ratio)), "times")
            record("growth", f"N={n}: {name} / exact, least", float(ratio.min()), "times")
        bisection = median["bisection to 1e-9, trying every cut"]
        record(
            "growth",
            f"N={n}: bisection / exact, both trying every cut",
            bisection / median["exact, trying every cut"],
            "times",
        )
        record(
            "growth",
            f"N={n}: bisection / exact from solve() to plan",
            bisection / median["exact, solve() to plan"],
            "times",
        )
        record("growth", f"N={n}: exact / one pass", base / median["one pass over T_i(j, w)"], "passes")


def speed_ups(seeds: int) -> None:
    """ResNet-50 at 224×224 on drawn boards, over bandwidth, server, steps and number of devices."""
    profile = psl.profile(torchvision.models.resnet50(), (3, 224, 224))
    grid = list(itertools.product((5, 20, 50), (20e6, 100e6, 500e6), (2e12, 10e12, 50e12), (5, 50), range(seeds)))
    print(f"Speed-up of the plan, ResNet-50 at 224×224, b = 32: {len(grid)} scenarios, memory without limit")
    gains = {name: [] for name in ("fedavg", "sfl", "adaptive-equal", "common-optimal")}
    for n, bandwidth, server, steps, seed in grid:
        cluster = EdgeCluster.sample(n, seed, bandwidth=bandwidth, server_speed=server, memory_limits=False)
        plan = edgesplit.solve(profile, cluster, local_steps=steps, method="alternating")
        for name, values in gains.items():
            other = edgesplit.solve(profile, cluster, local_steps=steps, method=name, bound=False)
            values.append(other.round_time / plan.round_time)
    for name, values in gains.items():
        spread("speed-up", f"over {name}", values, "times", 1.0, ("median", "p90", "max"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer draws")
    parser.add_argument("--output", type=Path, default=RESULTS / "edgesplit_solver.csv")
    args = parser.parse_args()
    quick = args.quick
    continuous(200 if quick else 2_000)
    blocks(60 if quick else 500)
    speed_ups(1 if quick else 4)
    growth((10, 1_000, 100_000) if quick else (10, 100, 1_000, 10_000, 100_000), 2 if quick else 7)
    write(args.output)


if __name__ == "__main__":
    main()
