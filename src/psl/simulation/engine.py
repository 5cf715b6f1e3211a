"""A small discrete-event engine: jobs wait for each other and for resources that serve one job at a time."""

import heapq
import math
from collections.abc import Iterable

import numpy as np

from psl.errors import expected

#: Decimal digits of the longest duration that a tick keeps: more than any measured time has, fewer than a float's 15.
DIGITS = 12

Priority = tuple[float, ...]


def whole_ticks(seconds: list[float]) -> tuple[list[int], int]:
    """Return ((n,) durations in ticks, d): a tick is 10^-d seconds; see `Jobs`."""
    longest = max(seconds, default=0.0)
    digits = DIGITS - math.floor(math.log10(longest)) if longest > 0 else 0
    digits = min(digits, 300)  # 10^d must stay a float
    return [round(s) for s in (np.array(seconds) * 10.0**digits).tolist()], digits


class Jobs:
    """Jobs with durations, resources, dependencies and priorities, which `run` executes.

    Time is counted in whole ticks, so that two events meet exactly or not at all, on every machine. A tick is a power
    of ten, the longest duration's leading digit times 1e-12: rounding moves no duration by more than half a tick
    (5e-13 of the longest), durations of few decimals not at all, and swallows the noise of floating point.

    Source: ours [B].
    """

    def __init__(self) -> None:
        self.resources: dict[str, int] = {}
        self.seconds: list[float] = []
        self.resource_of: list[int | None] = []
        self._fifo: list[bool] = []
        self._priority: list[Priority] = []
        self._missing: list[int] = []
        self._followers: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.seconds)

    def resource(self, name: str, *, fifo: bool = False) -> int:
        """Return the number of a resource, made at its first mention.

        Args:
            name: of the resource; the same name is the same resource.
            fifo: serve waiting jobs first-in first-out, equal arrivals by priority; otherwise by priority alone.
        """
        if name not in self.resources:
            self.resources[name] = len(self.resources)
            self._fifo.append(fifo)
        return self.resources[name]

    def add(self, resource: int | None, seconds: float, after: Iterable[int] = (), priority: Priority = ()) -> int:
        """Add a job and return its number.

        Args:
            resource: number of the resource it occupies, or None for a pure delay.
            seconds: duration, at least 0.
            after: numbers of the jobs that must have ended before it can start.
            priority: the waiting job with the least tuple is served first, of equals the one added first.

        Raises:
            ScenarioError: the duration is negative, infinite or NaN.
        """
        if not 0 <= seconds < math.inf:
            name = "a delay" if resource is None else f"a job on {list(self.resources)[resource]}"
            fix = "check the speeds of the nodes and the rates of the links: every one in use must be above 0"
            raise expected(f"duration of {name}", "a finite number of seconds", f"{seconds:g}", fix)
        job = len(self.seconds)
        self.seconds.append(seconds)
        self.resource_of.append(resource)
        self._priority.append(priority)
        self._missing.append(0)
        self._followers.append([])
        for other in after:
            self.require(job, other)
        return job

    def require(self, job: int, other: int) -> None:
        """Let a job start only after another one has ended."""
        self._missing[job] += 1
        self._followers[other].append(job)

    def ticks(self) -> tuple[list[int], int]:
        """Return ((n,) durations in ticks, d): a tick is 10^-d seconds."""
        return whole_ticks(self.seconds)

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        """Execute all jobs and return ((n,) start, (n,) end) in seconds.

        A job arrives at its resource at the moment when the last job before it ends. All that ends at one moment ends
        before anything starts. A free resource with waiting jobs always starts one, and finishes what it has started.

        Raises:
            ScenarioError: jobs wait for each other in a circle.
        """
        ticks, digits = self.ticks()
        start, end, missing = [0] * len(self), [0] * len(self), self._missing.copy()
        queue: list[list[tuple[int, Priority, int]]] = [[] for _ in self.resources]  # (arrival, priority, job)
        busy = [False] * len(self.resources)
        running: list[tuple[int, int]] = []  # (end, job)
        touched: set[int] = set()  # resources that may start a job now

        def arrive(job: int, now: int) -> None:
            resource = self.resource_of[job]
            if resource is None:
                start[job] = now
                heapq.heappush(running, (now + ticks[job], job))
            else:
                heapq.heappush(queue[resource], (now if self._fifo[resource] else 0, self._priority[job], job))
                touched.add(resource)

        now = done = 0
        for job, count in enumerate(missing):
            if count == 0:
                arrive(job, now)
        while True:
            for resource in touched:
                if queue[resource] and not busy[resource]:
                    job = heapq.heappop(queue[resource])[-1]
                    busy[resource], start[job] = True, now
                    heapq.heappush(running, (now + ticks[job], job))
            touched.clear()
            if not running:
                break
            now = running[0][0]
            while running and running[0][0] == now:
                _, job = heapq.heappop(running)
                end[job] = now
                done += 1
                if (resource := self.resource_of[job]) is not None:
                    busy[resource] = False
                    touched.add(resource)
                for follower in self._followers[job]:
                    missing[follower] -= 1
                    if missing[follower] == 0:
                        arrive(follower, now)
        if done < len(self):
            got = f"{len(self) - done} that never start"
            raise expected("jobs", "dependencies without a circle", got, "check them")
        return np.array(start) / 10.0**digits, np.array(end) / 10.0**digits

    def lower_bound(self) -> float:
        """Return seconds that no order of serving can beat.

        It is the longest chain of jobs, or the load of one resource with the least time before its first job and after
        its last.
        """
        n, seconds = len(self), np.array(self.seconds)
        order = [job for job in range(n) if self._missing[job] == 0]
        missing, head, tail = self._missing.copy(), np.zeros(n), np.zeros(n)
        for job in order:  # grows while it is walked
            for follower in self._followers[job]:
                head[follower] = max(head[follower], head[job] + seconds[job])
                missing[follower] -= 1
                if missing[follower] == 0:
                    order.append(follower)
        for job in reversed(order):
            tail[job] = max((seconds[f] + tail[f] for f in self._followers[job]), default=0.0)
        bound = float((head + seconds + tail).max(initial=0.0))
        resource_of = np.array([-1 if r is None else r for r in self.resource_of])
        for resource in range(len(self.resources)):
            work = resource_of == resource
            if work.any():
                bound = max(bound, float(head[work].min() + seconds[work].sum() + tail[work].min()))
        return bound
