"""What a training run returns: one row per round, and the trained models."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from torch import nn

from psl.records import Record


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
        test_accuracy: mean over the clients' own models, in [0, 1]; NaN in rounds without evaluation.
        uplink_bits, downlink_bits: bits sent since the start (cumulative); see `psl.training.communication.Link`.
        client_accuracy: test accuracy of each distinct client model at the last evaluation.
        participants: how many devices were averaged; None without `participation`.

    Attributes:
        models: the trained models in eval mode, of the class that was given: one per client where clients keep
            their own part (psl, epsl; the server's tensors are shared between them), else one.
            Not part of `to_dict` and `save`: use ``torch.save(model.state_dict(), …)``.
    """

    framework: str
    settings: dict
    simulated_time_s: np.ndarray
    train_loss: np.ndarray
    test_accuracy: np.ndarray
    uplink_bits: np.ndarray
    downlink_bits: np.ndarray
    client_accuracy: np.ndarray
    participants: np.ndarray | None = None
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

        Simulated time and bits are cumulative. With `participation` there is also a column participants.
        """
        columns = ("simulated_time_s", "train_loss", "test_accuracy", "uplink_bits", "downlink_bits")
        if self.participants is not None:
            columns += ("participants",)
        frame = pd.DataFrame({name: getattr(self, name) for name in columns})
        frame.insert(0, "round", np.arange(1, self.rounds + 1))
        return frame

    def __repr__(self):
        parts = [f"{self.rounds} rounds", f"train loss {self.train_loss[-1]:.4g}"]
        parts.append(f"test accuracy {self.final_accuracy:.2%} (best {self.best_accuracy:.2%})")
        parts.append(f"{self.uplink_bits[-1] / 8e6:.4g} MB up, {self.downlink_bits[-1] / 8e6:.4g} MB down")
        if not np.isnan(self.simulated_time_s[-1]):
            parts.append(f"{self.simulated_time_s[-1]:.4g} s simulated")
        return f"History({self.framework}: " + ", ".join(parts) + ")"
