"""What the server's step costs when rows are drawn: both forward passes and the backward pass, against PSL's.

ResNet-18 at 32 × 32, N = 5, b = 64, an early cut; PSL, EPSL averaged at φ = 1, and drawn at φ = 0.5 and 1, interleaved,
medians of CPU seconds of one thread (other work on the machine hardly changes them). Wanted: the backward pass takes
d / (N b) of PSL's; the second forward pass, of d rows, comes on top. Writes benchmarks/results/training_drawn_rows.csv.
"""

import argparse
import time

import pandas as pd
import torch
from torch import nn

from psl.gradient_aggregation import aggregated_rows, sampled_rows
from psl.training.frameworks.drawn_rows import sampled_backward
from psl.training.frameworks.epsl import aggregated_backward
from training_common import server_inputs, write
from training_server_backward import BackwardClock


class Clocked(nn.Module):
    """The server, with the CPU seconds and rows of its forward passes: without an autograd graph, and with one."""

    def __init__(self, server):
        super().__init__()
        self.server = server
        self.spent, self.rows = {False: 0.0, True: 0.0}, {False: 0, True: 0}

    def forward(self, x):
        """Return what the server does."""
        start, graph = time.process_time(), torch.is_grad_enabled()
        found = self.server(x)
        self.spent[graph] += time.process_time() - start
        self.rows[graph] += len(x)
        return found


def main():
    """Measure the four kinds of step in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--cut", default="maxpool")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    n, b = arguments.clients, arguments.batch_size
    training, smashed, labels, weights, rng = server_inputs(n, b, arguments.cut)

    def averaged(server, phi):
        aggregated_backward(server, smashed, labels, weights, n_agg=aggregated_rows(phi, b), rng=rng)

    def drawn(server, phi):
        sampled_backward(server, smashed, labels, weights, rows=sampled_rows(phi, b, n), rng=rng)

    kinds = {("PSL", 0.0): averaged, ("averaged", 1.0): averaged, ("drawn", 0.5): drawn, ("drawn", 1.0): drawn}
    found = []
    for repeat in range(arguments.repeats + 1):
        for (name, phi), step in kinds.items():
            training.server.zero_grad(set_to_none=True)
            server, start = Clocked(training.server), time.process_time()
            with BackwardClock(time.process_time) as clock:
                step(server, phi)
            if repeat:  # the first is a warm-up
                found.append({
                    "rule": name, "phi": phi, "rows_forward": server.rows[False] + server.rows[True],
                    "rows_backward": server.rows[True], "forward_s": server.spent[False] + server.spent[True],
                    "backward_s": clock.seconds, "server_step_s": time.process_time() - start,
                })  # fmt: skip
    table = pd.DataFrame(found).groupby(["rule", "phi"], sort=False).median().reset_index()
    for name in ("rows_backward", "backward_s", "server_step_s"):
        table[f"{name.removesuffix('_s')}_over_psl"] = table[name] / table[name][0]
    table.insert(0, "clients", n)
    table.insert(1, "batch_size", b)
    write(table, "training_drawn_rows")


if __name__ == "__main__":
    main()
