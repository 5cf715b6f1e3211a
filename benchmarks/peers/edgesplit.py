"""EdgeSplit's cuts and bandwidths: `psl` against SCIP, against CVXPY for every vector of cuts, and HiGHS in blocks.

SCIP gets every device's cut as binaries x_ij and its bandwidth w_i: min T, (T − Σ c_ij x_ij) w_i e_i ≥ (Σ √D_j x_ij)².
CVXPY (Clarabel) shares the band for one vector of cuts; all vectors are tried, which only tiny clusters allow. HiGHS
gets binaries x_in, "device i has n resource blocks" with its best cut for them: min T, T ≥ Σ_n t_in x_in, Σ n x_in ≤ B.
"""

import itertools
import math

import numpy as np
from benchmarks.peers.common import Table, installed, quickest, timed
from benchmarks.peers.programme import Programme

from edgesplit_oracles import bits, compute_seconds, cuts_that_fit, cvxpy_bandwidth
from edgesplit_scenarios import BATCH, STEPS, random_case
from psl.schedulers import edgesplit


def tables_of(profile, cluster):
    """Return, per device, its cuts, their computing seconds, and their bits over the device's bit/s/Hz."""
    found = []
    for i in range(cluster.n_devices):
        cuts = cuts_that_fit(profile, cluster, i, BATCH)
        computing = np.array([compute_seconds(profile, cluster, i, j, BATCH, STEPS) for j in cuts])
        load = np.array([bits(profile, j, BATCH, STEPS) / cluster.spectral_efficiency[i] for j in cuts])
        found.append((cuts, computing, load))
    return found


def evaluate(profile, cluster, cuts, bandwidth) -> float:
    """Return the round time (s) by psl's formula; the bandwidth is scaled into the band."""
    bandwidth = np.maximum(bandwidth, 1e-12 * cluster.bandwidth)
    bandwidth = bandwidth * min(1.0, cluster.bandwidth * (1 - 1e-12) / bandwidth.sum())
    return edgesplit.latency(
        profile, cluster, cuts=cuts, bandwidth=bandwidth, batch_size=BATCH, local_steps=STEPS
    ).total


def scip(profile, cluster, seconds):
    """Return (cuts, bandwidth, bound, status) of SCIP; cuts is None without a solution."""
    from pyscipopt import Model, quicksum

    tables, n = tables_of(profile, cluster), cluster.n_devices
    unit = max(float((c + q * n / cluster.bandwidth).min()) for _, c, q in tables)  # each device's best, even shares
    model = Model()
    model.hideOutput()
    for name, value in (
        ("limits/time", seconds), ("timing/clocktype", 1), ("limits/gap", 1e-7), ("numerics/feastol", 1e-8)
    ):  # fmt: skip
        model.setParam(name, value)
    latest = model.addVar(lb=0, ub=1)
    share, chosen = [], []
    for _, computing, load in tables:
        x = [model.addVar(vtype="B") for _ in computing]
        w, slack, root = model.addVar(lb=0, ub=1), model.addVar(lb=0), model.addVar(lb=0)
        model.addCons(quicksum(x) == 1)
        model.addCons(slack == latest - quicksum(float(c / unit) * v for c, v in zip(computing, x, strict=True)))
        # w is scaled per device, so that its coefficient is of order one.
        need = float(load.max() / (unit * cluster.bandwidth))
        model.addCons(root == quicksum(math.sqrt(q / load.max()) * v for q, v in zip(load, x, strict=True)))
        model.addCons(slack * w >= need * root * root)
        share.append(w)
        chosen.append(x)
    model.addCons(quicksum(share) <= 1)
    model.setObjective(latest)
    model.optimize()
    bound, status = model.getDualbound() * unit, model.getStatus()
    if not model.getNSols():
        return None, None, bound, status
    best = model.getBestSol()
    cuts = [tables[i][0][int(np.argmax([best[v] for v in x]))] for i, x in enumerate(chosen)]
    return cuts, np.array([best[w] for w in share]) * cluster.bandwidth, bound, status


