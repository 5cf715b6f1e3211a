"""Pipeline placement: `psl` against the published search with its pruning [R], HiGHS, CP-SAT and PipeDream's DP.

* The published problem lets a path come back to nodes and links. There `psl.schedulers.pipeline.relax` stands beside
  `published_placement`: with Dijkstra on a heap as published, and with the shortest paths of psl.
* With one stage per node and one hop per link, HiGHS and CP-SAT get a flow over (cut, node) in binaries.
* PipeDream (arXiv 1806.03377) places a chain on equal machines that are all joined alike, and minimises the interval.
"""

import math

import networkx as nx
import numpy as np
from benchmarks.peers.common import Table, installed, quickest, timed
from benchmarks.peers.programme import Programme
from benchmarks.peers.published_placement import with_arrays, with_heap

from pipeline_oracles import evaluate, hop_cost, stage_cost, together
from pipeline_scenarios import random_network, random_profile
from psl.errors import InfeasibleError
from psl.networks import EdgeNetwork
from psl.schedulers import pipeline
from psl.schedulers.pipeline import PipelineProblem, relax

BATCH, MICRO_BATCH = 512, 8


def mesh(size: int, seed: int, rates=(50e6, 1e9)):
    """Return a profile of `size` units and a mesh of as many nodes."""
    return random_profile(np.random.default_rng(seed), size), EdgeNetwork.sample(
        size - 1, seed, "mesh", rate_range=rates
    )


def published(table: Table, size: int, count: int, heap: int) -> None:
    """N = L = size, the published problem; Dijkstra on a heap only for the first `heap` instances."""
    case = f"published problem, N = L = {size}"
    for seed in range(count):
        profile, network = mesh(size, seed)
        relax(PipelineProblem(profile, network, BATCH), MICRO_BATCH)  # fills the network's caches
        plan, took = quickest(lambda p=profile, n=network: relax(PipelineProblem(p, n, BATCH), MICRO_BATCH), 5)
        table.add(case, seed, "psl", seconds=took, value=plan.value, bound=plan.value, runs=len(plan.steps))
        for method, search in (
            ("published, psl's shortest paths [R]", with_arrays),
            ("published, heap [R]", with_heap),
        ):
            if search is with_heap and seed >= heap:
                continue
            (value, runs, there), took = timed(
                lambda p=profile, n=network, s=search: s(PipelineProblem(p, n, BATCH), MICRO_BATCH)
            )
            table.add(case, seed, method, seconds=took, value=value, runs=runs, thresholds=there, status="optimal")
    table.write()


