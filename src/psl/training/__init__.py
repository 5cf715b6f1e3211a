"""Training: one loop, a place for each framework's difference, bits counted from what is exchanged."""

from psl.training.history import History
from psl.training.participation import Participation
from psl.training.targets import TargetTimes, seconds_to_target
from psl.training.train import train

__all__ = ["History", "Participation", "TargetTimes", "seconds_to_target", "train"]
