"""What a training run returns: one row per round, and the trained models."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from psl import html
from psl.records import Record
from psl.training.communication import BitCounter
from psl.training.participation import Attendance

_COLUMNS = 40  # of the small chart that a notebook shows


@dataclass(frozen=True, repr=False, eq=False)
class History(Record):
    """The course of a training run, one entry per round; all arrays have length R.

    Args:
        framework: name of the framework.
        settings: what the run was started with, by argument name.
        simulated_time_s: round number × the plan's round time for this framework: what the
            latency model says, not a measurement; NaN without a plan. With `participation` the sum of
            the rounds' own times.
        train_loss: Σ_i λ_i ℓ̄_i of the round's mini-batches, before the step; with `participation` over
            the devices that are averaged, NaN in a round in which nobody finished.
        test_accuracy: mean over the clients' own models of the accuracy, in [0, 1], or of the `metric` that was asked
            for; NaN in rounds without evaluation.
        uplink_bits, downlink_bits: bits sent since the start (cumulative); see `psl.training.communication.BitCounter`.
        client_accuracy: the same of each distinct client model at the last evaluation.
        participants: how many devices were averaged; None without `participation`.
        server_rows: rows that the server went back through in each round; None where they are not drawn.

    Attributes:
        models: the trained models in eval mode, of the class that was given: one per client where clients keep
            their own part (psl, epsl; the server's tensors are shared between them), else one.
            Not part of `to_dict` and `save`: use ``torch.save(model.state_dict(), …)``.
    """

    framework: str
    settings: dict[str, Any]
    simulated_time_s: np.ndarray
    train_loss: np.ndarray
    test_accuracy: np.ndarray
    uplink_bits: np.ndarray
    downlink_bits: np.ndarray
    client_accuracy: np.ndarray
    participants: np.ndarray | None = None
    server_rows: np.ndarray | None = None
    models: list[nn.Module] = field(default_factory=list, init=False, compare=False, repr=False)

    @property
    def rounds(self) -> int:
        """R, the number of rounds."""
        return len(self.train_loss)

    @property
    def final_accuracy(self) -> float:
        """Test accuracy after the last round."""
        return float(self.test_accuracy[-1])

    @property
    def best_accuracy(self) -> float:
        """Highest test accuracy of any evaluated round."""
        return float(np.nanmax(self.test_accuracy))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per round: round, simulated_time_s, train_loss, test_accuracy, uplink_bits, downlink_bits.

        Simulated time and bits are cumulative. With `participation` there is also a column participants, and
        server_rows where rows are drawn.
        """
        columns = ("simulated_time_s", "train_loss", "test_accuracy", "uplink_bits", "downlink_bits")
        columns += tuple(name for name in ("participants", "server_rows") if getattr(self, name) is not None)
        frame = pd.DataFrame({name: getattr(self, name) for name in columns})
        frame.insert(0, "round", np.arange(1, self.rounds + 1))
        return frame

    def __repr__(self) -> str:
        parts = [f"{self.rounds} rounds", f"train loss {self.train_loss[-1]:.4g}"]
        if (metric := self.settings.get("metric", "accuracy")) == "accuracy":
            parts.append(f"test accuracy {self.final_accuracy:.2%} (best {self.best_accuracy:.2%})")
        else:  # whether more is better is not known
            parts.append(f"test {metric} {self.final_accuracy:.4g}")
        parts.append(f"{self.uplink_bits[-1] / 8e6:.4g} MB up, {self.downlink_bits[-1] / 8e6:.4g} MB down")
        if not np.isnan(self.simulated_time_s[-1]):
            parts.append(f"{self.simulated_time_s[-1]:.4g} s simulated")
        return f"History({self.framework}: " + ", ".join(parts) + ")"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the first, the best and the last round, and the course of the test metric."""
        metric, score = str(self.settings.get("metric", "accuracy")), np.asarray(self.test_accuracy, dtype=float)
        chosen, known = {0: "first", self.rounds - 1: "last"}, np.flatnonzero(np.isfinite(score))
        if metric == "accuracy" and len(known):  # of another metric it is not known whether more is better
            best = int(known[np.argmax(score[known])])
            chosen[best] = f"{chosen[best]}, best" if best in chosen else "best"
        low, high = (0.0, 1.0) if metric == "accuracy" or not len(known) else (score[known].min(), score[known].max())
        rows = []
        for at in sorted(k for k in chosen if 0 <= k < self.rounds):
            bar = html.Bar([html.share(score[at] - low, high - low)])
            sent = self.uplink_bits[at] / 1e6, self.downlink_bits[at] / 1e6
            rows.append(
                [chosen[at], at + 1, score[at], bar, float(self.train_loss[at]), *sent, self.simulated_time_s[at]]
            )
        header = ["", "round", f"test {metric}", "", "train loss", "Mbit up", "Mbit down", "simulated time, s"]
        seen = known[np.unique(np.linspace(0, max(len(known) - 1, 0), _COLUMNS).astype(int))] if len(known) else []
        if len(seen) > 1:
            course = html.Curve([html.share(value - low, high - low) for value in score[seen]])
            rows.append(["course", None, None, course, None, None, None, None])
        return html.table(f"History of {self.framework}, {self.rounds} rounds", header, rows)


def warn_of_divergence(loss: float, index: int, stacklevel: int) -> None:
    """Warn that the loss of round `index`, counted from 0, is no finite number; `stacklevel` counts from the caller."""
    text = f"train loss is {loss} in round {index + 1}: lower lr"
    warnings.warn(text, RuntimeWarning, stacklevel=stacklevel + 1)


class HistoryBuilder:
    """The rows of a history while it grows; they survive a checkpoint.

    Args:
        participation: whether clients may miss rounds, which then have times and numbers of participants of their own.
        metric: name of what is evaluated.
        rows: whether the server goes back through rows that are drawn.
        own_times: whether rounds have times of their own without `participation`.
    """

    _CURVES = ("train_loss", "test_accuracy", "uplink_bits", "downlink_bits")

    def __init__(
        self, participation: bool = False, metric: str = "accuracy", *, rows: bool = False, own_times: bool = False
    ):
        self._metric = metric
        self._participation, self._rows, self._own_times = participation, rows, own_times or participation
        extra = {"participants": participation, "server_rows": rows, "seconds": self._own_times}
        names = (*self._CURVES, *(name for name, wanted in extra.items() if wanted))
        self._columns: dict[str, list[float]] = {name: [] for name in names}
        self._client_accuracy: list[float] = []

    @property
    def rounds(self) -> int:
        """Rounds so far."""
        return len(self._columns["train_loss"])

    @property
    def evaluated(self) -> bool:
        """Whether the newest round has a test accuracy."""
        return not np.isnan(self._columns["test_accuracy"][-1])

    def add_round(
        self,
        loss: float,
        accuracy: np.ndarray | None,
        bits: BitCounter,
        attendance: Attendance | None = None,
        rows: np.ndarray | None = None,
        seconds: float = float("nan"),
    ) -> None:
        """Append a round.

        Args:
            loss: training loss.
            accuracy: (models,) test accuracy of each distinct client model; None without evaluation.
            bits: what was sent since the start.
            attendance: who took part; needed with `participation`.
            rows: (N,) rows of each client that were drawn; needed where rows are.
            seconds: simulated time of the round; needed with `own_times`.
        """
        row = {
            "train_loss": loss,
            "test_accuracy": float("nan"),
            "uplink_bits": bits.uplink_bits,
            "downlink_bits": bits.downlink_bits,
            "server_rows": 0 if rows is None else int(rows.sum()),
            "seconds": seconds,
        }
        if attendance is not None:
            row |= {"participants": attendance.participants, "seconds": attendance.seconds}
        for name, column in self._columns.items():
            column.append(row[name])
        if accuracy is not None:
            self.set_accuracy(accuracy)

    def set_accuracy(self, accuracy: np.ndarray) -> None:
        """Enter the test accuracies (models,) of the newest round."""
        self._client_accuracy = accuracy.tolist()
        self._columns["test_accuracy"][-1] = float(accuracy.mean())

    def forget_evaluations(self, eval_every: int) -> None:
        """Blank the evaluations that a longer run would not have made, such as that of a former last round."""
        numbered = enumerate(self._columns["test_accuracy"], 1)
        self._columns["test_accuracy"] = [value if n % eval_every == 0 else float("nan") for n, value in numbered]

    def shown(self) -> dict[str, str]:
        """Return what the progress bar shows."""
        shown = {"loss": f"{self._columns['train_loss'][-1]:.3f}"}
        if self._client_accuracy:
            value = np.mean(self._client_accuracy)
            shown[self._metric] = f"{value:.1%}" if self._metric == "accuracy" else f"{value:.4g}"
        return shown

    def state(self) -> dict[str, list[float]]:
        """Return everything as plain values."""
        return {**self._columns, "client_accuracy": self._client_accuracy}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Continue from what `state` returned."""
        self._columns = {name: state[name] for name in self._columns}
        self._client_accuracy = state["client_accuracy"]

    def history(self, framework: str, settings: dict[str, Any], round_time: float) -> History:
        """Return the finished history; rounds without times of their own take `round_time` seconds each."""
        curves = {name: np.array(self._columns[name], dtype=float) for name in self._CURVES}
        time = round_time * np.arange(1, self.rounds + 1)
        if self._own_times:
            time = _cumulative(self._columns["seconds"])
        drawn = {
            name: np.array(self._columns[name]) if wanted else None
            for name, wanted in (("participants", self._participation), ("server_rows", self._rows))
        }
        accuracy = np.array(self._client_accuracy)
        return History(framework, settings, time, client_accuracy=accuracy, **drawn, **curves)


def _cumulative(seconds: Sequence[float]) -> np.ndarray:
    """Return sums that are rounded once: of equal rounds exactly the round number × their time."""
    if np.isnan(seconds).any():
        return np.full(len(seconds), np.nan)
    return np.array([float(total) for total in accumulate(map(Fraction, seconds))])
