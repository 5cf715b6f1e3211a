"""What the comparisons share: which peers are installed, instances, seconds, and the CSV files.

Seconds are CPU seconds of this process with one thread: other work on the machine then matters little. Both sides of a
comparison run in turn on one instance after the other. Limits of time that a solver can only count on the clock are
multiplied by the share of a core that this process gets, which is measured first.
"""

import importlib.metadata
import os
import sys
import time
from pathlib import Path

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "tests"))  # random scenarios and independent formulas live with the tests

#: Distribution on the package index, by the name under which tables show it.
PEERS = {
    "SCIP": "pyscipopt",
    "HiGHS": "highspy",
    "CP-SAT": "ortools",
    "CVXPY": "cvxpy",
    "SimPy": "simpy",
    "torchslicer": "torchslicer",
    "fvcore": "fvcore",
    "ptflops": "ptflops",
}


def version(peer: str) -> str | None:
    """Return the installed version of a peer, or None."""
    try:
        return importlib.metadata.version(PEERS[peer])
    except importlib.metadata.PackageNotFoundError:
        return None


def installed(*peers: str) -> bool:
    """Return whether all of some peers are installed."""
    return all(version(peer) for peer in peers)


def timed(call):
    """Return (result, CPU seconds of this process, all its threads)."""
    begin = time.process_time()
    result = call()
    return result, time.process_time() - begin


def quickest(call, repeats: int = 3):
    """Return (result, the median of the CPU seconds of several runs)."""
    runs = [timed(call) for _ in range(repeats)]
    return runs[0][0], float(np.median([seconds for _, seconds in runs]))


def stretch() -> float:
    """Return clock seconds per CPU second of this process now, at least 1."""
    clock, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < 0.1:
        sum(range(1000))
    return max((time.perf_counter() - clock) / (time.process_time() - cpu), 1.0)


class Table:
    """Rows of one question; every row is one method on one instance.

    Args:
        question: names the CSV file, peers_<question>.csv.
    """

    def __init__(self, question: str) -> None:
        self.question, self.rows = question, []

    def add(self, case: str, instance: str | int, method: str, **values) -> None:
        """Keep one row and print it."""
        row = {"case": case, "instance": instance, "method": method, **values}
        shown = ", ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        print(f"  {case} | {instance} | {method}: {shown}", flush=True)
        self.rows.append(row)

    def write(self) -> Path:
        """Write the CSV; peers that are not installed keep the rows of an older file."""
        path, frame = RESULTS / f"peers_{self.question}.csv", pd.DataFrame(self.rows)
        if path.exists():
            known = pd.read_csv(path)
            new = set(zip(frame["case"], frame["method"], strict=True))
            again = [pair in new for pair in zip(known["case"], known["method"], strict=True)]
            frame = pd.concat([frame, known[~np.array(again, dtype=bool)]])
        frame.to_csv(path, index=False, float_format="%.12g")
        print(f"wrote {path.name}", flush=True)
        return path
