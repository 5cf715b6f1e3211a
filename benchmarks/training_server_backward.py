"""Time of EPSL's server backward pass against PSL's and against what the operator counts promise.

ResNet-18 at 32 × 32, C = 5, b = 64, an early cut, `linearise="representative"`, interleaved, medians.
Only time inside torch's backward calls of the real server step counts as backward. The promise is
[n (ϖ_L - ϖ_j - ϖ_last) + C b ϖ_last] / [C b (ϖ_L - ϖ_j)] with n = n_A + C (b - n_A).
Wanted: at φ = 1 the time falls by at least 0.8 of the promised fall.
"""

import argparse
import time

import numpy as np
import pandas as pd
import torch
from torchvision.models import resnet18

from psl.gradient_aggregation import aggregated_rows, server_rows
from psl.models import profile
from psl.training.frameworks.epsl import aggregated_backward
from training_common import seconds, server_inputs, write


class BackwardClock:
    """Adds up the seconds spent inside torch.autograd.backward and torch.autograd.grad.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock=time.perf_counter):
        self.seconds, self._clock = 0.0, clock

    def __enter__(self):
        self._saved = torch.autograd.backward, torch.autograd.grad
        torch.autograd.backward, torch.autograd.grad = map(self._timed, self._saved)
        return self

    def __exit__(self, *_):
        torch.autograd.backward, torch.autograd.grad = self._saved

    def _timed(self, function):
        def run(*args, **kwargs):
            start = self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += self._clock() - start

        return run


def main():
    """Measure several φ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--cut", default="maxpool")
    parser.add_argument("--phis", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    n_clients, b = arguments.clients, arguments.batch_size

    training, smashed, labels, weights, rng = server_inputs(n_clients, b, arguments.cut)

    def step(phi):
        training.server.zero_grad(set_to_none=True)
        aggregated_backward(training.server, smashed, labels, weights, n_agg=aggregated_rows(phi, b), rng=rng)

    backward, whole = ({phi: [] for phi in arguments.phis} for _ in range(2))
    for repeat in range(arguments.repeats + 1):
        for phi in arguments.phis:
            with BackwardClock() as clock:
                total, _ = seconds(lambda phi=phi: step(phi))
            if repeat:  # the first is a warm-up
                backward[phi].append(clock.seconds)
                whole[phi].append(total)

    costs = profile(resnet18(num_classes=10), (3, 32, 32))
    j = costs.cut_index(arguments.cut)
    rest = costs.bwd_cost[-1] - costs.bwd_cost[j]
    base, rows = np.median(backward[arguments.phis[0]]), []
    for phi in arguments.phis:
        n = server_rows(phi, b, n_clients)
        promised = (n * (rest - costs.last_bwd_cost) + n_clients * b * costs.last_bwd_cost) / (n_clients * b * rest)
        measured = np.median(backward[phi]) / base
        rows.append({
            "clients": n_clients, "batch_size": b, "cut": arguments.cut, "threads": arguments.threads,
            "phi": phi, "rows_backward": n,
            "backward_s": np.median(backward[phi]), "server_step_s": np.median(whole[phi]), "measured": measured,
            "promised": promised, "share_of_promised_fall": (1 - measured) / (1 - promised) if promised < 1 else np.nan,
        })  # fmt: skip
    write(pd.DataFrame(rows), "training_server_backward")


if __name__ == "__main__":
    main()