def flow(profile, network, batch_size, b):
    """Return the programme of one stage per node and one hop per link, its columns, and its unit of time."""
    graph, last = network.graph, len(profile.names) - 1
    more = -(-batch_size // b) - 1
    programme, columns, costs = Programme(), [], []
    for n in graph:
        for i in range(last) if n == network.source else range(1, last):
            if n == network.source and i:
                continue  # the source has the first stage, so no other
            for j in range(i + 1, last + 1):
                if (cost := stage_cost(profile, graph.nodes[n], i, j, batch_size, b)) is not None:
                    columns.append(("stage", n, i, j))
                    costs.append((cost, cost))
    for cut in range(1, last):
        for u, v in graph.edges:
            linear, forward, backward = hop_cost(profile, graph, cut, u, v, b)
            columns.append(("hop", cut, u, v))
            costs.append((linear, together((forward, backward), network.duplex)))
    unit = float(np.median([cost for cost, _ in costs])) * last
    balance, hosts, links = {}, {}, {}
    for (linear, _), (kind, *what) in zip(costs, columns, strict=True):
        x = programme.column(linear / unit)
        start, end = (
            ((what[1], what[0]), (what[2], what[0])) if kind == "stage" else ((what[0], what[1]), (what[0], what[2]))
        )
        balance.setdefault(start, {})[x] = -1.0
        balance.setdefault(end, {})[x] = 1.0
        if kind == "stage":
            hosts.setdefault(what[0], {})[x] = 1.0
        else:
            links.setdefault(frozenset(what[1:]), {})[x] = 1.0
    interval = programme.column(more, continuous=True)
    end = {}
    for (cut, node), terms in balance.items():
        if cut == last:
            end |= terms
        else:
            flowing = -1.0 if (cut, node) == (0, network.source) else 0.0
            programme.row(terms, flowing, flowing)
    programme.row(end, 1.0, 1.0)
    for group in (hosts, links):
        for terms in group.values():
            programme.row(terms, 0.0, 1.0)
            # At most one of them is taken: its occupancy is their sum.
            programme.row({x: costs[x][1] / unit for x in terms} | {interval: -1.0}, -math.inf, 0.0)
    return programme, columns, unit


def plan_of(columns, found, network, last):
    """Return (stages, hops) in path order; cycles of hops are left aside."""
    chosen = [columns[x] for x in np.flatnonzero(found[: len(columns)] > 0.5)]
    stage = {(i, n): j for kind, *what in chosen if kind == "stage" for n, i, j in [what]}
    hops = nx.DiGraph(((cut, u), (cut, v)) for kind, *what in chosen if kind == "hop" for cut, u, v in [what])
    stages, walked, at, cut = [], [], network.source, 0
    while True:
        j = stage.pop((cut, at))
        stages.append((at, cut, j))
        if j == last:
            return stages, walked
        (end,) = (n for i, n in stage if i == j)
        path = nx.shortest_path(hops, (j, at), (j, end))
        walked += [(j, u, v) for (_, u), (_, v) in zip(path, path[1:], strict=False)]
        at, cut = end, j


def solvers(table: Table, case: str, instances, seconds: float) -> None:
    """HiGHS and CP-SAT on (seed, profile, network, b, micro_batch); plans are timed by formulas of their own."""
    for seed, profile, network, batch_size, b in instances:
        options = {"batch_size": batch_size, "micro_batch": b}
        try:
            plan, took = quickest(lambda p=profile, n=network, o=options: pipeline.solve(p, n, **o))
        except InfeasibleError:
            continue
        value = evaluate(profile, network, plan.stages, plan.hops, batch_size, b)[2]
        table.add(case, seed, "psl", seconds=took, value=value, bound=plan.lower_bound, status=str(plan.exact))
        for method in filter(installed, ("HiGHS", "CP-SAT")):

            def run(method=method, p=profile, n=network, m=b, size=batch_size):
                programme, columns, unit = flow(p, n, size, m)
                solve = programme.highs if method == "HiGHS" else programme.cp_sat
                return *solve(seconds), columns, unit

            (found, bound, status, columns, unit), took = timed(run)
            value = math.inf
            if found is not None:
                stages, hops = plan_of(columns, found, network, len(profile.names) - 1)
                value = evaluate(profile, network, stages, hops, batch_size, b)[2]
            table.add(case, seed, method, seconds=took, value=value, bound=bound * unit, status=status)
    table.write()


def small(count: int):
    """Yield random instances of six to eight nodes and six to ten units."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        profile = random_profile(rng, int(rng.integers(6, 11)))
        network = random_network(rng, int(rng.integers(6, 9)), profile, batch_size=64, relays=int(rng.integers(3)))
        yield seed, profile, network, 64, int(rng.choice([1, 4, 16]))


def pipedream(unit_seconds: np.ndarray, sending: np.ndarray, machines: int) -> float:
    """Return the least interval (s) of a chain on equal machines, by PipeDream's recursion without replication.

    A(j, k) = min_i max(A(i, k − 1), sending_i, seconds of units i+1..j): units 1..j on k machines.

    Args:
        unit_seconds: (L,) forward and backward of each unit.
        sending: (L+1,) occupancy of a link at each cut.
        machines: k at most.
    """
    total = np.concatenate([[0.0], np.cumsum(unit_seconds)])
    least = np.where(np.arange(len(total)) > 0, total, np.inf)
    best = least[-1]
    for _ in range(machines - 1):
        spans = np.where(np.triu(np.ones((len(total), len(total)), bool), 1), total - total[:, None], np.inf)
        least = np.maximum(np.maximum(least, sending)[:, None], spans).min(axis=0)
        best = min(best, least[-1])
    return float(best)


def equal_machines(table: Table, count: int) -> None:
    """PipeDream's own problem: six equal machines, every two joined by the same link; 16 units."""
    case, machines = "PipeDream's problem, 6 equal machines, L = 16", 6
    for seed in range(count):
        rng = np.random.default_rng(seed)
        profile = random_profile(rng, 16)
        graph = nx.complete_graph(machines, nx.DiGraph)
        nx.set_node_attributes(graph, 1e9, "speed")
        nx.set_edge_attributes(graph, float(10 ** rng.uniform(6, 8)), "rate")
        network = EdgeNetwork(graph, 0)
        options = {"batch_size": 64, "micro_batch": 4, "objective": "interval"}
        plan, took = quickest(lambda p=profile, n=network, o=options: pipeline.solve(p, n, **o))
        table.add(case, seed, "psl", seconds=took, value=plan.interval, bound=plan.lower_bound, status=str(plan.exact))
        rate = network.rate[0]

        def recursion(p=profile, r=rate):
            seconds = 4 * np.diff(p.fwd_cost + p.bwd_cost) / 1e9
            return pipedream(seconds, 4 * np.maximum(p.act_bits, p.grad_bits) / r, machines)

        value, took = quickest(recursion)
        table.add(case, seed, "PipeDream's DP", seconds=took, value=value, status="optimal")
    table.write()


def main(effort: float) -> None:
    """Run; effort 1 takes about six minutes on an idle core."""
    table, count = Table("placement"), max(int(100 * effort), 3)
    equal_machines(table, count)
    solvers(table, "one stage per node, N = 6-8, L = 6-10", small(count), 20.0)
    published(table, 10, count, count)
    published(table, 20, count, count)
    large = ((seed, *mesh(12, seed), 64, 4) for seed in range(max(int(30 * effort), 1)))
    solvers(table, "one stage per node, N = L = 12, mesh", large, 20.0 * effort)
