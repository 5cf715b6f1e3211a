"""Time per step of PSL against centralised training of the same total batch, in one process.

ResNet-18 at 32 × 32, interleaved, medians. PSL's step includes every client's optimizer step.
Wanted: at most 1.10 times centralised at C = 5, b = 64, at most 1.25 times at C = 50, b = 16.
"""

import argparse

import numpy as np
import pandas as pd
import torch

from training_common import batches, build, interleaved, write

CASES = ((5, 64, 1.10), (50, 16, 1.25))  # clients, mini-batch, wanted ratio


def main():
    """Measure both cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--cut", default="layer1")
    arguments = parser.parse_args()
    rows = []
    for n_clients, batch_size, wanted in CASES:
        works = {}
        for name in ("centralised", "psl"):
            training, draw = build(name, n_clients, batch_size, arguments.cut), batches(name, n_clients, batch_size)
            works[name] = lambda training=training, draw=draw: training.round(draw, None)
        times = interleaved(works, arguments.repeats)
        central, psl = np.median(times["centralised"]), np.median(times["psl"])
        rows.append({
            "clients": n_clients, "batch_size": batch_size, "cut": arguments.cut, "threads": torch.get_num_threads(),
            "repeats": arguments.repeats, "centralised_s": central, "psl_s": psl, "ratio_of_medians": psl / central,
            "median_of_ratios": np.median(times["psl"] / times["centralised"]), "wanted_at_most": wanted,
        })  # fmt: skip
        print(rows[-1], flush=True)
    write(pd.DataFrame(rows), "training_throughput")


if __name__ == "__main__":
    main()
