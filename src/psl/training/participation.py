"""Stragglers and dropouts: whose models a round of federated averaging uses, and how long the round takes."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from psl.errors import check_array, check_number, expected
from psl.plans import Plan
from psl.records import Record
from psl.training.seeds import Stream, generator


@dataclass(frozen=True)
class Attendance:
    """Who takes part in one round.

    Args:
        steps: (N,) local steps that each device takes.
        sends_model: (N,) whether it then sends its model.
        counted: (N,) whether the model is in time and part of the average.
        seconds: simulated length of the round, NaN if no times are known.
    """

    steps: np.ndarray
    sends_model: np.ndarray
    counted: np.ndarray
    seconds: float = float("nan")

    @classmethod
    def full(cls, n_clients: int, steps: int) -> "Attendance":
        """Return the attendance of a round without stragglers and dropouts."""
        everybody = np.ones(n_clients, dtype=bool)
        return cls(np.full(n_clients, steps), everybody, everybody)

    @property
    def participants(self) -> int:
        """How many devices' models are averaged."""
        return int(self.counted.sum())

    def weights(self, shares: np.ndarray) -> np.ndarray:
        """Return the weights (N,) of the average: λ_i of those that count, divided by their sum."""
        if self.counted.all() or not self.counted.any():
            return shares * self.counted
        kept = np.where(self.counted, shares, 0.0)
        return kept / kept.sum()


@dataclass(frozen=True, repr=False, eq=False)
class Participation(Record):
    """Which devices are slow, late or lost in a round.

    In every round the time of device i is ``device_times[i]`` times a log-normal factor of median 1. A device above
    the deadline is late: it has done its work, its optimizer has moved and its bits are sent, but its model is not
    used. A device that drops out takes k of its H local steps, k uniform in 0..H-1, and then sends nothing more: these
    steps are lost, although its own optimizer (and the server's for it) keeps what they left. The average is over
    the others, weighted by their samples. All devices start the next round from it, with their next
    mini-batches: those of a missed round count as taken.

    The round takes as long as its last device if nobody misses it. Otherwise the server waits until the deadline;
    without one it waits for the last device, where one that dropped out is noticed at once, after the k-th part of H of
    its time. If nobody finishes, the model stays as it was and the round has no training loss (NaN).

    The random numbers depend on the run's seed and the round alone: the same ones at every setting, and in a
    resumed run.

    Args:
        device_times: (N,) seconds of a round of each device; None for the plan's ``device_times``, if it was solved
            for this framework, else its round time for all of them.
        deadline: s after which a round ends.
        slowdown: σ of the log-normal factor's logarithm.
        dropout: probability that a device drops out of a round.

    Raises:
        ScenarioError: a number out of range.

    Source: deadlines and discarded late models as in federated systems in the field (Bonawitz et al., arXiv
    1902.01046); the model of times and dropouts [B].
    """

    device_times: np.ndarray | None = None
    deadline: float = math.inf
    slowdown: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        fix = "pass seconds"
        times = self.device_times
        if times is not None:
            times = check_array("Participation.device_times", times, shape=(None,), minimum=0, strict=True, fix=fix)
        deadline = check_array(
            "Participation.deadline", self.deadline, shape=(), minimum=0, strict=True, allow_inf=True, fix=fix
        )
        self._set(
            device_times=times,
            deadline=float(deadline),
            slowdown=check_number("Participation.slowdown", self.slowdown, minimum=0, fix="pass σ, such as 0.3"),
            dropout=check_number("Participation.dropout", self.dropout, minimum=0, maximum=1, fix="pass 0..1"),
        )

    def for_run(self, framework: str, plan: Plan | None, n_clients: int, round_time: float) -> "Participation":
        """Return this with the device times that hold in a run.

        Args:
            framework: its name.
            plan: a scheduler's plan or None.
            n_clients: N.
            round_time: s, the plan's for this framework; NaN without a plan.

        Raises:
            ScenarioError: the times are needed but unknown, or not N numbers.
        """
        times = self.device_times
        # A baseline's plan, such as FedAvg's in EdgeSplit's scenario, has its framework as method.
        if times is None and plan is not None and framework in (plan.scheduler, getattr(plan, "method", None)):
            times = getattr(plan, "device_times", None)  # EdgeSplit's plans know them, the others do not
        if times is None:
            if math.isfinite(self.deadline) or self.slowdown > 0:
                fix = f"pass device_times=, or a plan for {framework}"
                raise expected("participation", "device times for its deadline or slowdown", "none", fix)
            times = None if math.isnan(round_time) else np.full(n_clients, round_time)
        elif len(times) != n_clients:
            fix = "make n_clients and the list agree"
            raise expected("participation", f"one device time per client, {n_clients} in all", len(times), fix)
        return dataclasses.replace(self, device_times=times)

    def attendance(self, index: int, seed: int, n_clients: int, steps: int) -> Attendance:
        """Draw who takes part in a round.

        Args:
            index: of the round, counted from 0.
            seed: the run's.
            n_clients: N.
            steps: H, local steps of a device.
        """
        rng = generator(Stream.PARTICIPATION, seed, index)
        factors = np.exp(self.slowdown * rng.standard_normal(n_clients))
        gone = rng.random(n_clients) < self.dropout
        before = rng.integers(0, steps, n_clients)
        times = (np.nan if self.device_times is None else self.device_times) * factors
        counted = ~gone & ~(times > self.deadline)
        if counted.all() or math.isinf(self.deadline):
            seconds = float(np.where(gone, times * before / steps, times).max())
        else:
            seconds = self.deadline
        return Attendance(np.where(gone, before, steps), ~gone, counted, seconds)

    def settings(self) -> dict[str, Any]:
        """Return the fields as plain values, for `History.settings`."""
        times = None if self.device_times is None else self.device_times.tolist()
        return {"device_times": times, "deadline": self.deadline, "slowdown": self.slowdown, "dropout": self.dropout}
