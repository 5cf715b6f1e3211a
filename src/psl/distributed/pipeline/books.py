"""What the first process of a pipeline keeps: the course of the run, evaluations, and what a launcher shows."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from psl.distributed.pipeline.job import PipelineJob, Source
from psl.distributed.pipeline.messages import Order
from psl.errors import CheckpointError, expected
from psl.training.evaluation import evaluate
from psl.training.fingerprint import settings_of
from psl.training.frameworks.pipeline import Pipeline
from psl.training.history import History, HistoryBuilder, warn_of_divergence
from psl.training.scores import metric_name


class Books:
    """The history of a pipelined run while it grows; the first process has them, as it has the data.

    Args:
        job: the run, its ends known.
        run: the framework, into whose layers those of the other processes come for evaluation.
        source: of the data.
        folder: where progress and results go.
        saves: whether there is a folder for checkpoints.
        tell: called with a line about every round; optional.
    """

    def __init__(
        self, job: PipelineJob, run: Pipeline, source: Source, folder: Path, saves: bool, tell: Callable | None = None
    ):
        self.job, self.run, self._source, self._folder, self._saves = job, run, source, folder, saves
        self._print = tell or (lambda line: None)
        self.curves, self.round_times = HistoryBuilder(metric=metric_name(run.config.metric)), []
        self._saved_at = time.monotonic()
        self.write()

    def order(self, index: int) -> Order:
        """Return what is done after round `index`, in which a request to stop is heeded too."""
        ends = (self._folder / "stop").exists() or index + 1 == self.job.rounds
        order = Order.END | Order.SHOW if ends else Order.NOTHING
        if self.job.due(index):
            order |= Order.SHOW
        if self._saves and (ends or time.monotonic() - self._saved_at >= self.job.save_every):
            order |= Order.SAVE
            self._saved_at = time.monotonic()
        return order

    def enter(self, loss: float, seconds: float) -> None:
        """Enter a round, whose layers have come if it is one to evaluate."""
        job, counted = self.job, self.run.bits
        index, (up, down) = self.curves.rounds, job.bits_per_round()
        counted.uplink_bits += up
        counted.downlink_bits += down
        if not math.isfinite(loss) and all(map(math.isfinite, self.curves.state()["train_loss"])):
            warn_of_divergence(loss, index, stacklevel=2)
        accuracy = evaluate(self.run, self._source.test, index) if job.due(index) else None
        self.curves.add_round(loss, accuracy, counted)
        self.round_times.append(seconds)
        self.write()
        shown = ", ".join(f"{name} {value}" for name, value in self.curves.shown().items())
        self._print(f"round {index + 1}/{job.rounds}: {shown}, {seconds:.3g} s")

    def state(self) -> dict:
        """Return everything as plain values."""
        link = [self.run.bits.uplink_bits, self.run.bits.downlink_bits]
        state = {"curves": self.curves.state(), "round_times": self.round_times, "link": link}
        return state | {"data": self._source.digest}

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned.

        Raises:
            CheckpointError: it is of other data, or has more rounds than asked for.
        """
        job, counted = self.job, self.run.bits
        if state["data"] != self._source.digest:
            fix = "give the run its data back, or another checkpoint="
            raise expected("checkpoint: data", self._source.digest, state["data"], fix, CheckpointError)
        self.curves.restore(state["curves"])
        if self.curves.rounds > job.rounds:
            fix = "ask for as many rounds or more, or give another checkpoint="
            got = f"{self.curves.rounds} rounds in the checkpoint"
            raise expected("checkpoint", f"at most rounds = {job.rounds}", got, fix, CheckpointError)
        if self.curves.rounds < job.rounds:
            self.curves.forget_evaluations(job.eval_every)
        self.round_times = state["round_times"]
        counted.uplink_bits, counted.downlink_bits = state["link"]
        self.write()

    def close(self) -> None:
        """Leave history and model in the folder; all layers have come."""
        if not self.curves.evaluated:
            self.curves.set_accuracy(evaluate(self.run, self._source.test, self.curves.rounds - 1))
        job, run = self.job, self.run
        settings = settings_of(run)
        history: History = self.curves.history("pipeline", settings, job.round_time)
        history.save(self._folder / "history.json")
        torch.save(run.modules["model"].state_dict(), self._folder / "model.pt")
        self.write(finished=True)

    def write(self, finished: bool = False) -> None:
        """Write what a launcher shows; the file is replaced in one step."""
        rounds = self.curves.rounds
        news = {
            "rounds": rounds, "shown": self.curves.shown() if rounds else {}, "participants": [],
            "round_times": self.round_times, "faults": [], "models": [0], "finished": finished,
        }  # fmt: skip
        part = self._folder / "progress.part"
        part.write_text(json.dumps(news))
        part.replace(self._folder / "progress.json")
