"""Seconds that a message takes, and where those of computations come from."""

from collections.abc import Sequence

import numpy as np

from psl.profiles import Profile


def transfer(bits: float, rate: float, overhead: float = 0.0) -> float:
    """Return the seconds that a message takes at a rate: 0 without bits, else infinite at a rate of 0.

    Args:
        bits: of the message.
        rate: bit/s.
        overhead: s that it takes besides.
    """
    if bits == 0:
        return 0.0
    return bits / rate + overhead if rate > 0 else float("inf")


def tables_of(
    profile: Profile, speeds: np.ndarray, own: Sequence[Profile | None] | None
) -> list[tuple[Profile, float]]:
    """Return the profile and the speed that each device computes with: its own measured one needs no speed.

    Args:
        profile: of the model, in operations.
        speeds: (N,) of the devices.
        own: measured profiles, None for devices, or all, that have none.
    """
    measured = own or [None] * len(speeds)
    return [(profile, v) if table is None else (table, 1.0) for v, table in zip(speeds, measured, strict=True)]
