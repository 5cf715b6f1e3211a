"""The rows of a training history while they grow."""

from fractions import Fraction
from itertools import accumulate

import numpy as np

from psl.training.history import History


class Curves:
    """Collects what every round adds, survives a checkpoint, and becomes a `History`.

    Args:
        participation: whether rounds have attendances of their own.
    """

    _NAMES = ("train_loss", "test_accuracy", "uplink_bits", "downlink_bits")
    _PARTICIPATION = ("participants", "seconds")

    def __init__(self, participation: bool = False):
        self._own_times = participation
        self._lists = {name: [] for name in self._NAMES + self._PARTICIPATION * participation}
        self._client_accuracy = []

    @property
    def rounds(self) -> int:
        """Rounds so far."""
        return len(self._lists["train_loss"])

    @property
    def evaluated(self) -> bool:
        """Whether the newest round was."""
        return not np.isnan(self._lists["test_accuracy"][-1])

    def add(self, loss: float, accuracy, link, attendance=None) -> None:
        """Append a round: training loss, accuracies (models,) or None, the link so far, who took part."""
        row = [loss, float("nan"), link.uplink_bits, link.downlink_bits]
        if self._own_times:
            row += [attendance.participants, attendance.seconds]
        for values, value in zip(self._lists.values(), row, strict=True):
            values.append(value)
        if accuracy is not None:
            self.amend(accuracy)

    def amend(self, accuracy) -> None:
        """Fill in the accuracies (models,) of the newest round."""
        self._client_accuracy = accuracy.tolist()
        self._lists["test_accuracy"][-1] = float(accuracy.mean())

    def forget_evaluations(self, eval_every: int) -> None:
        """Blank the evaluations that a longer run would not have made, such as that of a former last round."""
        kept = enumerate(self._lists["test_accuracy"], 1)
        self._lists["test_accuracy"] = [value if n % eval_every == 0 else float("nan") for n, value in kept]

    def shown(self) -> dict:
        """Return what the progress bar shows."""
        shown = {"loss": f"{self._lists['train_loss'][-1]:.3f}"}
        if self._client_accuracy:
            shown["accuracy"] = f"{np.mean(self._client_accuracy):.1%}"
        return shown

    def state(self) -> dict:
        """Return everything as plain values."""
        return {**self._lists, "client_accuracy": self._client_accuracy}

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned."""
        self._lists = {name: state[name] for name in self._lists}
        self._client_accuracy = state["client_accuracy"]

    def history(self, framework: str, settings: dict, round_time: float) -> History:
        """Return the finished history; rounds without times of their own take `round_time` seconds each."""
        arrays = {name: np.array(self._lists[name], dtype=float) for name in self._NAMES}
        time = round_time * np.arange(1, self.rounds + 1)
        participants = None
        if self._own_times:
            participants, time = np.array(self._lists["participants"]), _cumulative(self._lists["seconds"])
        accuracy = np.array(self._client_accuracy)
        return History(framework, settings, time, client_accuracy=accuracy, participants=participants, **arrays)


def _cumulative(seconds):
    """Sums that are rounded once: of equal rounds exactly the round number × their time."""
    if np.isnan(seconds).any():
        return np.full(len(seconds), np.nan)
    return np.array([float(total) for total in accumulate(map(Fraction, seconds))])
