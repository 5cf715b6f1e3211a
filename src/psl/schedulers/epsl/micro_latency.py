"""The time of a round in micro-batches, and how long each machine works in it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from psl import html
from psl.records import Record
from psl.schedulers.epsl.pipelined import PipelinedRound, Served


@dataclass(frozen=True, repr=False, eq=False)
class MicroBatchLatency(Record):
    """Seconds of one round in micro-batches: machines work side by side, so their seconds do not add up to the round.

    Args:
        framework: "epsl" or "psl".
        total: s of the round.
        busy: s that each machine works: "client 0", "uplink of client 0", "server" and so on. On half duplex a client
            has "subchannels of client 0" for both directions.
        uplink_of: (N,) s until all micro-batches of a client have arrived at the server, after t_0.
        downlink_of: (N,) s that a client needs at least from the server's end of its first micro-batch to its own end.

    Source: ours [B], for the round of EPSL (arXiv 2303.15991) [R]; see `psl.schedulers.epsl.pipelined`.
    """

    framework: str
    total: float
    busy: dict[str, float]
    uplink_of: np.ndarray
    downlink_of: np.ndarray

    @classmethod
    def of(cls, framework: str, found: PipelinedRound, served: Served) -> "MicroBatchLatency":
        """Return the latency of a round that was put in order."""
        busy = {
            (f"{kind} {i}" if kind.endswith("client") else kind): float(seconds)
            for kind, load in found.loads.items()
            for i, seconds in enumerate(load)
        }
        return cls(framework, served.value, busy, found.release[:, -1].copy(), found.tail[:, 0].copy())

    @property
    def bottleneck(self) -> str:
        """The machine that works longest."""
        return max(self.busy, key=self.busy.__getitem__)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per machine, the busiest first: seconds of work, and their share of the round."""
        seconds = pd.Series(self.busy).sort_values(ascending=False, kind="stable")
        return pd.DataFrame({"busy_s": seconds, "share": seconds / self.total}).rename_axis("machine")

    def __repr__(self) -> str:
        name = self.bottleneck
        return (
            f"MicroBatchLatency({self.framework}: {self.total:.6g} s; bottleneck {name}, "
            f"{100 * self.busy[name] / self.total:.3g} % busy)"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the machines, the busiest first, with their shares of the round."""
        rows = []
        for name, seconds in sorted(self.busy.items(), key=lambda item: -item[1]):
            part = html.share(seconds, self.total)
            rows.append([name, seconds, html.percent(part), html.Bar([part])])
        title = f"One round of {self.framework} in micro-batches: {html.number(self.total, 's')}"
        return html.table(title, ["machine", "busy, s", "share", ""], rows)
