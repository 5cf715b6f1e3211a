"""What notebook 07 imports, for tests: worker processes import it by its own name."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "notebooks"))

from real_processes import BATCHES, experiment, make_plan, sample_network

__all__ = ["BATCHES", "experiment", "make_plan", "sample_network"]
