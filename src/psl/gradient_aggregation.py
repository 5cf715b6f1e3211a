"""How many rows EPSL aggregates and how many its server goes back through, for latency, training and simulation."""

import math

import numpy as np


def aggregated_rows(phi: float, batch_size: int) -> int:
    """Return n_A = ⌈φ b⌉, the number of slots of the mini-batches whose last-layer gradients EPSL aggregates.

    Args:
        phi: φ, share of the slots that are aggregated, 0..1.
        batch_size: b, samples of each client's mini-batch.

    Source: EPSL (arXiv 2303.15991): a share φ of the gradients [P]; rounding up [R].
    """
    return math.ceil(phi * batch_size - 1e-9)  # 0.07 · 100 is 7.000000000000001 in floating point


def server_rows(phi: float, batch_size: int, n_clients: int) -> int:
    """Return n_A + N (b − n_A), the rows that EPSL's server goes back through, instead of N b.

    An aggregated slot is one row for all clients; the other slots are one row per client.

    Args:
        phi: φ, share of the slots that are aggregated, 0..1.
        batch_size: b, samples of each client's mini-batch.
        n_clients: N.

    Source: EPSL (arXiv 2303.15991): the saving [P]; the count [R].
    """
    n_a = aggregated_rows(phi, batch_size)
    return n_a + n_clients * (batch_size - n_a)


def sampled_rows(phi: float, batch_size: int, n_clients: int) -> np.ndarray:
    """Return (N,) d_i, the rows of each client that the server goes back through if rows are drawn, not aggregated.

    Together they are as many as aggregation leaves, n_A + N (b − n_A), but at least one per client: a client without a
    row would learn nothing. Clients share them equally; the first ones get one more where they do not divide.

    Args:
        phi: φ, share of the slots that would be aggregated, 0..1.
        batch_size: b, samples of each client's mini-batch.
        n_clients: N.

    Source: ours [B].
    """
    total = max(server_rows(phi, batch_size, n_clients), n_clients)
    return equal_shares(total, n_clients)


def equal_shares(total: int, n_clients: int) -> np.ndarray:
    """Return (N,) rows per client that add up to a total; the first clients get one more where it does not divide."""
    return total // n_clients + (np.arange(n_clients) < total % n_clients)
