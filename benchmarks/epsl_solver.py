"""How good and how fast the EPSL scheduler is: optimum, certificate, alternation, CVXPY, growth with the cell.

    python benchmarks/epsl_solver.py            # about five minutes
    python benchmarks/epsl_solver.py --quick    # under one minute, fewer draws

Prints tables and writes benchmarks/results/epsl_solver.csv. ResNet-18 at 224×224 in Sionna's UMi cell, except where
small random cells are solved exhaustively. Server speed and total power grow with the number of clients.
"""

import argparse
import dataclasses
import os
import sys
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # many small calls: threads would only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # the oracles live with the tests
import psl
from epsl_scenarios import random_cell, random_profile
from oracles import cvxpy_deadline, exhaustive
from psl.schedulers import epsl
from psl.schedulers.epsl.bcd import block_coordinate_descent
from psl.schedulers.epsl.power import PowerStep
from psl.schedulers.epsl.problem import RoundProblem
from solver_common import RESULTS, record, write


def spread(part: str, what: str, values, unit: str, scale: float = 1.0) -> None:
    """Record mean, 99th percentile and largest of some values."""
    values = np.asarray(values) * scale
    for name, value in (("mean", values.mean()), ("p99", np.quantile(values, 0.99)), ("max", values.max())):
        record(part, f"{what}, {name}", float(value), unit)


def timed(call):
    """Return (result, seconds)."""
    begin = time.perf_counter()
    return call(), time.perf_counter() - begin


def umi_cell(n_clients: int, n_subchannels: int, seed: int) -> psl.WirelessCell:
    """Return a UMi cell whose server and total power are scaled with the clients."""
    cell = psl.WirelessCell.sample(n_clients, n_subchannels, seed=seed)
    scale = n_clients / 5
    return dataclasses.replace(cell, server_speed=cell.server_speed * scale, total_power=cell.total_power * scale)


def cvxpy_power(problem: RoundProblem, cut: int, assignment: np.ndarray) -> np.ndarray:
    """Return the power block's answer from CVXPY, scaled back into the limits it meets only to its tolerance."""
    _, power = cvxpy_deadline(
        problem.up_compute[cut],
        problem.up_bits[cut],
        problem.snr,
        problem.bandwidth,
        problem.limit,
        problem.total,
        assignment,
    )
    power = np.maximum(power, 0.0)
    spent = np.bincount(assignment, power * problem.bandwidth, problem.n_clients)
    return power / max(1.0, float((spent / problem.limit).max()), spent.sum() / problem.total)


def against_exhaustive(cells: int) -> None:
    """Small random cells: search, alternation and bound against the optimum."""
    print(f"Against exhaustive search: {cells} random cells, N = 2-3, K = 4-6")
    excess, trapped, below = [], [], []
    for seed in range(cells):
        rng = np.random.default_rng(seed)
        profile = random_profile(rng)
        cell = random_cell(rng, int(rng.integers(2, 4)), int(rng.integers(4, 7)))
        phi = float(rng.choice([0.0, 0.5, 1.0]))
        optimum, _, _ = exhaustive(profile, cell, 16, phi)
        plan = epsl.solve(profile, cell, batch_size=16, phi=phi)
        bcd = epsl.solve(profile, cell, batch_size=16, phi=phi, method="bcd", bound=False)
        excess.append(plan.round_time / optimum - 1)
        trapped.append(bcd.round_time / optimum - 1)
        below.append(1 - plan.lower_bound / optimum)
    spread("exhaustive", "search above optimum", excess, "%", 100)
    spread("exhaustive", "bcd above optimum", trapped, "%", 100)
    spread("exhaustive", "bound below optimum", below, "%", 100)
    record("exhaustive", "least distance of the bound below the optimum", float(min(below)) * 100, "%")


