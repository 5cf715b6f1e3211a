"""The question that EPSL asks: simulated seconds to 90 and 95 % accuracy, with the mini-batch free to choose.

    python benchmarks/epsl_seconds_to_target.py   # about six minutes on one core

The CNN on the digits, N = 5, IID, cut after the first pooling, learning rate 0.3 (chosen for each of these methods but
averaging by epsl_accuracy.py at b = 64; averaging took 0.5 there, and does so here). Three cells: without overhead, as
in the papers' formulas; with typical ones, 10 ms per round and 4 ms per message; and these with a server a hundred
times slower. The rounds are trained once, with `psl.seconds_to_target`; those of rows="adaptive" take the time of its
mean number of rows elsewhere. Writes benchmarks/results/epsl_seconds_to_target.csv and the runs beside it (…_runs.csv).
"""

import argparse
import dataclasses
import functools

import numpy as np
import pandas as pd

import psl
from psl.networks.overheads import TYPICAL_MESSAGE_OVERHEAD, TYPICAL_ROUND_OVERHEAD
from psl.schedulers import epsl
from psl.training import TargetTimes
from training_common import RESULTS

N = 5
DRAWN = {"framework": "epsl", "linearise": "sampled"}
METHODS = {
    "PSL": {"framework": "psl"},
    "EPSL, averaged, φ = 0.5": {"framework": "epsl", "phi": 0.5, "lr": 0.5},
    "EPSL, sampled, φ = 1": DRAWN | {"phi": 1.0},
    "EPSL, sampled, adaptive": DRAWN | {"phi": 0.0, "rows": "adaptive"},
    "SFL-GA's idea: cut, φ = 1": {"framework": "epsl", "linearise": "cut", "phi": 1.0},
}
CHEAP = {"round_overhead": 0.0, "message_overhead": 0.0}
TYPICAL = {"round_overhead": TYPICAL_ROUND_OVERHEAD, "message_overhead": TYPICAL_MESSAGE_OVERHEAD}
CELLS = {
    "no overhead": CHEAP,
    "10 ms per round, 4 ms per message": TYPICAL,
    "the same, server 100 times slower": TYPICAL | {"server_speed": 32e9 * N / 100},
}


def elsewhere(found: TargetTimes, plan) -> TargetTimes:
    """Return the same rounds with the times of another cell's plans."""
    seconds = []
    for row in found.runs.itertuples():
        method = METHODS[row.method]
        drawn = method.get("linearise") == "sampled"
        made = plan(batch_size=row.batch_size, phi=row.phi, linearise="sampled" if drawn else "representative")
        if method.get("rows") == "adaptive":
            each = np.full(N, max(round(row.server_rows / row.rounds / N), 1))
            seconds.append(row.rounds * made.round_time_of("epsl", rows=each))
        else:
            time = made.framework_round_time(method["framework"])
            if method.get("linearise") == "cut":  # its server goes back through all rows
                time += made.latency("psl").server_backward - made.latency().server_backward
            seconds.append(row.rounds * time)
    return TargetTimes(found.runs.assign(seconds=seconds))


def main() -> None:
    """Train once, plan in every cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cache", default=None)
    arguments = parser.parse_args()
    profile = psl.profile(psl.models.cnn(), (1, 8, 8))
    cell = psl.WirelessCell.sample(N, seed=1, server_speed=32e9 * N)
    plans = {}
    for name, change in CELLS.items():
        here = functools.partial(epsl.solve, profile, dataclasses.replace(cell, **change), cut="pool1", bound=False)
        plans[name] = functools.cache(here)
    first = next(iter(CELLS))
    found = psl.seconds_to_target(
        psl.models.cnn, "digits", METHODS, plan=plans[first], batch_sizes=arguments.batch_sizes,
        seeds=range(arguments.seeds), rounds=lambda b: 60 + 2400 // b, eval_every=2, lr=0.3, n_jobs=arguments.jobs,
        cache=arguments.cache, progress=False,
    )  # fmt: skip
    tables = []
    for name, plan in plans.items():
        here = elsewhere(found, plan)
        tables.append(here.to_frame().reset_index().assign(cell=name))
        print(name, here.best().to_string(float_format=lambda x: f"{x:.4g}"), sep="\n", flush=True)
    table = pd.concat(tables).set_index(["cell", "target", "method", "batch_size", "phi"])
    table.to_csv(RESULTS / "epsl_seconds_to_target.csv", float_format="%.5g")
    found.runs.to_csv(RESULTS / "epsl_seconds_to_target_runs.csv", index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
