"""Which of a few straight lines is lowest, at very many places; and which of a few choices can be best at all."""

import numpy as np

_FEW = 300  # places; at so many, trying all of 50 lines took as long as finding their envelope (of 20 lines: at 200)


def lowest_lines(intercept: np.ndarray, slope: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return (n,) the index j of the least intercept_j + slope_j x_i for every place x_i.

    The minimum of l lines is their lower envelope, at most l pieces between sorted breakpoints: O(l log l + n log l)
    instead of O(n l).

    Args:
        intercept, slope: (l,) the lines; finite.
        x: (n,) places; finite.

    Source: textbook geometry; its use for the cuts of EdgeSplit (arXiv 2403.15815) is ours [B].
    """
    if len(x) <= _FEW:
        return np.argmin(intercept + slope * x[:, None], axis=1)
    hull, starts = [], []  # the lines of the envelope from left to right, and where each becomes the lowest
    a, b = intercept.tolist(), slope.tolist()
    for j in np.lexsort((intercept, -slope)).tolist():
        if hull and b[j] == b[hull[-1]]:
            continue  # parallel and not lower
        start = -np.inf
        while hull:
            start = (a[j] - a[hull[-1]]) / (b[hull[-1]] - b[j])
            if start > starts[-1]:
                break
            hull.pop()
            starts.pop()
            start = -np.inf
        hull.append(j)
        starts.append(start)
    return np.array(hull)[np.searchsorted(starts[1:], x)]


def undominated(cost: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Return (choices,) bool: which choices no other beats in both cost and bits; of equals one stays.

    Args:
        cost, bits: (choices,).
    """
    order = np.lexsort((bits, cost))
    ordered = bits[order]
    keep = np.ones(len(bits), dtype=bool)
    keep[order[1:]] = ordered[1:] < np.minimum.accumulate(ordered)[:-1]
    return keep
