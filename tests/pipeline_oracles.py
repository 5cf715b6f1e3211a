"""Independent answers for pipelined split learning: every walk by brute force, and a mixed-integer programme by HiGHS.

Written from the equations alone; no code shared with `psl.schedulers`. Seconds, bits, bytes.
"""

import math
from dataclasses import dataclass

import networkx as nx
import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array


def unit_seconds(profile, node, i, j):
    """Return forward and backward seconds per sample of units i+1..j on a node, or None if it only relays."""
    if (own := node.get("profile")) is not None:
        return own.fwd_cost[j] - own.fwd_cost[i], own.bwd_cost[j] - own.bwd_cost[i]
    if (speed := node.get("speed") or 0.0) <= 0:
        return None
    return (profile.fwd_cost[j] - profile.fwd_cost[i]) / speed, (profile.bwd_cost[j] - profile.bwd_cost[i]) / speed


def stage_cost(profile, node, i, j, batch_size, b):
    """Return F + K of stage (i, j], or None if the node cannot compute it or does not hold it."""
    spent = unit_seconds(profile, node, i, j)
    if profile.param_memory is None:
        needed = 3 * (profile.param_bits[j] - profile.param_bits[i]) / 8
    else:
        needed = profile.param_memory[j] - profile.param_memory[i]
    needed += batch_size * (profile.act_memory[j] - profile.act_memory[i])
    # Differences of cumulative sums: the last bits of a memory that fits exactly must not decide.
    if spent is None or needed > node.get("memory", math.inf) * (1 + 1e-12):
        return None
    return 2 * node.get("overhead", 0.0) + b * spent[0] + b * spent[1]


def hop_cost(profile, graph, cut, u, v, b):
    """Return (linear cost, seconds on u→v, seconds on v→u) of one micro-batch at a cut."""
    there, back = graph.edges[u, v], graph.edges[v, u]
    forward, backward = b * profile.act_bits[cut] / there["rate"], b * profile.grad_bits[cut] / back["rate"]
    return forward + backward + there.get("latency", 0.0) + back.get("latency", 0.0), forward, backward


def together(loads, duplex):
    """Return the occupancy of one link from its two directions' loads."""
    return max(loads) if duplex == "full" else sum(loads)


