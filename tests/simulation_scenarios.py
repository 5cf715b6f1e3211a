"""Random pipelines for the simulation's tests and benchmark, and a simulator that walks from second to second."""

from dataclasses import dataclass
from typing import ClassVar

import networkx as nx
import numpy as np

from psl.networks import EdgeNetwork
from psl.profiles import Profile


@dataclass(frozen=True)
class PathPlan:
    """Any stages and hops as a `psl.plans.Plan`, made without a scheduler: nodes and links may be used repeatedly."""

    scheduler: ClassVar[str] = "pipeline"
    n_clients: ClassVar[int] = 1
    round_time: ClassVar[float] = float("nan")
    lower_bound: ClassVar[float] = float("nan")
    gap: ClassVar[float] = float("nan")
    exact: ClassVar[bool] = False

    profile: Profile
    network: EdgeNetwork
    stages: tuple
    hops: tuple
    batch_size: int
    micro_batch: int

    def training_arguments(self):
        return {"batch_size": self.batch_size, "micro_batch": self.micro_batch}

    def framework_round_time(self, framework, local_steps=1):
        return self.round_time


def make_profile(forward, backward, act_bits, grad_bits, rng=None) -> Profile:
    """Return a profile from seconds or FLOP per unit (L,) and bits per cut (L+1,)."""
    n_units = len(forward)
    extra = np.zeros(n_units) if rng is None else rng.integers(0, 5, n_units)
    total = lambda values: np.concatenate([[0.0], np.cumsum(values)])  # noqa: E731
    return Profile(
        names=[f"cut{j}" for j in range(n_units + 1)], fwd_cost=total(forward), bwd_cost=total(backward),
        act_bits=act_bits, grad_bits=grad_bits, param_bits=total(8 * extra), act_memory=total(extra + 1),
    )  # fmt: skip


def make_plan(profile, graph, stages, hops, batch_size, micro_batch, duplex="full"):
    """Return what `psl.simulate` needs of a pipelined plan, without any scheduler."""
    network = EdgeNetwork(graph, stages[0][0], duplex)
    return PathPlan(profile, network, tuple(stages), tuple(hops), batch_size, micro_batch)


def chain(forward, backward, act=(), grad=(), latency=0.0, overhead=0.0, batch_size=1, micro_batch=1, duplex="full"):
    """Return the plan of one stage per node in a row: seconds per sample of every stage (S,) and hop (S-1,)."""
    n = len(forward)
    bits = lambda values: np.concatenate([[0.0], values, [0.0]])  # noqa: E731
    graph = nx.DiGraph()
    for node in range(n):
        graph.add_node(node, speed=1.0, overhead=overhead)
    for node in range(n - 1):
        graph.add_edge(node, node + 1, rate=1.0, latency=latency)
        graph.add_edge(node + 1, node, rate=1.0, latency=latency)
    return make_plan(
        make_profile(forward, backward, bits(act), bits(grad)), graph, [(k, k, k + 1) for k in range(n)],
        [(k + 1, k, k + 1) for k in range(n - 1)], batch_size, micro_batch, duplex,
    )  # fmt: skip


def random_chain(rng, max_stages=8, max_micro_batches=40, spread=1.0, micro_batch=1, duplex="full", even=True):
    """Return a chain with log-normal costs: links as slow as nodes on average; backward one to three times forward."""
    n = int(rng.integers(1, max_stages + 1))
    forward = rng.lognormal(0, spread, n)
    act = rng.lognormal(0, spread, n - 1)
    count = int(rng.integers(1, max_micro_batches + 1))
    left = micro_batch if even or count == 1 else int(rng.integers(1, micro_batch + 1))
    return chain(
        forward, forward * rng.uniform(1, 3, n), act, act * rng.choice([0.5, 1.0]), latency=float(rng.choice([0, 0.3])),
        overhead=float(rng.choice([0, 0.2])), batch_size=(count - 1) * micro_batch + left, micro_batch=micro_batch,
        duplex=duplex,
    )  # fmt: skip


