"""EPSL's joint choice of cut, subchannels and power: `psl` against SCIP and against CP-SAT with power in steps.

SCIP gets the whole problem as a convex mixed-integer nonlinear programme, all cuts at once. A cut j is a binary y_j, a
subchannel's owner a binary x_ik, power q_ik is continuous:

    min U + V + Σ y_j constant_j,   (U − Σ y_j A_ij) R_i ≥ (Σ y_j √D_j)²,
    R_i ≤ Σ_k w_k log2(1 + q_ik g_ik / (n_0 w_k)),   q_ik ≤ P_i x_ik,

with the limits of power, and the downlink likewise. CP-SAT gets power in eight steps per subchannel and the hyperbola
by tangents, in whole numbers. All plans are timed by psl's formula.
"""

import math

import numpy as np
from benchmarks.peers.common import Table, installed, quickest, stretch, timed

import psl
from epsl_scenarios import random_cell, random_profile
from psl.schedulers import epsl
from psl.schedulers.epsl.problem import RoundProblem

LEVELS = 8  # steps of power for CP-SAT
TANGENTS = 24
PAPERS_CELLS = 8


def evaluate(problem: RoundProblem, cut: int, owner: np.ndarray, power: np.ndarray) -> float:
    """Return the round time (s) of a plan; power (W/Hz) is scaled into limits that solvers keep to a tolerance."""
    watts = np.maximum(power, 0.0) * problem.bandwidth
    spent = np.bincount(owner, watts, problem.n_clients)
    over = max(1.0, float((spent / problem.limit).max()), float(spent.sum() / problem.total))
    terms = epsl.latency(
        problem.profile, problem.cell, cut=cut, assignment=owner, power=np.maximum(power, 0.0) / (over * (1 + 1e-12)),
        batch_size=problem.batch_size, phi=problem.phi,
    )  # fmt: skip
    return terms.total


def terms_of(problem: RoundProblem):
    """Return, per candidate cut, what the models need: cuts, A (J, N), D_up (J,), E (J, N), D_down (J,), constant."""
    cuts = np.array(list(problem.cuts))
    return (
        cuts, problem.up_compute[cuts], problem.up_bits[cuts], problem.down_compute[cuts], problem.down_bits[cuts],
        problem.constant[cuts],
    )  # fmt: skip


