"""The one number that training and scheduling of EPSL must agree on."""

import math


def aggregated_rows(phi: float, batch_size: int) -> int:
    """Return n_A = ⌈φ b⌉, the number of mini-batch slots whose last-layer gradients EPSL aggregates.

    Source: EPSL (arXiv 2303.15991): a share φ of the gradients [P]; rounding up [R].
    """
    return math.ceil(phi * batch_size - 1e-9)  # 0.07 · 100 is 7.000000000000001 in floating point
