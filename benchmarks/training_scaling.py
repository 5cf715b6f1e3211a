"""Peak memory and time per step of PSL against the number of clients, each in a fresh process.

ResNet-18 at 32 × 32, b = 4, cut after layer1, beside centralised training of the same total batch.
Peak memory is the process's largest resident set, libraries included.
"""

import argparse
import json
import resource
import subprocess
import sys

import numpy as np
import pandas as pd
import torch

from training_common import batches, build, seconds, write


def measure(name, n_clients, batch_size, repeats):
    """Return the median seconds per step, and the memory before and at the peak, of this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    training, draw = build(name, n_clients, batch_size), batches(name, n_clients, batch_size)
    times = [seconds(lambda: training.round(draw, None)) for _ in range(repeats + 1)][1:]  # (repeats, 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = np.median(times, axis=0).tolist()
    return {"step_s": wall, "step_cpu_s": cpu, "libraries_MB": before / 1024, "peak_MB": peak / 1024}


def main():
    """Start one process per framework and number of clients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[5, 10, 20, 50, 100, 200])
    parser.add_argument("--frameworks", nargs="+", default=["psl", "centralised"])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", action="store_true", help="measure here and print JSON (used for the processes)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        name, n_clients = arguments.frameworks[0], arguments.clients[0]
        print(json.dumps(measure(name, n_clients, arguments.batch_size, arguments.repeats)))
        return
    rows = []
    for n_clients in arguments.clients:
        for name in arguments.frameworks:
            command = [sys.executable, __file__, "--one", "--frameworks", name, "--clients", str(n_clients)]
            command += ["--batch-size", str(arguments.batch_size), "--repeats", str(arguments.repeats)]
            command += ["--threads", str(arguments.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row = {
                "framework": name,
                "clients": n_clients,
                "batch_size": arguments.batch_size,
                "threads": arguments.threads,
            }
            rows.append(row | json.loads(done.stdout))
            print(rows[-1], flush=True)
    write(pd.DataFrame(rows), "training_scaling")


if __name__ == "__main__":
    main()