def unit_of_time(problem: RoundProblem) -> float:
    """Return the round time (s) of equal shares and power at the middle cut: it scales the models."""
    owner = np.arange(problem.n_subchannels) % problem.n_clients
    count = np.bincount(owner, minlength=problem.n_clients)
    density = np.minimum(problem.limit / count, problem.total / problem.n_subchannels)[owner] / problem.bandwidth
    return evaluate(problem, list(problem.cuts)[len(problem.cuts) // 2], owner, density)


def scip(problem: RoundProblem, seconds: float):
    """Return (plan or None, objective, bound, status) of SCIP; times in s."""
    from pyscipopt import Model, log, quicksum

    cuts, a, up, e, down, constant = terms_of(problem)
    unit, n, k = unit_of_time(problem), problem.n_clients, problem.n_subchannels
    clients, channels = range(n), range(k)
    model = Model()
    model.hideOutput()
    model.setParam("limits/time", seconds)
    model.setParam("timing/clocktype", 1)  # CPU seconds
    model.setParam("limits/gap", 1e-7)
    model.setParam("numerics/feastol", 1e-8)
    y = [model.addVar(f"y{j}", "B") for j in range(len(cuts))]
    x = [[model.addVar(f"x{i}_{c}", "B") for c in channels] for i in clients]
    first, second = model.addVar("U", lb=0), model.addVar("V", lb=0)
    model.addCons(quicksum(y) == 1)
    for c in channels:
        model.addCons(quicksum(x[i][c] for i in clients) == 1)
    limit = problem.limit / problem.total
    spent = []
    for i in clients:
        rates, powers = [], []
        for c in channels:
            q = model.addVar(lb=0, ub=float(limit[i]))
            model.addCons(q <= float(limit[i]) * x[i][c])
            strength = float(problem.snr[i, c] * problem.total / problem.bandwidth[c])
            scale = float(unit * problem.bandwidth[c] / math.log(2) / max(up.max(), 1e-300))
            most = scale * math.log1p(strength * limit[i])
            rate = model.addVar(lb=0, ub=most)
            model.addCons(rate <= scale * log(1 + strength * q))
            model.addCons(rate <= most * x[i][c])
            rates.append(rate)
            powers.append(q)
        model.addCons(quicksum(powers) <= float(limit[i]))
        spent.append(powers)
        slack, root = model.addVar(lb=0), model.addVar(lb=0)
        total = model.addVar(lb=0)
        model.addCons(slack == first - quicksum(float(a[j, i] / unit) * y[j] for j in range(len(cuts))))
        model.addCons(root == quicksum(math.sqrt(up[j] / up.max()) * y[j] for j in range(len(cuts))))
        model.addCons(total == quicksum(rates))
        model.addCons(slack * total >= root * root)
        slack, root, total = model.addVar(lb=0), model.addVar(lb=0), model.addVar(lb=0)
        model.addCons(slack == second - quicksum(float(e[j, i] / unit) * y[j] for j in range(len(cuts))))
        if down.max() > 0:
            rate = problem.down_rate[i] * unit / down.max()
            model.addCons(root == quicksum(math.sqrt(down[j] / down.max()) * y[j] for j in range(len(cuts))))
            model.addCons(total == quicksum(float(rate[c]) * x[i][c] for c in channels))
            model.addCons(slack * total >= root * root)
    model.addCons(quicksum(q for powers in spent for q in powers) <= 1)
    model.setObjective(first + second + quicksum(float(constant[j] / unit) * y[j] for j in range(len(cuts))))
    model.optimize()
    bound, status = model.getDualbound() * unit, model.getStatus()
    if not model.getNSols():
        return None, math.inf, bound, status
    best = model.getBestSol()
    owner = np.array([[best[x[i][c]] for c in channels] for i in clients]).argmax(axis=0)
    watts = np.array([[best[spent[i][c]] for c in channels] for i in clients])[owner, np.arange(k)] * problem.total
    cut = int(cuts[np.argmax([best[v] for v in y])])
    return (cut, owner, watts / problem.bandwidth), model.getObjVal() * unit, bound, status


def cp_sat(problem: RoundProblem, seconds: float):
    """Return (plan or None, status) of CP-SAT on whole numbers: rates and times in millionths of their units."""
    from ortools.sat.python import cp_model

    fine = 1_000_000
    cuts, a, up, e, down, constant = terms_of(problem)
    unit, n, k = unit_of_time(problem), problem.n_clients, problem.n_subchannels
    model = cp_model.CpModel()
    steps = np.geomspace(1 / 64, 1, LEVELS)
    y = [model.new_bool_var("") for _ in cuts]
    z = [[[model.new_bool_var("") for _ in steps] for _ in range(k)] for _ in range(n)]
    owns = [[model.new_bool_var("") for _ in range(k)] for _ in range(n)]
    model.add_exactly_one(y)
    for c in range(k):
        model.add_exactly_one(owns[i][c] for i in range(n))
    horizon = 4 * fine
    first, second = model.new_int_var(0, horizon, ""), model.new_int_var(0, horizon, "")
    level = np.array([[step * problem.limit[i] for step in steps] for i in range(n)])  # (N, levels) W
    everything = []
    for i in range(n):
        own = []
        for c in range(k):
            model.add(sum(z[i][c]) == owns[i][c])
            own += [
                (
                    z[i][c][s],
                    level[i, s],
                    problem.bandwidth[c] * math.log2(1 + level[i, s] * problem.snr[i, c] / problem.bandwidth[c]),
                )
                for s in range(LEVELS)
            ]
        everything += own
        model.add(sum(round(p / problem.limit[i] * 1e6) * v for v, p, _ in own) <= 1_000_000)
        _hyperbola(model, first, [(v, r) for v, _, r in own], y, a[:, i] / unit, up / unit, fine)
        if down.max() > 0:
            rates = [(owns[i][c], problem.down_rate[i, c]) for c in range(k)]
            _hyperbola(model, second, rates, y, e[:, i] / unit, down / unit, fine)
        else:
            model.add(second >= sum(round(e[j, i] / unit * fine) * y[j] for j in range(len(cuts))))
    model.add(sum(math.ceil(p / problem.total * 1e6) * v for v, p, _ in everything) <= 1_000_000)
    model.minimize(first + second + sum(round(constant[j] / unit * fine) * y[j] for j in range(len(cuts))))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = seconds * stretch()
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, solver.status_name(status)
    owner = np.array([[solver.value(v) for v in row] for row in owns]).argmax(axis=0)
    power = np.array([
        sum(level[owner[c], s] * solver.value(z[owner[c]][c][s]) for s in range(LEVELS)) / problem.bandwidth[c]
        for c in range(k)
    ])  # fmt: skip
    return (int(cuts[[solver.value(v) for v in y].index(1)]), owner, power), solver.status_name(status)


def _hyperbola(model, deadline, rates, y, computing, bits, fine) -> None:
    """Add (deadline − computing_j) Σ rates ≥ bits_j for the cut that is taken, by tangents from below."""
    reference = max(rate for _, rate in rates)
    total = sum(round(rate / reference * fine) * v for v, rate in rates)
    for j, chosen in enumerate(y):
        load = bits[j] / reference  # in units of time at the reference rate
        start = round(computing[j] * fine)
        model.add(deadline >= start).only_enforce_if(chosen)
        if load <= 0:
            continue
        for ratio in np.geomspace(load / len(rates), 4, TANGENTS):
            slope = load / ratio**2  # rate ≥ load / u is above its tangent at u = ratio: 2 load / ratio − slope u
            weight = min(1.0, 1e6 / max(slope, 1e-12))
            model.add(
                round(weight * 1e3) * total + round(slope * weight * 1e3) * (deadline - start)
                >= math.floor(2 * load / ratio * weight * 1e3 * fine * (1 - 1e-6))
            ).only_enforce_if(chosen)


def compare(table: Table, case: str, instances, scip_seconds: float, cp_seconds: float, **options: int) -> None:
    """Put every method beside `psl`, with options of its solve, on (name, profile, cell, b, φ)."""
    for name, profile, cell, batch, phi in instances:
        problem = RoundProblem(profile, cell, batch, phi)
        how = {"batch_size": batch, "phi": phi} | options
        plan, took = quickest(lambda p=profile, c=cell, how=how: epsl.solve(p, c, **how))
        table.add(case, name, "psl", seconds=took, value=plan.round_time, bound=plan.lower_bound, status="")
        if scip_seconds and installed("SCIP"):
            (found, objective, bound, status), took = timed(lambda p=problem: scip(p, scip_seconds))
            value = evaluate(problem, *found) if found else math.inf
            table.add(case, name, "SCIP", seconds=took, value=value, bound=bound, status=status, objective=objective)
        if cp_seconds and installed("CP-SAT"):
            (found, status), took = timed(lambda p=problem: cp_sat(p, cp_seconds))
            value = evaluate(problem, *found) if found else math.inf
            table.add(case, name, "CP-SAT", seconds=took, value=value, status=status)
    table.write()


def small(count: int):
    """Yield random cells with two or three clients and four to six subchannels; the profile has three cuts."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        profile = random_profile(rng)
        cell = random_cell(rng, int(rng.integers(2, 4)), int(rng.integers(4, 7)))
        yield seed, profile, cell, 16, float(rng.choice([0.0, 0.5, 1.0]))


def papers_size(count: int):
    """Yield the default cell: five clients, twenty subchannels, ResNet-18 at 224 × 224."""
    import torchvision

    profile = psl.profile(torchvision.models.resnet18(), (3, 224, 224))
    for seed in range(count):
        yield seed, profile, psl.WirelessCell.sample(n_clients=5, n_subchannels=20, seed=seed), 64, 0.5


def main(effort: float) -> None:
    """Run; effort 1 takes about nine minutes on an idle core."""
    table = Table("epsl")
    compare(table, "N = 2-3, K = 4-6", small(max(int(100 * effort), 3)), 3.0, 1.0)
    count = max(int(PAPERS_CELLS * effort), 1)
    compare(table, "N = 5, K = 20, 150 restarts", papers_size(count), 30.0 * effort, 15.0 * effort, restarts=150)