def enumeration(profile, cluster) -> float:
    """Return the least round time (s) over every vector of cuts, each by CVXPY."""
    tables = tables_of(profile, cluster)
    return min(
        cvxpy_bandwidth(
            np.array([c[k] for k, (_, c, _) in zip(which, tables, strict=True)]),
            np.array([q[k] for k, (_, _, q) in zip(which, tables, strict=True)]),
            cluster.bandwidth,
        )
        for which in itertools.product(*(range(len(cuts)) for cuts, _, _ in tables))
    )


def highs(profile, cluster, seconds):
    """Return (cuts, counts, bound, status) of HiGHS in whole blocks; cuts is None without a solution."""
    tables, width = tables_of(profile, cluster), cluster.resource_block
    n_blocks, n = cluster.n_blocks, cluster.n_devices
    counts = np.arange(1, n_blocks - n + 2)
    times = [c[:, None] + q[:, None] / (counts * width) for _, c, q in tables]  # (cuts, counts)
    best = [t.argmin(axis=0) for t in times]
    least = [t.min(axis=0) for t in times]
    even = max(n_blocks // n, 1)
    unit = max(t[even - 1] for t in least)
    programme = Programme()
    latest = programme.column(1.0, continuous=True)
    columns = []
    for t in least:
        useful = [k for k in range(len(counts)) if t[k] <= unit * (1 + 1e-9) and (k == 0 or t[k] < t[k - 1])]
        columns.append({k: programme.column(0.0) for k in useful})
        programme.row(dict.fromkeys(columns[-1].values(), 1.0), 1.0, 1.0)
        programme.row({latest: -1.0} | {x: t[k] / unit for k, x in columns[-1].items()}, -math.inf, 0.0)
    programme.row({x: float(counts[k]) for mine in columns for k, x in mine.items()}, 0.0, n_blocks)
    found, bound, status = programme.highs(seconds)
    if found is None:
        return None, None, bound * unit, status
    taken = [max(mine, key=lambda k, mine=mine: found[mine[k]]) for mine in columns]
    cuts = [tables[i][0][best[i][k]] for i, k in enumerate(taken)]
    return cuts, counts[taken], bound * unit, status


def compare(table: Table, case: str, instances, seconds: float, peers) -> None:
    """Put the peers beside `psl` on (seed, (profile, cluster))."""
    options = {"batch_size": BATCH, "local_steps": STEPS}
    for seed, (profile, cluster) in instances:
        plan, took = quickest(lambda p=profile, c=cluster: edgesplit.solve(p, c, **options), 5)
        table.add(case, seed, "psl", seconds=took, value=plan.round_time, bound=plan.lower_bound, status="")
        if "SCIP" in peers and installed("SCIP"):
            (cuts, bandwidth, bound, status), took = timed(lambda p=profile, c=cluster: scip(p, c, seconds))
            value = math.inf if cuts is None else evaluate(profile, cluster, cuts, bandwidth)
            table.add(case, seed, "SCIP", seconds=took, value=value, bound=bound, status=status)
        if "CVXPY" in peers and installed("CVXPY"):
            value, took = timed(lambda p=profile, c=cluster: enumeration(p, c))
            table.add(case, seed, "CVXPY, every vector of cuts", seconds=took, value=value, status="optimal")
        if "HiGHS" in peers and installed("HiGHS"):
            (cuts, counts, bound, status), took = timed(lambda p=profile, c=cluster: highs(p, c, seconds))
            value = math.inf
            if cuts is not None:
                value = edgesplit.latency(
                    profile, cluster, cuts=cuts, bandwidth=counts * cluster.resource_block, **options
                ).total
            table.add(case, seed, "HiGHS", seconds=took, value=value, bound=bound, status=status)
    table.write()


def main(effort: float) -> None:
    """Run; effort 1 takes about four minutes on an idle core."""
    table, count = Table("edgesplit"), max(int(100 * effort), 3)
    tiny = [(seed, random_case(seed, (2, 3), (2, 3))) for seed in range(count)]
    compare(table, "N = 2-3, L = 2-3", tiny, 5.0, ("SCIP", "CVXPY"))
    large = [(seed, random_case(seed, (18, 18), (20, 20))) for seed in range(count)]
    compare(table, "N = 20, L = 18", large, 20.0, ("SCIP",))
    blocks = [(seed, random_case(seed, (18, 18), (20, 20), (5, 5))) for seed in range(count)]
    compare(table, "N = 20, L = 18, 100 blocks", blocks, 5.0, ("HiGHS",))
