"""How fast the pipeline's placement search is, how often the plain shortest path books something twice, and the price.

    python benchmarks/pipeline_search.py                 # about four minutes
    python benchmarks/pipeline_search.py --quick         # about one minute, fewer draws
    python benchmarks/pipeline_search.py --only booked   # one part; the other rows of the CSV stay

Prints tables and writes benchmarks/results/pipeline_search.csv. One Dijkstra per distinct occupancy on a graph built
once is the published search *without its pruning*: a check of the optimum, and no measure of the published algorithm
(for that see docs/peers.md). Most of its thresholds are left out: it is timed on evenly spaced ones and scaled by their
number. Times are process times, so that other work on the machine matters little.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # the oracles live with the tests
import psl
from pipeline_naive import adjacency, heap_search, networkx_search, state_graph, thresholds_of
from pipeline_scenarios import random_profile
from psl.networks import EdgeNetwork
from psl.schedulers.pipeline import LINKS, PipelineProblem, best_placement, relax
from solver_common import RESULTS, record, write

MINI_BATCH, MICRO_BATCH = 512, 8
GROWTH_LABELS = 20_000  # a tenth of the default: what is proven within seconds
LINK_RATES = {"50 Mbit/s-1 Gbit/s": (50e6, 1e9), "1-10 Gbit/s": (1e9, 10e9)}


def timed(call):
    """Return (result, seconds of this process)."""
    begin = time.process_time()
    return call(), time.process_time() - begin


def scenario(n_nodes: int, n_units: int, seed: int, rates=(50e6, 1e9)):
    """Return a random model of n_units and a mesh of n_nodes; computing and sending take times of one order."""
    profile = random_profile(np.random.default_rng(seed), n_units)
    network = EdgeNetwork.sample(n_nodes - 1, seed, "mesh", rate_range=rates)
    return profile, network


def ours(profile, network):
    """Build the tables and find the plain shortest path: what the slow searches do as well."""
    return relax(PipelineProblem(profile, network, MINI_BATCH), MICRO_BATCH)


def against_thresholds(part: str, n: int, draws: int, sampled: int, with_networkx: bool) -> None:
    """N = L = n: our search, tables included, against one Dijkstra per threshold, interleaved."""
    print(f"N = L = {n}: {draws} draws, {sampled} thresholds of each sampled for the slow search")
    more = -(-MINI_BATCH // MICRO_BATCH) - 1
    fast, slow, counts, paths, wrong = [], [], [], [], 0.0
    for seed in range(draws):
        profile, network = scenario(n, n, seed)
        ours(profile, network)  # caches of the network are filled: both sides start from the same
        graph = state_graph(profile, network, MINI_BATCH, MICRO_BATCH)
        thresholds = thresholds_of(graph)
        least = relax(PipelineProblem(profile, network, MINI_BATCH), MICRO_BATCH, "interval").interval * (1 - 1e-12)
        reachable = [t for t in thresholds if t >= least]  # below, there is no path
        chosen = [reachable[k] for k in np.unique(np.linspace(0, len(reachable) - 1, sampled).astype(int))]
        best, took = timed(lambda p=profile, net=network: ours(p, net))
        fast += [took, *(timed(lambda p=profile, net=network: ours(p, net))[1] for _ in range(4))]
        if with_networkx:
            found, took = timed(lambda g=graph, c=chosen: networkx_search(g, c, more))
        else:
            out = adjacency(graph)
            found, took = timed(lambda o=out, c=chosen: heap_search(o, c, more))
        slow.append(took / len(chosen) * len(reachable))
        counts.append(len(thresholds))
        paths.append(len(best.steps))
        wrong = max(wrong, 1 - found / best.value)  # a sample of thresholds may only miss the optimum, not beat it
        assert found >= best.value * (1 - 1e-9), f"seed {seed}"
    record(part, "our search with tables, median", float(np.median(fast)) * 1e3, "ms")
    record(part, "one Dijkstra per threshold, median (scaled from the sample)", float(np.median(slow)), "s")
    record(part, "distinct thresholds, mean", float(np.mean(counts)), "")
    record(part, "thresholds sampled per draw, at most", sampled, "")
    record(part, "shortest paths of our search, mean", float(np.mean(paths)), "")
    record(part, "shortest paths of our search, max", float(np.max(paths)), "")
    record(part, "speed-up, median over median", float(np.median(slow) / np.median(fast)), "times")
    record(part, "sampled Dijkstras below our optimum by at most", max(wrong, 0.0), "")


def growth(sizes, draws: int) -> None:
    """Time of the plain search, and with the repair, against N and L."""
    print(f"Growth with N and L: {draws} draws each, links 50 Mbit/s-1 Gbit/s")
    for n_nodes, n_units in sizes:
        plain, repaired, exact, dirty = [], [], [], []
        for seed in range(draws):
            profile, network = scenario(n_nodes, n_units, seed)
            plain.append(timed(lambda p=profile, net=network: ours(p, net))[1])
            problem = PipelineProblem(profile, network, MINI_BATCH)
            best, took = timed(lambda p=problem: best_placement(p, MICRO_BATCH, max_labels=GROWTH_LABELS))
            repaired.append(took)
            exact.append(best.exact)
            dirty.append(best.labels > 0)
        name = f"N={n_nodes}, L={n_units}"
        record("growth", f"{name}: plain search with tables, median", float(np.median(plain)) * 1e3, "ms")
        record("growth", f"{name}: best placement, median", float(np.median(repaired)) * 1e3, "ms")
        record("growth", f"{name}: best placement, max", float(np.max(repaired)), "s")
        record("growth", f"{name}: repaired", 100 * float(np.mean(dirty)), "%")
        record("growth", f"{name}: proven optimal within {GROWTH_LABELS} labels", 100 * float(np.mean(exact)), "%")


def simulated(problem: PipelineProblem, placement) -> float:
    """Return the seconds that a placement really takes; a node or link that it books twice then waits for itself."""
    plan = SimpleNamespace(
        scheduler="pipeline", profile=problem.profile, network=problem.network, batch_size=problem.batch_size,
        micro_batch=placement.micro_batch, stages=placement.stages, hops=placement.hops,
    )  # fmt: skip
    return psl.simulate(plan).makespan


def booked_twice(profiles, n_servers: int, draws: int, sizes) -> None:
    """How often the plain path books a node or a link twice, what obeying costs by formula, what ignoring it costs."""
    for speed, rates in LINK_RATES.items():
        for model, profile in profiles.items():
            part = f"{model}, {n_servers} servers, {speed}"
            print(f"{part}: {draws} meshes, micro-batches of {', '.join(map(str, sizes))}")
            nodes, link, costs, seconds, labels, exact, steps = [], [], {m: [] for m in LINKS}, [], [], [], []
            truth = {"double-booked": [], "once": [], "double-booked over once": []}
            for seed in range(draws):
                network = EdgeNetwork.sample(n_servers, seed, "mesh", rate_range=rates)
                problem = PipelineProblem(profile, network, MINI_BATCH)
                for b in sizes:
                    plain = relax(problem, b)
                    nodes.append(bool(plain.repeated_nodes))
                    link.append(bool(plain.repeated_links))
                    steps.append(len(plain.steps))
                    for links in LINKS:
                        best, took = timed(lambda b=b, m=links, p=problem: best_placement(p, b, links=m))
                        if plain.repeats:
                            costs[links].append(best.value / plain.value - 1)
                        if links == "once":
                            seconds.append(took)
                            labels.append(best.labels)
                            exact.append(best.exact)
                            if plain.repeats:
                                ignoring, obeying = simulated(problem, plain), simulated(problem, best)
                                truth["double-booked"].append(ignoring / plain.value)
                                truth["once"].append(obeying / best.value)
                                truth["double-booked over once"].append(ignoring / obeying)
            record(part, "plain path books a node twice", 100 * float(np.mean(nodes)), "%")
            record(part, "plain path books a link twice", 100 * float(np.mean(link)), "%")
            for links, values in costs.items():
                if values:
                    record(part, f"cost of links={links!r} where it does, mean", 100 * float(np.mean(values)), "%")
                    record(part, f"cost of links={links!r} where it does, max", 100 * float(np.max(values)), "%")
            if truth["once"]:
                promise = "plain path that books twice: simulated / promised"
                price = "plain path that books twice: simulated / simulated best placement (once)"
                for what, key in (
                    (promise, "double-booked"),
                    ("best placement (once) there: simulated / promised", "once"),
                    (price, "double-booked over once"),
                ):
                    for name, of in (("min", np.min), ("mean", np.mean), ("max", np.max)):
                        record(part, f"{what}, {name}", float(of(truth[key])), "times")
            record(part, "shortest paths per search, mean", float(np.mean(steps)), "")
            record(part, "shortest paths per search, max", float(np.max(steps)), "")
            record(part, "best placement (once), median", float(np.median(seconds)) * 1e3, "ms")
            record(part, "best placement (once), max", float(np.max(seconds)) * 1e3, "ms")
            record(part, "labels (once), max", float(np.max(labels)), "")
            record(part, "proven optimal (once)", 100 * float(np.mean(exact)), "%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer draws")
    parser.add_argument("--only", choices=["thresholds", "growth", "booked"], help="run one part, keep the other rows")
    parser.add_argument("--output", type=Path, default=RESULTS / "pipeline_search.csv")
    args = parser.parse_args()
    quick = args.quick
    if args.only in (None, "thresholds"):
        against_thresholds("N=L=20, networkx", 20, 3 if quick else 10, 20 if quick else 50, True)
        against_thresholds("N=L=50, heap", 50, 1 if quick else 3, 20 if quick else 50, False)
    if args.only in (None, "growth"):
        sizes = [(10, 20), (20, 20), (50, 20), (100, 20), (200, 20), (20, 10), (20, 50), (50, 50), (100, 50), (200, 50)]
        growth(sizes[:3] if quick else sizes, 3 if quick else 5)
    if args.only in (None, "booked"):
        profiles = {
            "VGG-16": psl.profile(torchvision.models.vgg16(num_classes=10), (3, 32, 32)),
            "ResNet-18": psl.profile(torchvision.models.resnet18(num_classes=10), (3, 32, 32)),
        }
        booked_twice(profiles, 8, 5 if quick else 15, (8, 32))
        if not quick:
            booked_twice({"VGG-16": profiles["VGG-16"]}, 19, 5, (8,))
    write(args.output, merge=args.only is not None)


if __name__ == "__main__":
    main()
