"""Who did what when, as measured by the processes themselves."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from psl.distributed.edge.emulate import Compute

_COLUMNS = ("round", "resource", "kind", "micro_batch", "stage", "samples", "start_s", "end_s", "cpu_s")


class EventLog:
    """Collects the events of one process on the server's monotonic clock; threads may share it.

    Attributes:
        offset: s to add to this machine's clock for the server's.
        round: index of the round that new events belong to.
        computes: whose `overrun` is saved too.
    """

    def __init__(self):
        self.round, self.offset = -1, 0.0
        self.computes: list[Compute] = []
        self._rows: list[tuple] = []

    def add(self, resource: str, kind: str, number: int, stage: int, samples: int, start: float, end: float, cpu=0.0):
        """Note an event; arguments as the columns of `collect`."""
        self._rows.append((self.round, resource, kind, number, stage, samples, start, end, cpu))

    def save(self, path: Path) -> None:
        """Write the events to a file."""
        overrun = sum(compute.overrun for compute in self.computes)
        path.write_text(json.dumps({"rows": self._rows, "overrun": overrun}))


def collect(files: Iterable[Path]) -> tuple[pd.DataFrame, float]:
    """Return the events of several processes as one table in order of start, seconds from the first, and their overrun.

    Columns are those of `psl.simulation.Timeline.to_frame` with `round` before and `cpu_s` behind: resource, kind,
    micro_batch (the local step), stage (the client), samples, start_s, end_s; cpu_s is the computing time on this
    machine. A transfer starts when the sender hands it over and ends when the receiver has it.
    Kinds beside the timeline's: "labels", "loss" (that a client computed), "step" (an optimizer's).
    """
    found = [json.loads(file.read_text()) for file in files if file.exists()]
    rows = [row for process in found for row in process["rows"]]
    table = pd.DataFrame([row for row in rows if row[0] >= 0], columns=list(_COLUMNS))
    table = table.sort_values(["start_s", "end_s"], ignore_index=True)
    if len(table):
        table[["start_s", "end_s"]] -= table["start_s"].iloc[0]
    return table.rename_axis("event"), sum(process["overrun"] for process in found)
