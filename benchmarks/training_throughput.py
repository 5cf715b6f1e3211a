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
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for n_clients, batch_size, wanted in CASES:
        works = {}
        for name in ("centralised", "psl"):
            training, draw = build(name, n_clients, batch_size, arguments.cut), batches(name, n_clients, batch_size)
            works[name] = lambda training=training, draw=draw: training.round(draw, None)
        times = interleaved(works, arguments.repeats)
        central, psl = (np.median(times[name], axis=0) for name in ("centralised", "psl"))  # wall, CPU
        rows.append({
            "clients": n_clients, "batch_size": batch_size, "cut": arguments.cut, "threads": arguments.threads,
            "repeats": arguments.repeats, "centralised_s": central[0], "psl_s": psl[0], "ratio": psl[0] / central[0],
            "cpu_ratio": psl[1] / central[1], "wanted_at_most": wanted,
        })  # fmt: skip
    write(pd.DataFrame(rows), "training_throughput")


if __name__ == "__main__":
    main()