def evaluate(profile, network, stages, hops, batch_size, b, links="once", check=True):
    """Return (T_f, T_i, T) of a plan by the formula, after asserting that it is a plan at all."""
    graph, n_micro = network.graph, -(-batch_size // b)
    if check:
        assert_valid(profile, network, stages, hops, batch_size, links)
    fill = interval = 0.0
    for node, i, j in stages:
        cost = stage_cost(profile, graph.nodes[node], i, j, batch_size, b)
        assert cost is not None, f"stage ({i}, {j}] does not fit on {node}"
        fill, interval = fill + cost, max(interval, cost)
    loads = {}
    for k, (cut, u, v) in enumerate(hops):
        linear, forward, backward = hop_cost(profile, graph, cut, u, v, b)
        fill += linear
        link = frozenset((u, v)) if links == "shared" else k
        load = loads.setdefault(link, {(u, v): 0.0, (v, u): 0.0})
        load[u, v] += forward
        load[v, u] += backward
    interval = max([interval, *(together(load.values(), network.duplex) for load in loads.values())])
    return fill, interval, fill + (n_micro - 1) * interval


def assert_valid(profile, network, stages, hops, batch_size, links):
    """Assert: stages cover 1..L from the source on distinct nodes, hops lead from each to the next, links as asked."""
    assert stages[0][0] == network.source and stages[0][1] == 0 and stages[-1][2] == len(profile.names) - 1
    assert len({node for node, _, _ in stages}) == len(stages), f"a node hosts two stages: {stages}"
    rest = list(hops)
    for (node, i, j), (following, i_next, _) in zip(stages, [*stages[1:], (None, None, None)], strict=True):
        assert i < j, stages
        if following is None:
            break
        assert i_next == j
        at = node
        while at != following:
            assert rest, "the hops end before the last stage"
            cut, u, v = rest.pop(0)
            assert (cut, u) == (j, at) and network.graph.has_edge(u, v), (stages, hops)
            at = v
    assert not rest, f"hops that lead nowhere: {rest}"
    if links == "once":
        used = [frozenset((u, v)) for _, u, v in hops]
        assert len(set(used)) == len(used), f"a link serves two hops: {hops}"


def brute_force(profile, network, batch_size, micro_batch, links="once", objective="time"):
    """Return (objective value, stages, hops) of the best plan by walking all of them; value inf if there is none.

    Stages stand on distinct nodes; between two of them the activations take any simple path. A walk is given up only
    when what it has collected already costs as much as the best: costs never fall along a walk.
    """
    graph, b = network.graph, micro_batch
    more = -(-batch_size // micro_batch) - 1
    n_units = len(profile.names) - 1
    near = {u: list(graph.successors(u)) for u in graph}
    stage = {
        (n, i, j): cost
        for n in graph
        for i in range(n_units)
        for j in range(i + 1, n_units + 1)
        if (cost := stage_cost(profile, graph.nodes[n], i, j, batch_size, b)) is not None
    }
    hop = {(c, u, v): hop_cost(profile, graph, c, u, v, b) for c in range(1, n_units) for u, v in graph.edges}
    best = [math.inf, None, None]

    def value(linear, occupancy):
        return linear + more * occupancy if objective == "time" else occupancy

    def occupancy_of(loads):
        return max((together(load, network.duplex) for load in loads.values()), default=0.0)

    def compute(i, node, linear, busiest, loads, stages, hops):
        for j in range(n_units, i, -1):
            cost = stage.get((node, i, j))
            if cost is None:
                continue
            reached, busy = linear + cost, max(busiest, cost)
            total = value(reached, max(busy, occupancy_of(loads)))
            if total >= best[0]:
                continue
            if j == n_units:
                best[:] = total, [*stages, (node, i, j)], hops
            else:
                relay(j, node, {node}, reached, busy, loads, [*stages, (node, i, j)], hops)

    def relay(cut, at, seen, linear, busiest, loads, stages, hops):
        for to in near[at]:
            link = frozenset((at, to))
            if to in seen or (links == "once" and link in loads):
                continue
            cost, forward, backward = hop[cut, at, to]
            key = (len(hops),) if links == "separate" else link
            old = loads.get(key, (0.0, 0.0))
            pair = (forward, backward) if str(at) < str(to) else (backward, forward)
            after = loads | {key: (old[0] + pair[0], old[1] + pair[1])}
            if value(linear + cost, max(busiest, occupancy_of(after))) >= best[0]:
                continue
            walked = [*hops, (cut, at, to)]
            if all(to != host for host, _, _ in stages):
                compute(cut, to, linear + cost, busiest, after, stages, walked)
            relay(cut, to, seen | {to}, linear + cost, busiest, after, stages, walked)

    compute(0, network.source, 0.0, 0.0, {}, [], [])
    return tuple(best)


@dataclass
class _Programme:
    """Columns (stages, hops, the interval) and rows of the mixed-integer programme, filled one by one."""

    rows: list
    low: list
    high: list

    def add(self, terms, low, high):
        self.rows.append(terms)
        self.low.append(low)
        self.high.append(high)

    def solve(self, cost, integral, seconds):
        entries = [(r, c, value) for r, terms in enumerate(self.rows) for c, value in terms.items()]
        r, c, value = zip(*entries, strict=True)
        matrix = coo_array((value, (r, c)), shape=(len(self.rows), len(cost))).tocsr()
        upper = np.where(integral, 1.0, np.inf)
        options = {"mip_rel_gap": 0.0, "time_limit": seconds}
        constraints = LinearConstraint(matrix, self.low, self.high)
        return milp(cost, integrality=integral, bounds=Bounds(0, upper), constraints=constraints, options=options)


def mixed_integer(profile, network, batch_size, micro_batch, links="once", objective="time", seconds=120):
    """Return (objective value, stages, hops) from HiGHS, the value evaluated by the formula; (inf, None, None) if none.

    Flow over (cut, node): a stage (i, j] on n carries one unit from (i, n) to (j, n), a hop from (c, u) to (c, v);
    every node at most one stage, with links="once" every link at most one hop. Two passes: the first minimises the fill
    time, which bounds the optimum, so that columns that cost more can go and the rest is scaled by the bound.
    """
    fewest = _mixed_integer(profile, network, batch_size, micro_batch, links, 0.0, 1.0, math.inf, seconds)
    if fewest is None:
        return math.inf, None, None
    which = 2 if objective == "time" else 1
    bound = evaluate(profile, network, *fewest, batch_size, micro_batch, links)[which] * (1 + 1e-9)
    weights = (1.0, -(-batch_size // micro_batch) - 1.0) if objective == "time" else (0.0, 1.0)
    found = _mixed_integer(profile, network, batch_size, micro_batch, links, weights[1], weights[0], bound, seconds)
    values = [evaluate(profile, network, *plan, batch_size, micro_batch, links)[which] for plan in (fewest, found)]
    best = int(values[1] < values[0])
    return values[best], *(fewest, found)[best]


def _mixed_integer(profile, network, batch_size, b, links, on_interval, on_fill, bound, seconds):
    graph, n_units = network.graph, len(profile.names) - 1
    columns, linear, busy = [], [], []
    for n in graph:
        for i in range(n_units) if n == network.source else range(1, n_units):
            for j in range(i + 1, n_units + 1):
                if (cost := stage_cost(profile, graph.nodes[n], i, j, batch_size, b)) is not None:
                    columns.append(("stage", n, i, j))
                    linear.append(cost)
                    busy.append((cost,))
    for cut in range(1, n_units):
        for u, v in graph.edges:
            cost, forward, backward = hop_cost(profile, graph, cut, u, v, b)
            columns.append(("hop", cut, u, v))
            linear.append(cost)
            busy.append((forward, backward))
    worth = [k for k in range(len(columns)) if on_fill * linear[k] + on_interval * max(busy[k]) <= bound]
    columns, linear, busy = [columns[k] for k in worth], [linear[k] for k in worth], [busy[k] for k in worth]
    if not columns:
        return None
    scale = bound if math.isfinite(bound) and bound > 0 else float(np.median(linear)) or 1.0
    theta = len(columns)  # the interval in units of `scale` over its weight, so that it is of order one as well
    theta_scale = scale / max(on_interval, 1.0)
    flow, hosts, used, load = {}, {}, {}, {}
    for k, (kind, *what) in enumerate(columns):
        if kind == "stage":
            n, i, j = what
            flow.setdefault((i, n), {})[k] = -1.0
            flow.setdefault((j, n), {})[k] = 1.0
            hosts.setdefault(n, {})[k] = 1.0
            load.setdefault(("node", n), {})[k] = busy[k][0]
            continue
        cut, u, v = what
        flow.setdefault((cut, u), {})[k] = -1.0
        flow.setdefault((cut, v), {})[k] = 1.0
        used.setdefault(frozenset((u, v)), {})[k] = 1.0
        of = ("hop", k) if links == "separate" else ("link", *sorted((u, v), key=str))
        forward, backward = busy[k]
        if network.duplex == "half":
            load.setdefault(of, {})[k] = forward + backward
        elif links == "separate" or links == "once":  # one hop on the link: the busier direction counts
            load.setdefault(of, {})[k] = max(forward, backward)
        else:
            load.setdefault((*of, (u, v)), {})[k] = forward
            load.setdefault((*of, (v, u)), {})[k] = backward
    programme = _Programme([], [], [])
    end = {}
    for (cut, n), terms in flow.items():
        if cut == n_units:
            end |= terms
        else:
            start = -1.0 if (cut, n) == (0, network.source) else 0.0
            programme.add(terms, start, start)
    programme.add(end or {theta: 0.0}, 1.0, 1.0)
    for terms in hosts.values():
        programme.add(terms, 0.0, 1.0)
    if links == "once":
        for terms in used.values():
            programme.add(terms, 0.0, 1.0)
    if on_interval:
        for terms in load.values():
            row = {k: value / theta_scale for k, value in terms.items()}
            programme.add(row | {theta: -1.0}, -np.inf, 0.0)
    cost = np.array([on_fill * value / scale for value in linear] + [on_interval * theta_scale / scale])
    result = programme.solve(cost, np.array([1] * len(columns) + [0]), seconds)
    if result.status == 2:
        return None
    assert result.status == 0, result.message
    return _walk([columns[k] for k in np.flatnonzero(result.x[:-1] > 0.5)], network.source, n_units)


def _walk(chosen, source, n_units):
    """Return (stages, hops) in path order; cycles of hops that cost nothing are left aside."""
    stage = {(i, n): j for kind, *what in chosen if kind == "stage" for n, i, j in [what]}
    hops = nx.DiGraph(((cut, u), (cut, v)) for kind, *what in chosen if kind == "hop" for cut, u, v in [what])
    stages, walked, at, cut = [], [], source, 0
    while True:
        j = stage.pop((cut, at))
        stages.append((at, cut, j))
        if j == n_units:
            return stages, walked
        (end,) = (n for (i, n) in stage if i == j)
        path = nx.shortest_path(hops, (j, at), (j, end))
        walked += [(j, u, v) for (_, u), (_, v) in zip(path, path[1:], strict=False)]
        at, cut = end, j
