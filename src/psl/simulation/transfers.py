"""Seconds that a message takes."""


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
