"""Micro-batches: how a mini-batch is divided, and when a machine that takes them in order has done each of them."""

from typing import Any

import numpy as np

from psl.errors import check_choice, check_count, expected

DUPLEX = ("full", "half")


def micro_batch_sizes(batch_size: int, number: Any) -> np.ndarray:
    """Return (M,) samples of each micro-batch: m = ⌈b / M⌉, and in the last one what is left.

    Args:
        batch_size: b.
        number: M.

    Raises:
        ScenarioError: b samples do not make M micro-batches of which only the last is smaller.
    """
    number = check_count("micro_batches", number, fix="give the number of micro-batches, None for none or 'auto'")
    size = -(-batch_size // number)
    if (made := -(-batch_size // size)) != number:
        want = f"a number that {batch_size} samples can be divided into, the last micro-batch the smallest"
        got = f"{number}: {size} samples at a time make {made}"
        raise expected("micro_batches", want, got, f"take {made}, or another batch_size")
    sizes = np.full(number, size)
    sizes[-1] = batch_size - size * (number - 1)
    return sizes


def numbers_to_try(batch_size: int) -> list[int]:
    """Return the numbers of micro-batches that "auto" tries: 1, 2, 4, 8, 16 and 32, or the next that b allows."""
    return sorted({-(-batch_size // -(-batch_size // n)) for n in (1, 2, 4, 8, 16, 32) if n <= batch_size})


def check_numbers(micro_batches: object, batch_size: int) -> list[int]:
    """Return the numbers of micro-batches that `solve` has to try: none for None, one, or for "auto" several.

    Raises:
        ScenarioError: neither None, "auto" nor a number that b samples can be divided into.
    """
    if micro_batches is None:
        return []
    if isinstance(micro_batches, str):
        check_choice("micro_batches", micro_batches, ("auto",), "give a whole number, None or 'auto'")
        return numbers_to_try(batch_size)
    return [len(micro_batch_sizes(batch_size, micro_batches))]


def check_duplex(duplex: str) -> str:
    """Return "full" or "half"."""
    return check_choice("duplex", duplex, DUPLEX)


def line_end(ready: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Return (…, M) when a machine that takes micro-batches in order has done each: C_k = max(C_k−1, ready_k) + s_k.

    Args:
        ready: (…, M) s, when each arrives.
        seconds: (…, M) s that each takes.
    """
    done = np.cumsum(seconds, axis=-1)
    return done + np.maximum.accumulate(ready - done + seconds, axis=-1)


def releases(forward: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Return (…, M) r_k, when each micro-batch has arrived at the server, of a client that is never stopped.

    With equal micro-batches, a forward and u uploading, r_k = a + u + k max(a, u).

    Args:
        forward, up: (…, M) s of each micro-batch.
    """
    return line_end(np.cumsum(forward, axis=-1), up)


def tails(down: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Return (…, M) q_k, the least from the server's end of micro-batch k to the client's end of the last one.

    With equal micro-batches, d downloading and e backward, q_k = d + e + (M − 1 − k) max(d, e).

    Args:
        down, backward: (…, M) s of each micro-batch.
    """
    return releases(backward[..., ::-1], down[..., ::-1])[..., ::-1]


def one_client(
    forward: np.ndarray, up: np.ndarray, server: np.ndarray, down: np.ndarray, backward: np.ndarray
) -> np.ndarray:
    """Return (…,) s of a mini-batch of a client that has the server to itself, uplink and downlink apart.

    With equal micro-batches it is max{M (a + e), a + u + p + d + e + (M − 1) max(a, u, p, d, e)}.

    Args:
        forward, up, server, down, backward: (…, M) s of each micro-batch.
    """
    through = line_end(line_end(releases(forward, up), server), down)
    return np.maximum(line_end(through, backward)[..., -1], forward.sum(axis=-1) + backward.sum(axis=-1))