def certificates(profile: psl.Profile, cells: int) -> None:
    """N = 5, K = 20: certified gap, and the time of each method, interleaved."""
    print(f"N = 5, K = 20, UMi, ResNet-18: {cells} cells")
    gaps, excess, seconds = [], [], {name: [] for name in ("search with bound", "search", "bcd", "bcd with CVXPY")}
    for seed in range(cells):
        cell = umi_cell(5, 20, seed)
        problem = RoundProblem(profile, cell, 64, 0.5)
        plan, took = timed(lambda cell=cell: epsl.solve(profile, cell))
        seconds["search with bound"].append(took)
        seconds["search"].append(timed(lambda cell=cell: epsl.solve(profile, cell, bound=False))[1])
        bcd, took = timed(lambda cell=cell: epsl.solve(profile, cell, method="bcd", bound=False))
        seconds["bcd"].append(took)
        run = lambda problem=problem: block_coordinate_descent(problem, power_step=cvxpy_power)  # noqa: E731
        seconds["bcd with CVXPY"].append(timed(run)[1])
        gaps.append(plan.gap)
        excess.append(bcd.round_time / plan.round_time - 1)
    spread("N = 5, K = 20", "certified gap of search", gaps, "%", 100)
    spread("N = 5, K = 20", "bcd above search", excess, "%", 100)
    for name, values in seconds.items():
        record("N = 5, K = 20", f"time of {name}, median", float(np.median(values)) * 1e3, "ms")


def power_step(profile: psl.Profile, draws: int) -> None:
    """The power block alone: Newton on the deadline against CVXPY."""
    print(f"Power step, N = 5, K = 20: {draws} draws")
    ours, theirs, error = [], [], []
    for seed in range(draws):
        problem = RoundProblem(profile, umi_cell(5, 20, seed % 10), 64, 0.5)
        rng = np.random.default_rng(seed)
        assignment = rng.permutation(np.arange(20) % 5)
        cut = int(rng.choice(problem.candidates))
        arguments = problem.up_compute[cut], problem.up_bits[cut], problem.snr, problem.bandwidth
        step, took = timed(partial(PowerStep, problem, cut, assignment))
        ours.append(took)
        (oracle, _), took = timed(partial(cvxpy_deadline, *arguments, problem.limit, problem.total, assignment))
        theirs.append(took)
        error.append(abs(step.deadline / oracle - 1))
    record("power step", "Newton, median", float(np.median(ours)) * 1e3, "ms")
    record("power step", "CVXPY, median", float(np.median(theirs)) * 1e3, "ms")
    record("power step", "CVXPY / Newton", float(np.median(theirs) / np.median(ours)), "times")
    record("power step", "largest relative difference", float(max(error)), "")


def growth(profile: psl.Profile, sizes, cells: int) -> None:
    """Time and certified gap against the number of clients, four subchannels each."""
    print(f"Growth with N, K = 4 N: {cells} cells each")
    for n_clients in sizes:
        gaps, seconds = [], []
        for seed in range(cells):
            cell = umi_cell(n_clients, 4 * n_clients, seed)
            plan, took = timed(lambda cell=cell: epsl.solve(profile, cell))
            gaps.append(plan.gap)
            seconds.append(took)
        record("growth", f"N = {n_clients}, K = {4 * n_clients}: certified gap, mean", float(np.mean(gaps)) * 100, "%")
        record(
            "growth", f"N = {n_clients}, K = {4 * n_clients}: search with bound, median", float(np.median(seconds)), "s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer draws")
    parser.add_argument("--output", type=Path, default=RESULTS / "epsl_solver.csv")
    args = parser.parse_args()
    quick = args.quick
    profile = psl.profile(torchvision.models.resnet18(), (3, 224, 224))
    against_exhaustive(40 if quick else 400)
    certificates(profile, 4 if quick else 30)
    power_step(profile, 20 if quick else 100)
    growth(profile, (2, 5, 10, 20) if quick else (2, 5, 10, 20, 50), 2 if quick else 3)
    write(args.output)


if __name__ == "__main__":
    main()
