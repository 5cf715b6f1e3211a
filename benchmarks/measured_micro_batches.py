"""Rounds in micro-batches, predicted and measured: seeded scenarios as real processes on this machine.

The scenarios are those of notebook 07, planned in micro-batches without barriers; other numbers of micro-batches and
seeds may be asked for. A message wakes up processes, so other work on the machine shows at once: run it on a quiet one.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from psl.schedulers import edgesplit, epsl
from training_common import write

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "notebooks"))
from real_processes import experiment

COLUMNS = [
    "scheduler",
    "seed",
    "micro_batches",
    "term",
    "predicted_s",
    "simulated_s",
    "measured_s",
    "error",
    "overrun_s",
    "drift",
]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=12, help="scenarios per scheduler; the first seed is 0")
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=12, help="that count, of each scenario")
    asked = parser.parse_args()
    options = {"micro_batches": asked.micro_batches, "rounds": asked.rounds}
    frames = [experiment(scheduler, range(asked.seeds), **options) for scheduler in (epsl, edgesplit)]
    found = pd.concat(frames, ignore_index=True).assign(micro_batches=asked.micro_batches)
    write(found[COLUMNS], "measured_micro_batches")
    print(found.groupby("scheduler").error.apply(lambda error: error.abs().describe()).unstack().round(3))


if __name__ == "__main__":
    main()
