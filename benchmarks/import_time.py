"""How long imports take: `import psl`, what planning needs, what training needs; each in new processes, medians.

A process that imports nothing is timed too, and its time is subtracted.
"""

import argparse
import subprocess
import sys
import time

import numpy as np
import pandas as pd

from solver_common import RESULTS

IMPORTS = {
    "import psl": "import psl",
    "planning and simulation": "from psl.schedulers import edgesplit, epsl, pipeline; from psl import simulate",
    "training": "from psl import train",
}


def seconds(code: str) -> float:
    """Return how long a new Python process takes for some code."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begin


def main() -> None:
    """Time the imports in turn and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    for code in IMPORTS.values():
        seconds(code)  # the files are in memory from here on
    table = np.array([[seconds(code) for code in ("pass", *IMPORTS.values())] for _ in range(repeats)])
    values = np.median(table, axis=0)
    frame = pd.DataFrame(
        {"part": "imports", "figure": list(IMPORTS), "value": 1e3 * (values[1:] - values[0]), "unit": "ms"}
    )
    print(frame.to_string(index=False))
    frame.to_csv(RESULTS / "import_time.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
