"""Placements that the search does not prove: heavy-tailed models of 50 units on meshes of 50 nodes.

    python benchmarks/pipeline_unproven.py                    # seeds 0 to 15, about three minutes on an idle core
    python benchmarks/pipeline_unproven.py --seeds 4 8 10 15  # those that are hard

Prints, for every seed, the plan's T, its bound, whether it is proven, labels and CPU seconds, and writes
benchmarks/results/pipeline_unproven.csv; seeds that were not run again stay.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # random profiles live with the tests
from pipeline_scenarios import random_profile
from psl.networks import EdgeNetwork
from psl.schedulers.pipeline import PipelineProblem, best_placement, relax
from psl.schedulers.pipeline.label_setting import MAX_LABELS
from solver_common import RESULTS

SIZE, MINI_BATCH, MICRO_BATCH = 50, 512, 8


def main() -> None:
    """Solve every seed and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(16)))
    parser.add_argument("--labels", type=int, default=MAX_LABELS)
    arguments = parser.parse_args()
    rows, path = [], RESULTS / "pipeline_unproven.csv"
    for seed in arguments.seeds:
        profile = random_profile(np.random.default_rng(seed), SIZE)
        network = EdgeNetwork.sample(SIZE - 1, seed, "mesh", rate_range=(50e6, 1e9))
        problem = PipelineProblem(profile, network, MINI_BATCH)
        begin = time.process_time()
        found = best_placement(problem, MICRO_BATCH, max_labels=arguments.labels)
        took = time.process_time() - begin
        rows.append({
            "seed": seed, "relaxed_s": relax(problem, MICRO_BATCH).value, "value_s": found.value,
            "bound_s": found.lower_bound, "gap_percent": 100 * (found.value / found.lower_bound - 1),
            "exact": found.exact, "labels": found.labels, "cpu_s": took,
        })  # fmt: skip
        print(rows[-1], flush=True)
        frame = pd.DataFrame(rows)
        if path.exists():
            known = pd.read_csv(path)
            frame = pd.concat([frame, known[~known.seed.isin(frame.seed)]])
        frame.sort_values("seed").to_csv(path, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
