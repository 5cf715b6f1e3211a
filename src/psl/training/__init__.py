"""Training: one loop, a place for each framework's difference, bits counted from what is exchanged."""

from psl.training.history import History
from psl.training.loop import train
from psl.training.participation import Participation

__all__ = ["History", "Participation", "train"]
