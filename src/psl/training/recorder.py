"""What a run keeps of its rounds: history, evaluations and measured times, for `psl.train`, a server and a pipeline."""

from collections.abc import Callable
from typing import Any

import numpy as np

from psl.errors import CheckpointError, expected
from psl.training.communication import BitCounter
from psl.training.config import TrainingConfig
from psl.training.history import History, HistoryBuilder, warn_of_divergence
from psl.training.participation import Attendance
from psl.training.scores import metric_name


class Recorder:
    """The course of a run while it grows.

    Args:
        config: of the run.
        bits: counts what crosses.
        evaluate: called with the number of a round; returns the test metric of each distinct client model, none if
            nobody is there to evaluate.
        depth: how many calls lie between `enter` and the user's, whose line a warning shows.

    Attributes:
        round_times: s of each round as measured; empty where nobody measures.
        participants: how many clients took part in each round; empty where all always do.
    """

    def __init__(
        self,
        config: TrainingConfig,
        bits: BitCounter,
        evaluate: Callable[[int], np.ndarray],
        depth: int = 1,
    ):
        self.config, self.bits, self._evaluate, self._depth = config, bits, evaluate, depth
        self.curves = HistoryBuilder(
            config.participation is not None,
            metric_name(config.metric),
            rows=config.framework == "epsl" and config.linearise == "sampled",
            own_times=config.drawn_time is not None,
        )
        self.round_times: list[float] = []
        self.participants: list[int] = []
        self._diverged = False

    @property
    def rounds(self) -> int:
        """Rounds so far."""
        return self.curves.rounds

    def enter(
        self,
        loss: float,
        attendance: Attendance | None = None,
        *,
        seconds: float | None = None,
        participants: int | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        """Enter a round, evaluate if it is due, and warn once of a loss that is no finite number.

        Args:
            loss: training loss.
            attendance: who took part, with `participation`.
            seconds: measured time of the round.
            participants: clients that took part in all of it, where clients may be lost.
            rows: (N,) rows of each client that were drawn, where rows are.
        """
        index, config = self.rounds, self.config
        present = attendance is None or attendance.participants > 0
        if not np.isfinite(loss) and present and participants != 0 and not self._diverged:
            self._diverged = True
            warn_of_divergence(loss, index, stacklevel=self._depth + 1)
        if seconds is not None:
            self.round_times.append(seconds)
        if participants is not None:
            self.participants.append(participants)
        due = (index + 1) % config.eval_every == 0 or index + 1 == config.rounds
        accuracy = self._evaluate(index) if due else np.array([])
        simulated = config.round_time if config.drawn_time is None or rows is None else config.drawn_time(rows)
        self.curves.add_round(loss, accuracy if len(accuracy) else None, self.bits, attendance, rows, simulated)

    def finish(self) -> None:
        """Evaluate the last round if that was not done, because the run was ended early."""
        if self.rounds and not self.curves.evaluated:
            accuracy = self._evaluate(self.rounds - 1)
            if len(accuracy):
                self.curves.set_accuracy(accuracy)

    def state(self) -> dict[str, Any]:
        """Return everything as plain values."""
        link = [self.bits.uplink_bits, self.bits.downlink_bits]
        measured = {"round_times": self.round_times, "participants": self.participants}
        return {"curves": self.curves.state(), "link": link} | measured

    def restore(self, state: dict[str, Any], where: str) -> None:
        """Continue from what `state` returned; `where` names the checkpoint.

        Raises:
            CheckpointError: it has more rounds than the run was asked for.
        """
        self.curves.restore(state["curves"])
        rounds = self.config.rounds
        if self.rounds > rounds:
            fix, got = "ask for as many rounds or more, or give another checkpoint=", f"{self.rounds} rounds"
            raise expected(where, f"at most rounds = {rounds}", f"{got} in the checkpoint", fix, CheckpointError)
        if self.rounds < rounds:
            self.curves.forget_evaluations(self.config.eval_every)
        self.bits.uplink_bits, self.bits.downlink_bits = state["link"]
        self.round_times = list(state.get("round_times", ()))
        self.participants = list(state.get("participants", ()))
        self._diverged = not np.isfinite(self.curves.state()["train_loss"]).all()

    def history(self, framework: str, settings: dict[str, Any]) -> History:
        """Return the finished history."""
        return self.curves.history(framework, settings, self.config.round_time)
