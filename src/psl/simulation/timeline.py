"""`Timeline`, the result of a simulation: all events with their times, and tables of use, memory and queues."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, DTypeLike

from psl.profiles import Profile
from psl.records import Record
from psl.simulation.engine import Jobs, Priority

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What an event can be; `Timeline.kind` holds positions in this tuple.
KINDS = ("forward", "backward", "activation", "gradient", "broadcast", "model", "step")


@dataclass(frozen=True, repr=False, eq=False)
class Timeline(Record):
    """Every computation and transfer of one simulated mini-batch or round, in order of start.

    E events on R resources by S stages. A *stage* is a part of the model on one machine: a stage of a pipeline, a
    client's or device's part, the server's part.

    Args:
        scheduler: which system was simulated: "pipeline", "epsl" or "edgesplit".
        order: "1f1b" or "flush"; None where there is no choice.
        resources: R names, such as "node 2" or "link 0→2".
        resource: (E,) position of the event's resource in `resources`.
        kind: (E,) position of the event's kind in `KINDS`.
        micro_batch: (E,) number of the micro-batch; for EdgeSplit of the local step, −1 for a model's transfer and for
            the optimizer's step of a pipeline's stage.
        stage: (E,) number of the stage for a computation; of the hop, client or device for a transfer.
        samples: (E,) samples computed on or carried; 0 for a model's transfer.
        start, end: (E,) s. Propagation latency is no event: it occupies nothing.
        stage_resource: (S,) position of each stage's machine in `resources`.
        stage_activation: (S,) bytes of activations that a stage keeps per sample for its backward pass.
        stage_fixed: (S,) bytes that a stage always keeps: weights, and gradients and optimizer state of what trains.

    Source: pipelined split learning (arXiv 2505.04368) has a closed form; its simulation is ours [B].
    """

    scheduler: str
    order: str | None
    resources: tuple[str, ...]
    resource: np.ndarray
    kind: np.ndarray
    micro_batch: np.ndarray
    stage: np.ndarray
    samples: np.ndarray
    start: np.ndarray
    end: np.ndarray
    stage_resource: np.ndarray
    stage_activation: np.ndarray
    stage_fixed: np.ndarray

    def __post_init__(self) -> None:
        self._set(resources=tuple(self.resources))
        for name in ("resource", "kind", "micro_batch", "stage", "samples", "stage_resource"):
            self._set(**{name: _frozen(getattr(self, name), np.int64)})
        for name in ("start", "end", "stage_activation", "stage_fixed"):
            self._set(**{name: _frozen(getattr(self, name), np.float64)})

    @property
    def makespan(self) -> float:
        """Seconds from the start to the end of the last event."""
        return float(self.end.max(initial=0.0))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per event: resource, kind, micro_batch, stage, samples, start_s, end_s."""
        return pd.DataFrame(
            {
                "resource": pd.Categorical.from_codes(self.resource, list(self.resources)),
                "kind": pd.Categorical.from_codes(self.kind, list(KINDS)),
                "micro_batch": self.micro_batch,
                "stage": self.stage,
                "samples": self.samples,
                "start_s": self.start,
                "end_s": self.end,
            }
        ).rename_axis("event")

    def utilisation(self) -> pd.DataFrame:
        """Return one row per resource: events, busy_s, idle_s, share, first_s, last_s.

        `idle_s` counts from the resource's first use to its last; `share` is busy time over the makespan.
        """
        n = len(self.resources)
        busy = np.bincount(self.resource, self.end - self.start, n)
        first, last = np.full(n, np.inf), np.zeros(n)
        np.minimum.at(first, self.resource, self.start)
        np.maximum.at(last, self.resource, self.end)
        return pd.DataFrame(
            {
                "events": np.bincount(self.resource, minlength=n),
                "busy_s": busy,
                "idle_s": np.maximum(last - first - busy, 0.0),  # a rounding error is no idle time
                "share": busy / self.makespan if self.makespan > 0 else np.zeros(n),
                "first_s": first,
                "last_s": last,
            },
            index=pd.Index(self.resources, name="resource"),
        )

    def in_flight(self) -> pd.DataFrame:
        """Return how many micro-batches each stage holds, from the start of their forward to the end of their backward.

        Index: the times in s at which a count changes; a row holds until the next. Columns: stages, 0 at the source.
        """
        n_stages = len(self.stage_resource)
        return self._held(self.stage, np.ones(len(self.stage)), range(n_stages))

    def memory(self) -> pd.DataFrame:
        """Return the bytes that each machine keeps over time: a column per machine; a row holds until the next.

        A stage keeps a micro-batch's activations from the start of its forward to the end of its backward. Its weights,
        and gradients and optimizer state of what trains, it keeps always. What relays and queues buffer, and weights in
        transit, are not counted.
        """
        machines = np.unique(self.stage_resource)  # (machines,)
        column = np.searchsorted(machines, self.stage_resource)  # (S,)
        computing = self._computing()
        where, size = np.zeros(len(self.stage), dtype=np.int64), np.zeros(len(self.stage))
        stage = self.stage[computing]
        where[computing] = column[stage]
        size[computing] = self.stage_activation[stage] * self.samples[computing]
        held = self._held(where, size, [self.resources[k] for k in machines])
        return held + np.bincount(column, self.stage_fixed, len(machines))

    def _computing(self) -> np.ndarray:
        return (self.kind == KINDS.index("forward")) | (self.kind == KINDS.index("backward"))

    def _held(self, column: np.ndarray, size: np.ndarray, names: Iterable[int | str]) -> pd.DataFrame:
        """Return what is held over time: each event's (E,) size in its (E,) column, between forward and backward."""
        columns = list(names)
        taken, given = self.kind == KINDS.index("forward"), self.kind == KINDS.index("backward")
        times = np.unique(np.concatenate([[0.0], self.start[taken], self.end[given]]))
        change = np.zeros((len(times), len(columns)))
        np.add.at(change, (np.searchsorted(times, self.start[taken]), column[taken]), size[taken])
        np.add.at(change, (np.searchsorted(times, self.end[given]), column[given]), -size[given])
        return pd.DataFrame(np.cumsum(change, axis=0), index=pd.Index(times, name="time_s"), columns=columns)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the Gantt chart, one row per resource, and return the axes; it is readable for M up to about 64.

        Args:
            ax: matplotlib axes to draw on; a new figure if None.
        """
        from psl.plotting import plot_gantt  # matplotlib takes a while to import, and simulating needs none

        return plot_gantt(self.to_frame(), ax=ax)

    def __repr__(self) -> str:
        order = f", {self.order}" if self.order else ""
        events = f"{len(self.start)} events on {len(self.resources)} resources"
        return f"Timeline({self.scheduler}{order}: {events}, makespan {self.makespan:.6g} s)"


def _frozen(values: ArrayLike, dtype: DTypeLike) -> np.ndarray:
    array = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array


class Recorder(Jobs):
    """Jobs with what they stand for, and the stages that compute them; `timeline` executes them."""

    def __init__(self) -> None:
        super().__init__()
        self._events: dict[int, tuple[int, int, int, int]] = {}
        self._stages: list[tuple[int, float, float]] = []

    def stage(self, resource: int, profile: Profile, first: int, last: int) -> int:
        """Declare that a resource holds units first+1..last of a profile's model, and return the stage's number."""
        activation = profile.act_memory[last] - profile.act_memory[first]
        parameters = profile.training_memory(0)[last] - profile.training_memory(0)[first]
        self._stages.append((resource, float(activation), float(parameters)))
        return len(self._stages) - 1

    def event(
        self,
        kind: str,
        resource: int,
        seconds: float,
        after: Iterable[int] = (),
        priority: Priority = (),
        *,
        micro_batch: int = 0,
        stage: int = 0,
        samples: int = 0,
    ) -> int:
        """Add a job that shows in the timeline; arguments as in `Jobs.add` and `Timeline`."""
        job = self.add(resource, seconds, after, priority)
        self._events[job] = (KINDS.index(kind), micro_batch, stage, samples)
        return job

    def timeline(self, scheduler: str, order: str | None = None) -> Timeline:
        """Execute the jobs and return what happened."""
        start, end = self.run()
        jobs = np.array(list(self._events))
        resource = np.array([self.resource_of[job] for job in jobs.tolist()])
        labels = np.array([self._events[job] for job in jobs.tolist()]).T
        return self.arranged(scheduler, order, resource, labels, start[jobs], end[jobs])

    def arranged(
        self,
        scheduler: str,
        order: str | None,
        resource: np.ndarray,
        labels: np.ndarray,
        start: np.ndarray,
        end: np.ndarray,
    ) -> Timeline:
        """Return the timeline of E events given in the order in which they were added.

        Args:
            scheduler, order: as in `Timeline`.
            resource: (E,) their resources.
            labels: (4, E) kind, micro-batch, stage and samples.
            start, end: (E,) s.
        """
        by_time = np.lexsort([end, start])  # of equals, the first added stays first
        kind, micro_batch, stage, samples = labels[:, by_time]
        place, activation, fixed = (np.array(values) for values in zip(*self._stages, strict=True))
        return Timeline(
            scheduler,
            order,
            tuple(self.resources),
            resource=resource[by_time],
            kind=kind,
            micro_batch=micro_batch,
            stage=stage,
            samples=samples,
            start=start[by_time],
            end=end[by_time],
            stage_resource=place,
            stage_activation=activation,
            stage_fixed=fixed,
        )
