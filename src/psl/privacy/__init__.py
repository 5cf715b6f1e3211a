"""Privacy, measured: what an attacker reconstructs at every cut, which labels leak, and what a defence changes.

Results say "at least this much leaks to this attacker on this data". They never say that data are private.
"""

from psl.privacy.labels import LabelLeakage, label_leakage
from psl.privacy.leakage import Leakage
from psl.privacy.measuring import measure
from psl.privacy.scores import distance_correlation
from psl.training.defences import Noise, NoPeek, Quantise

__all__ = [
    "LabelLeakage",
    "Leakage",
    "NoPeek",
    "Noise",
    "Quantise",
    "distance_correlation",
    "label_leakage",
    "measure",
]