def random_walk_plan(rng):
    """Return a plan of whole-second costs that may come back to nodes and links, relay, and end unevenly."""
    nodes, n_stages = list("abcd"), int(rng.integers(1, 5))
    n_units = n_stages + int(rng.integers(0, 2))
    graph = nx.DiGraph()
    for node in nodes:
        graph.add_node(node, speed=1.0, overhead=float(rng.integers(0, 3)))
    for u in nodes:
        for v in nodes:
            if u != v:
                graph.add_edge(u, v, rate=1.0, latency=float(rng.integers(0, 4)))
    bits = rng.integers(1, 5, (2, n_units + 1))
    profile = make_profile(rng.integers(1, 6, n_units), rng.integers(1, 9, n_units), bits[0], bits[1], rng)
    cuts = [0, *sorted(rng.choice(np.arange(1, n_units), n_stages - 1, replace=False).tolist()), n_units]
    here, stages, hops = "a", [], []
    for k in range(n_stages):
        stages.append((here, cuts[k], cuts[k + 1]))
        for _ in range(int(rng.integers(0, 3)) if k < n_stages - 1 else 0):
            to = str(rng.choice([v for v in nodes if v != here]))
            hops.append((cuts[k + 1], here, to))
            here = to
    micro_batch = int(rng.integers(1, 4))
    batch_size = int(rng.integers(micro_batch, 7 * micro_batch))
    duplex = str(rng.choice(["full", "half"]))
    return make_plan(profile, graph, stages, hops, batch_size, micro_batch, duplex)


def walk_of(plan, n):
    """Return the (kind, resource, seconds, delay) of n samples' whole way forward and back, from the plan's text."""
    graph, profile, there, back = plan.network.graph, plan.profile, [], []
    hops = list(plan.hops)
    for node, i, j in plan.stages:
        o, s = graph.nodes[node]["overhead"], graph.nodes[node]["speed"]
        there.append(("compute", node, o + n * (profile.fwd_cost[j] - profile.fwd_cost[i]) / s, 0))
        back.append(("compute", node, o + n * (profile.bwd_cost[j] - profile.bwd_cost[i]) / s, 0))
        for cut, u, v in [hop for hop in hops if hop[0] == j]:
            name = (lambda a, b: (a, b)) if plan.network.duplex == "full" else (lambda a, b: tuple(sorted((a, b))))
            out, home = graph.edges[u, v], graph.edges[v, u]
            there.append(("send", name(u, v), n * profile.act_bits[cut] / out["rate"], out["latency"]))
            back.append(("send", name(v, u), n * profile.grad_bits[cut] / home["rate"], home["latency"]))
    return there + back[::-1], len(there)


def second_by_second(plan, order="1f1b", window=None):
    """Return {(micro-batch, position on its way): (start, end)} by looking at every whole second what can start.

    Needs durations of at least one whole second. Slow, and shares nothing with the library's engine.
    """
    count = -(-plan.batch_size // plan.micro_batch)
    window = window or count
    sizes = [plan.micro_batch] * (count - 1) + [plan.batch_size - (count - 1) * plan.micro_batch]
    ways = [walk_of(plan, n)[0] for n in sizes]
    turn = walk_of(plan, 1)[1]  # position of the first backward
    position, arrival, end_of = [0] * count, [0.0] * count, [None] * count
    done, now = {}, 0
    while any(p < len(ways[0]) for p in position):
        for m in range(count):
            if end_of[m] == now:
                arrival[m] = now + ways[m][position[m]][3]
                position[m], end_of[m] = position[m] + 1, None
        for resource in sorted({str(step[1]) for step in ways[0]}):
            waiting = []
            for m in range(count):
                if position[m] == len(ways[0]) or str(ways[m][position[m]][1]) != resource:
                    continue
                if end_of[m] is not None:
                    waiting = None  # busy
                    break
                flushed = order != "flush" or position[m] < turn or all(p >= turn for p in position)
                allowed = position[m] > 0 or m < window or position[m - window] == len(ways[0])
                if arrival[m] <= now and flushed and allowed:
                    backward = position[m] >= turn
                    node = ways[m][position[m]][0] == "compute"
                    waiting.append(((not backward, m) if node else (arrival[m], m), m))
            if waiting:
                m = min(waiting)[1]
                end_of[m] = now + ways[m][position[m]][2]
                done[m, position[m]] = (now, end_of[m])
        now += 1
        assert now < 100_000
    return done
